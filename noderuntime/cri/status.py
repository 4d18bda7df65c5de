"""What the runtime says of itself: Version, Status, RuntimeConfig.

The verbose part of Status carries ``noderuntime``: JSON from which the agent learns what is served.
"""

from __future__ import annotations

import json
import platform
import re
from typing import TYPE_CHECKING, Any, Final, cast

from noderuntime import __version__
from noderuntime.cri.runtime_v1 import api_pb2 as pb
from noderuntime.host.ports import CgroupDriver

if TYPE_CHECKING:
    from collections.abc import Iterable

    from noderuntime.api.config import Config
    from noderuntime.engine.engine import NodeStatus

RUNTIME_NAME: Final = "noderuntime"
API_VERSION: Final = "v1"
KUBELET_API_VERSION: Final = "0.1.0"  # what the kubelet itself sends; no runtime answers another
INFO_KEY: Final = "noderuntime"
_SECRET: Final = re.compile(r"(?i)password|secret|token|credential|auth|private")


def version() -> pb.VersionResponse:
    """Return Version; the CRI client refuses an answer with an empty field."""
    return pb.VersionResponse(
        version=KUBELET_API_VERSION,
        runtime_name=RUNTIME_NAME,
        runtime_version=__version__,
        runtime_api_version=API_VERSION,
    )


def status(node: NodeStatus, info: dict[str, str] | None) -> pb.StatusResponse:
    """Return Status: both conditions, and the handlers for ``node.status.runtimeHandlers``.

    ``info`` is the verbose part, None where it was not asked for.
    """
    runtime = pb.RuntimeCondition(type="RuntimeReady", status=True)
    network = pb.RuntimeCondition(
        type="NetworkReady",
        status=not node.network_not_ready,
        reason="NetworkNotReady" if node.network_not_ready else "",
        message=node.network_not_ready,
    )
    return pb.StatusResponse(
        status=pb.RuntimeStatus(conditions=[runtime, network]),
        runtime_handlers=[
            pb.RuntimeHandler(
                name=handler.name,
                features=pb.RuntimeHandlerFeatures(
                    recursive_read_only_mounts=handler.recursive_readonly,
                    user_namespaces=handler.user_namespaces,
                ),
            )
            for handler in node.handlers
        ],
        # User namespaces on the host's network are refused in convert_security.py.
        features=pb.RuntimeFeatures(supplemental_groups_policy=True, mount_options=True),
        info=info,
    )


def info(node: NodeStatus, config: Config, driver: CgroupDriver, pod_cidr: str) -> dict[str, str]:
    """Return the verbose part: what is served, the node's settings, and what this program is."""
    runtime = {
        "version": __version__,
        "python": platform.python_version(),
        "kernel": platform.release(),
        "machine": platform.machine(),
        "cgroupDriver": driver.value,
        "podCIDR": pod_cidr,
        # Without it, filters are compiled by the OCI runtime, for each container anew.
        "libseccomp": node.libseccomp or "not found",
        "network": node.network,
    }
    return {
        INFO_KEY: node_info(node),
        "config": json.dumps(without_secrets(config.model_dump(mode="json"))),
        "runtime": json.dumps(runtime),
    }


def without_secrets(value: Any) -> Any:  # noqa: ANN401 - JSON
    """Return JSON without what a key names as a secret: whoever may ask Status may read the rest."""
    if isinstance(value, dict):
        pairs = cast("dict[str, Any]", value).items()
        return {
            key: "(hidden)" if _SECRET.search(key) and each else without_secrets(each)
            for key, each in pairs
        }
    if isinstance(value, list):
        return [without_secrets(each) for each in cast("Iterable[Any]", value)]
    return value


def node_info(node: NodeStatus) -> str:
    """Return the JSON that the agent reads."""
    return json.dumps(
        {
            "revision": node.revision,
            "revisionError": node.revision_error,
            "handlers": list(node.revision_handlers),
            "staleContainers": list(node.stale_containers),
            "ungovernedPods": node.ungoverned_pods,
            "default": node.default and node.default.model_dump(mode="json", by_alias=True),
            "unknownSyscalls": dict(node.unknown_syscalls),
            "withheldHandlers": [
                {"name": each.name, "reason": each.reason, "message": each.message}
                for each in node.withheld
            ],
        }
    )


def runtime_config(driver: CgroupDriver) -> pb.RuntimeConfigResponse:
    """Return RuntimeConfig: the kubelet takes its cgroup driver from here."""
    known = {CgroupDriver.SYSTEMD: pb.SYSTEMD, CgroupDriver.CGROUPFS: pb.CGROUPFS}
    return pb.RuntimeConfigResponse(linux=pb.LinuxRuntimeConfiguration(cgroup_driver=known[driver]))
