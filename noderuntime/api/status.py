"""What is true of a resource: conditions as Kubernetes has them, and counts of nodes.

``Ready``, ``Reconciling`` and ``Stalled`` are the conditions that kstatus, Flux and Argo CD read; each is
always written, True or False, together with ``observedGeneration``.
Source: kubernetes-sigs/cli-utils, kstatus; Kubernetes API conventions, "typical status properties".
"""

from __future__ import annotations

from typing import Literal

from pydantic import Field

from noderuntime.api.kubernetes import a_set, keyed
from noderuntime.api.model import ApiModel

ConditionStatus = Literal["True", "False", "Unknown"]


class Condition(ApiModel):
    """One aspect of the resource's state, as metav1.Condition."""

    type: str = Field(max_length=316, description="Name of the condition, in CamelCase.")
    status: ConditionStatus = Field(description="True, False or Unknown.")
    observed_generation: int = Field(
        default=0, ge=0, description="The `.metadata.generation` that this was seen at."
    )
    last_transition_time: str = Field(
        description="When the status last changed.", json_schema_extra={"format": "date-time"}
    )
    reason: str = Field(
        min_length=1, max_length=1024, description="Why, as one CamelCase word for programs."
    )
    message: str = Field(max_length=32768, description="Why, as a sentence for people.")


class NodeCounts(ApiModel):
    """How far the nodes are, in numbers."""

    matched: int = Field(
        default=0, ge=0, description="Nodes that the selector matches, without those in conflict."
    )
    served: int = Field(
        default=0, ge=0, description="Of these, nodes that serve the handler as it is declared now."
    )
    pending: int = Field(
        default=0, ge=0, description="Of these, nodes that do not serve it as declared yet."
    )
    conflicting: int = Field(
        default=0,
        ge=0,
        description="Nodes where an older NodeRuntime serves the same handler instead.",
    )
    stale: int = Field(
        default=0,
        ge=0,
        description="Nodes with containers that were started under an earlier revision.",
    )


class NodeRuntimeStatus(ApiModel):
    """What the operator and the nodes made of it."""

    observed_generation: int = Field(
        default=-1, description="The `.metadata.generation` that this status describes."
    )
    conditions: tuple[Condition, ...] = Field(
        default=(),
        max_length=16,
        description="Ready, Reconciling and Stalled.",
        json_schema_extra=keyed("type"),
    )
    nodes: NodeCounts = Field(default=NodeCounts(), description="How far the nodes are.")
    served_nodes: str = Field(
        default="", max_length=32, description="`served/matched`, for `kubectl get`."
    )
    ungoverned_pods: int = Field(
        default=0,
        ge=0,
        description="Pods on the matched nodes that run under no profile: those that name one of the node's own "
        "handlers, or none where no NodeRuntime has `default`, or in a namespace that is exempt from it.",
    )
    runtime_class_name: str = Field(
        default="", max_length=63, description="The RuntimeClass that Pods name to run under it."
    )
    profile_generation: int = Field(
        default=0,
        ge=0,
        description="The generation of the SecurityProfile that the nodes are told to serve.",
    )


class SecurityProfileStatus(ApiModel):
    """Who uses the profile."""

    observed_generation: int = Field(
        default=-1, description="The `.metadata.generation` that this status describes."
    )
    conditions: tuple[Condition, ...] = Field(
        default=(),
        max_length=16,
        description="Ready and Stalled.",
        json_schema_extra=keyed("type"),
    )
    used_by: tuple[str, ...] = Field(
        default=(),
        max_length=100,
        description="Names of the NodeRuntimes that refer to it, the first hundred.",
        json_schema_extra=a_set(),
    )
