"""What a Pod itself asks for: a profile has to allow it, used or not, or the Pod is refused.

``wide`` is what a Pod is recorded under: the node's defaults, and what it asks for besides. So a
recording is as confined as a Pod without a profile is, and more so: it always has the filter.
"""

from __future__ import annotations

import os
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Final, Literal

from noderuntime.api.profile_node import DeviceRule, Devices, HostPath
from noderuntime.api.profile_process import Capabilities, Sysctls
from noderuntime.api.seccomp import Seccomp
from noderuntime.api.securityprofile import SecurityProfileSpec
from noderuntime.cli.manifest import requests
from noderuntime.cli.manifest.volumes import OF_POD
from noderuntime.cli.manifest.workloads import Workload
from noderuntime.cri import convert
from noderuntime.policy import capabilities
from noderuntime.policy.checks import is_unmasked
from noderuntime.policy.model import (
    ContainerConfig,
    Mount,
    NamespaceMode,
    Propagation,
    SandboxConfig,
)
from noderuntime.policy.sysctls import SAFE, normalise

_PROPAGATIONS: Final[dict[Propagation, Literal["HostToContainer", "Bidirectional"]]] = {
    Propagation.HOST_TO_CONTAINER: "HostToContainer",
    Propagation.BIDIRECTIONAL: "Bidirectional",
}


@dataclass(frozen=True, slots=True, kw_only=True)
class Asked:
    """A Pod in CRI's words, as the checks of a profile read it."""

    sandbox: SandboxConfig
    containers: tuple[ContainerConfig, ...]

    @property
    def added(self) -> frozenset[str]:
        """Capabilities that a container adds; ALL is every one."""
        names = {name for each in self.containers for name in capabilities.asked(each.security)}
        return frozenset(capabilities.KNOWN if capabilities.ALL in names else names)

    @property
    def host_mounts(self) -> tuple[Mount, ...]:
        """Mounts of paths of the node, which the kubelet's volumes and images are not."""
        return tuple(
            mount
            for each in self.containers
            for mount in each.mounts
            if not mount.image and not mount.host_path.startswith(f"{OF_POD}/")
        )


def asked(workload: Workload) -> Asked:
    """Return what a Pod asks for. Raises ConfigError, InvalidArgumentError."""
    return Asked(
        sandbox=convert.sandbox_config(requests.sandbox(workload)),
        containers=tuple(
            convert.container_config(each.config) for each in requests.containers(workload, None)
        ),
    )


def wide(of: Asked) -> SecurityProfileSpec:
    """Return the profile that a Pod is recorded under."""
    return needed(of).model_copy(
        update={
            "no_new_privileges": "Optional",
            "capabilities": Capabilities(
                default=tuple(sorted(capabilities.NODE_DEFAULT)), allow=tuple(sorted(of.added))
            ),
        }
    )


def needed(of: Asked) -> SecurityProfileSpec:
    """Return the least profile that does not refuse the Pod; capabilities and filter are left out."""
    security = [each.security for each in of.containers]
    namespaces = of.sandbox.namespaces
    shared: dict[Literal["PID", "IPC", "Network"], NamespaceMode] = {
        "PID": namespaces.pid,
        "IPC": namespaces.ipc,
        "Network": namespaces.network,
    }
    unmasked = any(is_unmasked(each) for each in security)
    sysctls = {normalise(name) for name in of.sandbox.sysctls}
    return SecurityProfileSpec(
        privileged="Allow" if any(each.privileged for each in security) else "Deny",
        host_namespaces=tuple(name for name, mode in shared.items() if mode is NamespaceMode.NODE),
        user_namespace="Optional" if namespaces.user is None else "Required",
        proc_mount="UnmaskedAllowed" if unmasked else "Default",
        sysctls=Sysctls(allow=tuple(sorted(sysctls - SAFE))),
        devices=_devices(of.containers),
        host_paths=_host_paths(of.host_mounts),
        seccomp=Seccomp(),
    )


def real(path: str) -> str:
    """Return a path of the node as it is judged: with every link followed."""
    return os.path.realpath(path)


def _devices(containers: Iterable[ContainerConfig]) -> Devices:
    letters: dict[str, set[str]] = {}
    for each in containers:
        for device in each.devices:
            if not device.host_path.startswith(f"{OF_POD}/"):
                wanted = device.permissions or "rwm"
                letters.setdefault(real(device.host_path), set()).update(wanted)
    return Devices(
        allow=tuple(
            DeviceRule(path=path, permissions="".join(c for c in "rwm" if c in wanted))
            for path, wanted in sorted(letters.items())
        ),
        cdi=tuple(sorted({name for each in containers for name in each.cdi_devices})),
    )


def _host_paths(mounts: Iterable[Mount]) -> tuple[HostPath, ...]:
    by_path: dict[str, list[Mount]] = {}
    for mount in mounts:
        by_path.setdefault(real(mount.host_path), []).append(mount)
    return tuple(
        HostPath(
            path=path,
            read_only=all(mount.readonly for mount in same),
            propagation=tuple(
                sorted(
                    {_PROPAGATIONS[m.propagation] for m in same if m.propagation in _PROPAGATIONS}
                )
            ),
        )
        for path, same in sorted(by_path.items())
    )
