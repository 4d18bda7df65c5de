"""NodeRuntimeState: what one node is to serve, and what it serves. Named as the node.

The operator writes ``spec``, the node's agent writes ``status``; nobody else writes either. Its size is bounded.
"""

from __future__ import annotations

from pydantic import Field

from noderuntime.api.kubernetes import a_set, keyed, rules
from noderuntime.api.model import ApiModel
from noderuntime.api.status import Condition


class RevisionRef(ApiModel):
    """A revision by the ControllerRevision that holds it and by the digest of its content."""

    name: str = Field(
        min_length=1, max_length=253, description="Name of the ControllerRevision that holds it."
    )
    digest: str = Field(
        pattern=r"^sha256:[0-9a-f]{64}$",
        max_length=71,
        description="Digest over its handlers; the node checks it before it serves them.",
    )


class ServedRevision(ApiModel):
    """The revision that the node's runtime serves."""

    digest: str = Field(
        max_length=71, description="Digest as the runtime reports it; empty when it serves none."
    )
    served_at: str | None = Field(
        default=None,
        description="When the agent first saw it served.",
        json_schema_extra={"format": "date-time"},
    )


class UnknownSyscalls(ApiModel):
    """System calls of a handler's profile that no filter of the node can name."""

    handler: str = Field(max_length=63, description="The handler.")
    names: tuple[str, ...] = Field(
        default=(),
        max_length=64,
        description="Names of the system calls; the first 64.",
        json_schema_extra=a_set(),
    )


class WithheldHandler(ApiModel):
    """A handler that the node cannot offer."""

    name: str = Field(min_length=1, max_length=63, description="The handler.")
    reason: str = Field(
        min_length=1,
        max_length=64,
        description="MissingFeature (the kernel lacks what the profile demands), AppArmorProfileRefused, "
        "AppArmorProfileNotLoaded, SELinuxLabelUnknown (by the node's policy) or ArtifactMissing (the seccomp "
        "artifact was not fetched yet, or cannot be; it is tried again).",
    )
    message: str = Field(max_length=2048, description="What is missing, as a sentence for people.")


class NodeRuntimeStateSpec(ApiModel):
    """What the operator wants of the node."""

    node_name: str = Field(
        min_length=1,
        max_length=253,
        description="The node; the same as the name of the object.",
        json_schema_extra=rules(("self == oldSelf", "nodeName is immutable")),
    )
    revision: RevisionRef = Field(description="The revision that the node is to serve, whole.")


class NodeRuntimeStateStatus(ApiModel):
    """What the agent saw on the node."""

    observed_generation: int = Field(
        default=-1, description="The `.metadata.generation` that the agent acted on."
    )
    revision: ServedRevision | None = Field(
        default=None, description="The revision that the runtime serves."
    )
    handlers: tuple[str, ...] = Field(
        default=(),
        max_length=256,
        description="Handlers of the revision that the runtime serves.",
        json_schema_extra=a_set(),
    )
    withheld_handlers: tuple[WithheldHandler, ...] = Field(
        default=(),
        max_length=256,
        description="Handlers of the revision that the node cannot offer: Pods that name them are refused there.",
        json_schema_extra=keyed("name"),
    )
    stale_containers: tuple[str, ...] = Field(
        default=(),
        max_length=100,
        description="Running containers that were started under another revision, as "
        "`namespace/pod/container`; the first hundred.",
        json_schema_extra=a_set(),
    )
    ungoverned_pods: int = Field(
        default=0,
        ge=0,
        description="Pods that run on the node under no profile: those that name one of its own handlers, or none "
        "where no NodeRuntime has `default`, or in a namespace that is exempt from it.",
    )
    unknown_syscalls: tuple[UnknownSyscalls, ...] = Field(
        default=(),
        max_length=256,
        description="What the node's libseccomp does not know of the seccomp sections.",
        json_schema_extra=keyed("handler"),
    )
    conditions: tuple[Condition, ...] = Field(
        default=(),
        max_length=16,
        description="Ready: the node serves the revision of the spec, with every handler of it. "
        "SeccompComplete: its filters name every system call that the profiles name.",
        json_schema_extra=keyed("type"),
    )
