"""NodeRuntime: which handler, on which nodes, under which profile, with which bounds."""

from __future__ import annotations

from typing import Annotated, Any, Final, Literal

from pydantic import BeforeValidator, ConfigDict, Field

from noderuntime.api.kubernetes import INT_OR_STRING, MAP_TYPE, RULES, Extra, a_set, atomic, rules
from noderuntime.api.model import ApiModel


def _text_of(value: Any) -> Any:  # noqa: ANN401 - a validator sees whatever the file holds
    return str(value) if isinstance(value, int) and not isinstance(value, bool) else value


# A Kubernetes resource.Quantity; api/quantity.py reads it. YAML's `cpu: 2` is an integer, so both are taken.
Quantity = Annotated[
    str,
    BeforeValidator(_text_of),
    Field(
        max_length=32,
        json_schema_extra={INT_OR_STRING: True}
        | rules(
            ("isQuantity(string(self))", "must be a quantity such as 500m, 2 or 128Mi"),
            (
                "!isQuantity(string(self)) || quantity(string(self)).isGreaterThan(quantity('0'))",
                "must be more than 0",
            ),
        ),
    ),
]

_PRESENCE_OR_VALUES: Final = rules(
    (
        "self.operator in ['In', 'NotIn'] ? has(self.values) && size(self.values) > 0 : true",
        "values must be given for the operators In and NotIn",
    ),
    (
        "self.operator in ['Exists', 'DoesNotExist'] ? !has(self.values) || size(self.values) == 0 : true",
        "values must be left out for the operators Exists and DoesNotExist",
    ),
)


class SelectorRequirement(ApiModel):
    """One expression of a label selector."""

    model_config = ConfigDict(json_schema_extra=_PRESENCE_OR_VALUES)

    key: str = Field(min_length=1, max_length=316, description="Label key.")
    operator: Literal["In", "NotIn", "Exists", "DoesNotExist"] = Field(
        description="How values are matched."
    )
    values: tuple[Annotated[str, Field(max_length=63)], ...] = Field(
        default=(),
        max_length=64,
        description="Values for In and NotIn.",
        json_schema_extra=a_set(),
    )


class NodeSelector(ApiModel):
    """A label selector over nodes; an empty one selects every node."""

    match_labels: dict[str, Annotated[str, Field(max_length=63)]] = Field(
        default={},
        max_length=64,
        description="Labels that a node must have. They also become the `scheduling.nodeSelector` "
        "of the RuntimeClass, so that Pods go to these nodes.",
        json_schema_extra={MAP_TYPE: "granular"},
    )
    match_expressions: tuple[SelectorRequirement, ...] = Field(
        default=(),
        max_length=64,
        description="Requirements that a node's labels must meet. A RuntimeClass cannot express "
        "them: a Pod may be put on a node that only `matchLabels` selects, where it does not start.",
        json_schema_extra=atomic(),
    )


class Engine(ApiModel):
    """What runs the containers."""

    oci_runtime: Literal["crun", "runc"] = Field(
        default="crun", description="The OCI runtime on the node."
    )
    cni_conf_dir: str = Field(
        default="",
        pattern=r"^(/[^/]+)*$",
        max_length=4096,
        description="A folder of CNI configurations on the node, for a network of this handler's own, "
        "such as `/etc/cni/restricted.d`. Left out, its Pods are on the node's network.",
        json_schema_extra=rules(
            (
                "!self.split('/').exists(p, p == '.' || p == '..')",
                "must not hold the parts . and ..",
            ),
        ),
    )


class ProfileRef(ApiModel):
    """A SecurityProfile by name."""

    name: str = Field(min_length=1, max_length=253, description="Name of a SecurityProfile.")


RegistryName = Annotated[str, Field(min_length=1, max_length=255)]
REGISTRIES: Final[Extra] = a_set(
    (
        "self.all(r, !r.contains('://'))",
        "a registry is written without a scheme: registry.example.com, not https://registry.example.com",
    ),
    (
        "self.all(r, !r.endsWith('/') && !r.startsWith('/') && !r.contains('*'))",
        "a registry is a host, with an optional path, that starts and ends without / and has no *",
    ),
)


class ImageRules(ApiModel):
    """Where images may come from."""

    allowed_registries: tuple[RegistryName, ...] = Field(
        default=(),
        max_length=64,
        description="Prefixes such as `registry.example.com` or `registry.example.com/team`; empty allows all.",
        json_schema_extra=REGISTRIES,
    )


class ResourceAmounts(ApiModel):
    """CPU and memory, as Kubernetes quantities."""

    cpu: Quantity | None = Field(default=None, description="CPU, such as `500m` or `2`.")
    memory: Quantity | None = Field(default=None, description="Memory, such as `128Mi`.")


def _at_most_the_limit(name: str) -> tuple[str, str]:
    default, limit = f"self.defaults.{name}", f"self.limits.{name}"
    both = f"has(self.defaults) && has({default}) && has(self.limits) && has({limit})"
    quantities = f"isQuantity(string({default})) && isQuantity(string({limit}))"
    more = f"quantity(string({default})).isGreaterThan(quantity(string({limit})))"
    return (
        f"!({both} && {quantities} && {more})",
        f"defaults.{name} must not be more than limits.{name}",
    )


class ResourceRules(ApiModel):
    """Defaults and maxima of each container."""

    model_config = ConfigDict(
        json_schema_extra=rules(_at_most_the_limit("cpu"), _at_most_the_limit("memory"))
    )

    defaults: ResourceAmounts = Field(
        default=ResourceAmounts(), description="Limits of a container that asks for none."
    )
    limits: ResourceAmounts = Field(
        default=ResourceAmounts(), description="The most a container may ask for; more is refused."
    )
    pids_limit: int | None = Field(
        default=None,
        ge=1,
        le=4194304,
        description="The most processes and threads that a container may have.",
    )
    overhead: ResourceAmounts = Field(
        default=ResourceAmounts(), description="Overhead of a Pod, put into the RuntimeClass."
    )


class Tracing(ApiModel):
    """Where spans go."""

    endpoint: str = Field(
        pattern=r"^https?://[^/]",
        max_length=2048,
        description="OTLP/gRPC endpoint, such as `http://10.0.0.5:4317`.",
    )
    sampling_rate_per_million: int = Field(
        default=0,
        ge=0,
        le=1000000,
        description="Share of Pod starts that are traced when the kubelet has not decided.",
    )


NamespaceName = Annotated[
    str, Field(min_length=1, max_length=63, pattern=r"^[a-z0-9]([-a-z0-9]*[a-z0-9])?$")
]


class DefaultFor(ApiModel):
    """Pods that name no runtime handler."""

    exempt_namespaces: tuple[NamespaceName, ...] = Field(
        default=(),
        max_length=256,
        description="Namespaces whose Pods run under the node's own default, under no profile, unless they "
        "name a RuntimeClass. Exempt what the nodes need to run at all, such as `kube-system`. The namespace "
        "that noderuntime itself is installed in is always exempt.",
        json_schema_extra=a_set(),
    )


_HANDLER: Final[Extra] = {
    RULES: [
        {
            "rule": "self == oldSelf",
            "message": "handler is immutable: make another NodeRuntime with the new handler, move the Pods, "
            "then delete this one",
        }
    ]
}


class NodeRuntimeSpec(ApiModel):
    """What the platform team declares."""

    handler: str = Field(
        pattern=r"^[a-z0-9]([-a-z0-9]*[a-z0-9])?$",
        max_length=63,
        description="The runtime handler, a DNS label. The RuntimeClass that Pods name gets the same name. "
        "It cannot be changed.",
        json_schema_extra=_HANDLER,
    )
    node_selector: NodeSelector = Field(
        default=NodeSelector(), description="The nodes that serve it; every node when left out."
    )
    engine: Engine = Field(default=Engine(), description="What runs the containers.")
    security_profile_ref: ProfileRef = Field(description="The profile that its Pods run under.")
    images: ImageRules = Field(default=ImageRules(), description="Where images may come from.")
    resources: ResourceRules = Field(default=ResourceRules(), description="Defaults and maxima.")
    default: DefaultFor | None = Field(
        default=None,
        description="With it, this NodeRuntime governs on its nodes the Pods that name no handler too, as if "
        "they named this one; `default: {}` exempts nothing but noderuntime's own namespace. One NodeRuntime "
        "of a node can have it: of several, the oldest; the others are Stalled. Pods that run already stay "
        "as they are; containers that are made from then on are judged.",
    )
    tracing: Tracing | None = Field(default=None, description="Where spans of its Pods go.")
