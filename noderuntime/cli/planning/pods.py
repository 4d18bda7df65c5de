"""A Pod of the cluster: what of it a decision needs, of which workload it is, and who governs it."""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any, Final, cast

from noderuntime.api.securityprofile import SERVICE_ACCOUNT
from noderuntime.api.selection import matches
from noderuntime.cli.manifest.model import Pod
from noderuntime.cli.manifest.workloads import Workload, parsed
from noderuntime.cli.planning.cluster import Body
from noderuntime.cli.planning.rules import Runtime

ENDED: Final = ("Succeeded", "Failed")
# The API server mounts each Pod's token under a name of that Pod's own.
_TOKEN: Final = re.compile(r"\bkube-api-access-[a-z0-9]{5}\b", re.ASCII)
_HASH: Final = "pod-template-hash"  # what a Deployment puts into its ReplicaSets' names


@dataclass(frozen=True, slots=True, kw_only=True)
class Seen:
    """A Pod that has not ended. ``owner_kind`` and ``owner`` are of what made it, or its own."""

    namespace: str
    name: str
    node: str  # "" until it is scheduled
    runtime_class: str
    owner_kind: str
    owner: str
    body: Body

    def workload(self) -> Workload:
        """Parse what confines it. Raises ConfigError, for a field of a newer Kubernetes too."""
        pod = parsed(Pod, self.body, f"Pod {self.namespace}/{self.name}", "")
        return Workload(kind="Pod", name=self.name, namespace=self.namespace, pod=pod)


def seen(body: Body) -> Seen | None:
    """Read a Pod; None where it has ended, or is being deleted: it does not start again."""
    metadata, spec = _part(body, "metadata"), _part(body, "spec")
    if _part(body, "status").get("phase") in ENDED or metadata.get("deletionTimestamp"):
        return None
    kind, owner = _owner(metadata)
    return Seen(
        namespace=str(metadata.get("namespace", "")),
        name=str(metadata.get("name", "")),
        node=str(spec.get("nodeName") or ""),
        runtime_class=str(spec.get("runtimeClassName") or ""),
        owner_kind=kind,
        owner=owner,
        body=body,
    )


def _owner(metadata: Mapping[str, Any]) -> tuple[str, str]:
    owners = metadata.get("ownerReferences")
    for each in cast("list[Mapping[str, Any]]", owners if isinstance(owners, list) else []):
        if each.get("controller") and each.get("kind") != "Node":  # a static Pod's is its Node
            kind, name = str(each.get("kind", "")), str(each.get("name", ""))
            suffix = f"-{_part(metadata, 'labels').get(_HASH)}"
            if kind == "ReplicaSet" and name.endswith(suffix):
                return "Deployment", name.removesuffix(suffix)
            return kind, name
    return "Pod", str(metadata.get("name", ""))


def _part(body: Mapping[str, Any], name: str) -> Mapping[str, Any]:
    part = body.get(name)
    return cast("Mapping[str, Any]", part) if isinstance(part, dict) else {}


def fingerprint(pod: Pod) -> str:
    """Return a text that is the same for Pods of which every decision is the same.

    What is each replica's own (its host name, the name of its token and of its claims) is not in it.
    """
    volumes = [
        (each.name, each.source, each.host_path, each.empty_dir, each.image)
        for each in pod.spec.volumes
    ]
    spec = pod.spec.model_dump_json(exclude={"hostname", "volumes"})
    account = pod.metadata.annotations.get(SERVICE_ACCOUNT, "")
    return _TOKEN.sub("kube-api-access", repr((account, volumes, spec)))


class Governors:
    """Which NodeRuntime governs a Pod: the oldest with its handler that selects its node."""

    def __init__(
        self,
        runtimes: Iterable[Runtime],
        classes: Mapping[str, str],
        labels: Mapping[str, Mapping[str, str]],
    ) -> None:
        """``runtimes`` oldest first; handlers by RuntimeClass; labels by node, of every node or none."""
        self._classes = classes
        self._labels = labels
        self._by_handler: dict[str, list[Runtime]] = {}
        for each in runtimes:
            self._by_handler.setdefault(each.spec.handler, []).append(each)

    def serves(self, pod: Seen) -> bool:
        """Tell whether its handler is served on any node."""
        return bool(self._of_handler(pod))

    def _of_handler(self, pod: Seen) -> list[Runtime]:
        handler = self._classes.get(pod.runtime_class, pod.runtime_class)
        return self._by_handler.get(handler, [])

    def of(self, pod: Seen) -> Runtime | None:
        """Return the NodeRuntime, None for none; of a Pod that has no node yet, the oldest."""
        found = self._of_handler(pod)
        labels = self._labels.get(pod.node)
        if labels is None:
            return next(iter(found), None)
        return next((each for each in found if matches(each.spec.node_selector, labels)), None)
