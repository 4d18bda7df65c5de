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
    for found in cast("list[object]", owners if isinstance(owners, list) else []):
        each = _object(found)
        if each.get("controller") and each.get("kind") != "Node":  # a static Pod's is its Node
            kind, name = str(each.get("kind", "")), str(each.get("name", ""))
            suffix = f"-{_part(metadata, 'labels').get(_HASH)}"
            if kind == "ReplicaSet" and name.endswith(suffix):
                return "Deployment", name.removesuffix(suffix)
            return kind, name
    return "Pod", str(metadata.get("name", ""))


def _part(body: Mapping[str, Any], name: str) -> Mapping[str, Any]:
    return _object(body.get(name))


def _object(value: object) -> Mapping[str, Any]:
    return cast("Mapping[str, Any]", value) if isinstance(value, dict) else {}


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


@dataclass(frozen=True, slots=True, kw_only=True)
class Place:
    """What else of the cluster says who governs a Pod; ``labels`` of every node, or of none.

    ``own_namespace`` is noderuntime's own, where no default governs.
    """

    classes: Mapping[str, str]  # handlers by RuntimeClass
    labels: Mapping[str, Mapping[str, str]]
    own_namespace: str

    def handler_of(self, pod: Seen) -> str:
        """Return the handler that its RuntimeClass stands for."""
        return self.classes.get(pod.runtime_class, pod.runtime_class)


class Governors:
    """Which NodeRuntime governs a Pod: the oldest with its handler that selects its node.

    A Pod that names no handler is governed by the default of the oldest that has one and serves its
    own handler there, unless its namespace is exempt.
    """

    def __init__(self, runtimes: Iterable[Runtime], place: Place) -> None:
        """``runtimes`` oldest first."""
        self._place = place
        self._runtimes = tuple(runtimes)

    def serves(self, pod: Seen) -> bool:
        """Tell whether the handler that it names is served on any node."""
        handler = self._place.handler_of(pod)
        return any(each.spec.handler == handler for each in self._runtimes)

    def of(self, pod: Seen) -> Runtime | None:
        """Return the NodeRuntime, None for none; of a Pod that has no node yet, as if all select it."""
        labels = self._place.labels.get(pod.node)
        there = dict[str, Runtime]()
        for each in self._runtimes:
            if labels is None or matches(each.spec.node_selector, labels):
                there.setdefault(each.spec.handler, each)
        if pod.runtime_class:
            return there.get(self._place.handler_of(pod))
        found = next((each for each in there.values() if each.spec.default is not None), None)
        if found is None or found.spec.default is None:
            return None
        exempt = (*found.spec.default.exempt_namespaces, self._place.own_namespace)
        return None if pod.namespace in exempt else found
