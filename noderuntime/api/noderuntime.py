"""NodeRuntime: which handler, on which nodes, under which profile, with which bounds."""

from __future__ import annotations

from typing import Literal

from pydantic import Field

from noderuntime.api.model import ApiModel

Quantity = str  # a Kubernetes resource.Quantity; api/quantity.py reads it


class SelectorRequirement(ApiModel):
    """One expression of a label selector."""

    key: str = Field(description="Label key.")
    operator: Literal["In", "NotIn", "Exists", "DoesNotExist"] = Field(
        description="How values are matched."
    )
    values: tuple[str, ...] = Field(default=(), description="Values for In and NotIn.")


class NodeSelector(ApiModel):
    """A label selector over nodes; an empty one selects every node."""

    match_labels: dict[str, str] = Field(default={}, description="Labels that a node must have.")
    match_expressions: tuple[SelectorRequirement, ...] = Field(
        default=(), description="Requirements that a node's labels must meet."
    )


class Engine(ApiModel):
    """What runs the containers."""

    oci_runtime: Literal["crun", "runc"] = Field(
        default="crun", description="The OCI runtime on the node."
    )


class ProfileRef(ApiModel):
    """A SecurityProfile by name."""

    name: str = Field(min_length=1, description="Name of a SecurityProfile.")


class ImageRules(ApiModel):
    """Where images may come from."""

    allowed_registries: tuple[str, ...] = Field(
        default=(),
        description="Prefixes such as `registry.example.com` or `registry.example.com/team`; empty allows all.",
    )


class ResourceAmounts(ApiModel):
    """CPU and memory, as Kubernetes quantities."""

    cpu: Quantity | None = Field(default=None, description="CPU, such as `500m` or `2`.")
    memory: Quantity | None = Field(default=None, description="Memory, such as `128Mi`.")


class ResourceRules(ApiModel):
    """Defaults and maxima of each container."""

    defaults: ResourceAmounts = Field(
        default=ResourceAmounts(), description="Limits of a container that asks for none."
    )
    limits: ResourceAmounts = Field(
        default=ResourceAmounts(), description="The most a container may ask for; more is refused."
    )
    pids_limit: int | None = Field(
        default=None, ge=1, description="The most processes and threads that a container may have."
    )
    overhead: ResourceAmounts = Field(
        default=ResourceAmounts(), description="Overhead of a Pod, put into the RuntimeClass."
    )


class Tracing(ApiModel):
    """Where spans go."""

    endpoint: str = Field(
        pattern=r"^https?://", description="OTLP/gRPC endpoint, such as `http://10.0.0.5:4317`."
    )
    sampling_rate_per_million: int = Field(
        default=0,
        ge=0,
        le=1000000,
        description="Share of Pod starts that are traced when the kubelet has not decided.",
    )


class NodeRuntimeSpec(ApiModel):
    """What the platform team declares."""

    handler: str = Field(
        pattern=r"^[a-z0-9]([-a-z0-9]*[a-z0-9])?$",
        max_length=63,
        description="The runtime handler; Pods select it through a RuntimeClass of the same name.",
    )
    node_selector: NodeSelector = Field(
        default=NodeSelector(), description="The nodes that serve it."
    )
    engine: Engine = Field(default=Engine(), description="What runs the containers.")
    security_profile_ref: ProfileRef = Field(description="The profile that its Pods run under.")
    images: ImageRules = Field(default=ImageRules(), description="Where images may come from.")
    resources: ResourceRules = Field(default=ResourceRules(), description="Defaults and maxima.")
    tracing: Tracing | None = Field(default=None, description="Where spans of its Pods go.")
