"""The three resources: names, columns and the models behind them, for the CRDs and their pages."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Final

from noderuntime.api.kubernetes import Extra
from noderuntime.api.model import ApiModel
from noderuntime.api.noderuntime import NodeRuntimeSpec
from noderuntime.api.securityprofile import SecurityProfileSpec
from noderuntime.api.state import NodeRuntimeStateSpec, NodeRuntimeStateStatus
from noderuntime.api.status import NodeRuntimeStatus, SecurityProfileStatus


@dataclass(frozen=True, slots=True, kw_only=True)
class Column:
    """One printer column; priority 1 shows with ``-o wide`` only."""

    name: str
    path: str
    description: str = ""
    type: str = "string"
    priority: int = 0

    def document(self) -> Extra:
        """Return it as the CRD has it."""
        body: Extra = {"name": self.name, "type": self.type, "jsonPath": self.path}
        body |= {"description": self.description} if self.description else {}
        return body | ({"priority": self.priority} if self.priority else {})


@dataclass(frozen=True, slots=True, kw_only=True)
class Definition:
    """One resource, cluster-scoped, with a status subresource."""

    kind: str
    plural: str
    short: str
    summary: str
    spec: type[ApiModel]
    status: type[ApiModel]
    columns: tuple[Column, ...]
    rules: tuple[tuple[str, str], ...] = ()  # CEL over the whole object
    selectable: tuple[str, ...] = ()
    stored_defaults: tuple[str, ...] | None = None  # None: all, see crd.py

    @property
    def singular(self) -> str:
        """Return the name that kubectl takes for one."""
        return self.kind.lower()


_AGE: Final = Column(name="Age", type="date", path=".metadata.creationTimestamp")
_READY: Final = '.status.conditions[?(@.type=="Ready")]'


def _ready(priority: int = 0) -> Column:
    return Column(name="Ready", path=f"{_READY}.status", priority=priority)


def _message() -> Column:
    return Column(name="Message", path=f"{_READY}.message", priority=1)


DEFINITIONS: Final = (
    Definition(
        kind="NodeRuntime",
        plural="noderuntimes",
        short="nrt",
        summary="NodeRuntime declares which runtime handler the selected nodes serve, under which profile and bounds.",
        spec=NodeRuntimeSpec,
        status=NodeRuntimeStatus,
        columns=(
            Column(name="Handler", path=".spec.handler"),
            Column(name="Profile", path=".spec.securityProfileRef.name"),
            _ready(),
            Column(
                name="Nodes",
                path=".status.servedNodes",
                description="Nodes that serve it as declared, of those that it selects.",
            ),
            Column(name="Stale", type="integer", path=".status.nodes.stale", priority=1),
            Column(name="Reason", path=f"{_READY}.reason"),
            _AGE,
            _message(),
        ),
        rules=(
            (
                "self.metadata.name.size() <= 63 && !self.metadata.name.contains('.')",
                "the name of a NodeRuntime must be a DNS label: up to 63 characters and no dot",
            ),
        ),
    ),
    Definition(
        kind="SecurityProfile",
        plural="securityprofiles",
        short="sprof",
        summary="SecurityProfile declares what Pods of a handler may do; what it does not mention is refused.",
        spec=SecurityProfileSpec,
        status=SecurityProfileStatus,
        stored_defaults=("spec.mode",),
        columns=(
            Column(name="Mode", path=".spec.mode"),
            Column(name="Inherits", path=".spec.inherits"),
            Column(name="Privileged", path=".spec.privileged", priority=1),
            Column(name="Used-By", path=".status.usedBy"),
            _ready(),
            _AGE,
            _message(),
        ),
        rules=(
            (
                "!has(self.spec.inherits) || self.spec.inherits != self.metadata.name",
                "a profile cannot inherit from itself",
            ),
        ),
    ),
    Definition(
        kind="NodeRuntimeState",
        plural="noderuntimestates",
        short="nrs",
        summary="NodeRuntimeState says what one node is to serve and what it serves; operator and agent write it.",
        spec=NodeRuntimeStateSpec,
        status=NodeRuntimeStateStatus,
        columns=(
            Column(name="Revision", path=".spec.revision.name"),
            Column(name="Handlers", path=".status.handlers"),
            _ready(),
            Column(name="Reason", path=f"{_READY}.reason"),
            Column(name="Served", path=".status.revision.digest", priority=1),
            _AGE,
            _message(),
        ),
        rules=(
            (
                "self.metadata.name == self.spec.nodeName",
                "a NodeRuntimeState is named as its node: metadata.name and spec.nodeName must be the same",
            ),
        ),
        selectable=(".spec.nodeName",),
    ),
)
