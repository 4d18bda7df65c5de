"""What the operator saw, as frozen values; ``observe.py`` makes them from the API server's answers."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, TypeAlias

from noderuntime.api.noderuntime import NodeRuntimeSpec
from noderuntime.api.revision import Revision
from noderuntime.api.securityprofile import SecurityProfileSpec
from noderuntime.api.state import NodeRuntimeStateSpec, NodeRuntimeStateStatus

Body: TypeAlias = Mapping[str, Any]  # an object of the API, free-form JSON


@dataclass(frozen=True, slots=True, kw_only=True)
class Settings:
    """What the operator's own Deployment tells it."""

    namespace: str
    agent_image: str
    owner: Body | None = None  # ownerReference to the Deployment, for what lives in its namespace


@dataclass(frozen=True, slots=True, kw_only=True)
class NodeSeen:
    """A Node."""

    name: str
    labels: Mapping[str, str] = field(default_factory=dict[str, str])


@dataclass(frozen=True, slots=True, kw_only=True)
class NodeRuntimeSeen:
    """A NodeRuntime; ``spec`` is None where this operator cannot read it, and ``problem`` says why."""

    name: str
    uid: str
    generation: int
    created: str  # RFC 3339, so it sorts as text
    deleting: bool = False
    claimed: bool = False  # our finalizer is on it
    spec: NodeRuntimeSpec | None
    problem: str = ""
    status: Body = field(default_factory=dict[str, Any])


@dataclass(frozen=True, slots=True, kw_only=True)
class ProfileSeen:
    """A SecurityProfile; ``spec`` as in NodeRuntimeSeen."""

    name: str
    generation: int
    spec: SecurityProfileSpec | None
    problem: str = ""
    status: Body = field(default_factory=dict[str, Any])


@dataclass(frozen=True, slots=True, kw_only=True)
class StateSeen:
    """A NodeRuntimeState; both parts None where they cannot be read."""

    name: str
    uid: str
    spec: NodeRuntimeStateSpec | None
    status: NodeRuntimeStateStatus | None = None
    emptied_at: str = ""


@dataclass(frozen=True, slots=True, kw_only=True)
class RevisionSeen:
    """A ControllerRevision of ours; ``revision`` is None where its content cannot be read."""

    name: str
    uid: str
    created: str
    number: int
    revision: Revision | None


@dataclass(frozen=True, slots=True, kw_only=True)
class RuntimeClassSeen:
    """A RuntimeClass, ours or not."""

    name: str
    uid: str
    handler: str
    owned: bool
    owner: str = ""  # name of the NodeRuntime, from the label
    body: Body = field(default_factory=dict[str, Any])


@dataclass(frozen=True, slots=True, kw_only=True)
class AdmissionSeen:
    """The admission policies and bindings that are ours; ``problem`` is why there can be none."""

    policies: tuple[Body, ...] = ()
    bindings: tuple[Body, ...] = ()
    problem: str = ""


@dataclass(frozen=True, slots=True, kw_only=True)
class PodSeen:
    """A Pod that has not ended and names a RuntimeClass; ``node`` is empty until it is scheduled."""

    namespace: str
    name: str
    runtime_class: str
    node: str = ""

    def __str__(self) -> str:
        """Return ``namespace/name``."""
        return f"{self.namespace}/{self.name}"


@dataclass(frozen=True, slots=True, kw_only=True)
class Observed:
    """One look at the cluster. ``pods`` is filled only while a NodeRuntime is being deleted."""

    settings: Settings
    node_runtimes: tuple[NodeRuntimeSeen, ...] = ()
    profiles: tuple[ProfileSeen, ...] = ()
    nodes: tuple[NodeSeen, ...] = ()
    states: tuple[StateSeen, ...] = ()
    revisions: tuple[RevisionSeen, ...] = ()
    runtime_classes: tuple[RuntimeClassSeen, ...] = ()
    daemonset: Body | None = None
    admission: AdmissionSeen = AdmissionSeen()
    pods: tuple[PodSeen, ...] = ()
