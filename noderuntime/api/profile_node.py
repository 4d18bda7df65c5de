"""What a SecurityProfile gives of the node: its devices, paths, processor and memory, and images."""

from __future__ import annotations

from typing import Annotated, Final, Literal

from pydantic import ConfigDict, Field

from noderuntime.api.kubernetes import MAP_TYPE, Extra, a_set, atomic, failure, keyed, rules
from noderuntime.api.model import ApiModel
from noderuntime.api.noderuntime import REGISTRIES, Quantity, RegistryName
from noderuntime.api.profile_process import CLEAN_PATH

_NOTHING_SET: Final = "Nothing is refused: it is what is set."


class DeviceRule(ApiModel):
    """A device of the node, or a folder of devices and everything below it."""

    path: str = Field(
        pattern=r"^/dev/[^/]",
        max_length=512,
        description="Path below /dev on the node, judged when links are followed.",
        json_schema_extra=rules(CLEAN_PATH),
    )
    permissions: str = Field(
        default="rwm",
        pattern=r"^(r|w|m|rw|rm|wm|rwm)$",
        max_length=3,
        description="The most that a container may do: read, write, make nodes (mknod); `rwm` when left out.",
    )


class Devices(ApiModel):
    """Devices of the node that containers may have."""

    allow: tuple[DeviceRule, ...] = Field(
        default=(),
        max_length=128,
        description="Devices by path, for extended resources and device plugins. A block volume of the "
        "Pod (`volumeDevices` of a claim) needs no entry.",
        json_schema_extra=keyed("path")
        | failure("The device is refused; `privileged: Allow` allows every one."),
    )
    cdi: tuple[
        Annotated[
            str,
            Field(
                pattern=r"^[a-zA-Z][a-zA-Z0-9_.-]*/[a-zA-Z][a-zA-Z0-9_.-]*=(\*|[a-zA-Z0-9][a-zA-Z0-9_.:-]*)$",
                max_length=253,
            ),
        ],
        ...,
    ] = Field(
        default=(),
        max_length=64,
        description="Devices by the name of their CDI specification, such as `vendor.com/gpu=0`, or "
        "`vendor.com/gpu=*` for all of a class.",
        json_schema_extra=a_set() | failure("The CDI device is refused by its name."),
    )


class HostPath(ApiModel):
    """A folder or file of the node that containers may mount, and everything below it."""

    path: str = Field(
        pattern=r"^/",
        max_length=4096,
        description="Absolute path on the node; what is mounted is judged as the node has it when every "
        "link is followed.",
        json_schema_extra=rules(CLEAN_PATH) | failure("Mounts of other paths are refused."),
    )
    read_only: bool = Field(
        default=True,
        description="Refuse mounts that are writable; true when left out.",
        json_schema_extra=failure("A mount without `readOnly: true` is refused."),
    )
    propagation: tuple[Literal["HostToContainer", "Bidirectional"], ...] = Field(
        default=("HostToContainer",),
        max_length=2,
        description="Mount propagations besides None that a mount may have; HostToContainer when left out. "
        "Kubernetes takes Bidirectional from privileged containers alone.",
        json_schema_extra=a_set() | failure("`mountPropagation` is refused for others."),
    )


def _most(kind: str, default: str, most: str) -> tuple[str, str]:
    both = f"has(self.{default}) && has(self.{most})"
    texts = f"string(self.{default})", f"string(self.{most})"
    known = f"isQuantity({texts[0]}) && isQuantity({texts[1]})"
    more = f"quantity({texts[0]}).isGreaterThan(quantity({texts[1]}))"
    return f"!({both} && {known} && {more})", f"the default {kind} must not be more than max"


class CpuBound(ApiModel):
    """CPU of a container."""

    model_config = ConfigDict(json_schema_extra=rules(_most("CPU", "default", "max")))

    default: Quantity | None = Field(
        default=None,
        description="Limit of a container that asks for none, such as `500m`; else `max`.",
        json_schema_extra=failure(_NOTHING_SET),
    )
    max: Quantity | None = Field(
        default=None,
        description="The most that a container may ask for.",
        json_schema_extra=failure("`resources.limits.cpu` above it is refused."),
    )


class MemoryBound(ApiModel):
    """Memory of a container."""

    model_config = ConfigDict(json_schema_extra=rules(_most("memory", "default", "max")))

    default: Quantity | None = Field(
        default=None,
        description="Limit of a container that asks for none, such as `128Mi`; else `max`.",
        json_schema_extra=failure(_NOTHING_SET),
    )
    max: Quantity | None = Field(
        default=None,
        description="The most that a container may ask for.",
        json_schema_extra=failure("`resources.limits.memory` above it is refused."),
    )


class ShmBound(ApiModel):
    """Size of a Pod's /dev/shm."""

    model_config = ConfigDict(json_schema_extra=rules(_most("size", "default", "max")))

    default: Quantity | None = Field(
        default=None,
        description="Size of the /dev/shm of a Pod; 64Mi when left out, or `max` where that is less. Its "
        "content counts as memory of the container that wrote it.",
        json_schema_extra=failure(_NOTHING_SET),
    )
    max: Quantity | None = Field(
        default=None,
        description="The most that an `emptyDir` of medium Memory may have that is mounted on /dev/shm.",
        json_schema_extra=failure("A larger volume, or one without `sizeLimit`, is refused there."),
    )


PAGE_SIZES: Final = ("64Ki", "1Mi", "2Mi", "16Mi", "32Mi", "512Mi", "1Gi", "2Gi", "16Gi")
_PAGES: Final = ", ".join(f"'{size}'" for size in PAGE_SIZES)
_HUGEPAGES: Final[Extra] = {MAP_TYPE: "granular"} | rules(
    (
        f"self.all(size, size in [{_PAGES}])",
        f"a size of huge pages is one of {', '.join(PAGE_SIZES)}",
    )
)


class ProfileResources(ApiModel):
    """Defaults and maxima of each container; those of the NodeRuntime hold too, the narrower one wins."""

    pids: int | None = Field(
        default=None,
        ge=1,
        le=4194304,
        description="The most processes and threads that a container may have.",
        json_schema_extra=failure("Nothing is refused: fork(2) fails in the container."),
    )
    cpu: CpuBound = Field(default=CpuBound(), description="CPU of a container.")
    memory: MemoryBound = Field(default=MemoryBound(), description="Memory of a container.")
    hugepages: dict[str, Quantity] | None = Field(
        default=None,
        max_length=16,
        description="The most of each size of huge pages, such as `2Mi: 64Mi`; sizes that it does not name "
        "are refused. Left out, it says nothing.",
        json_schema_extra=_HUGEPAGES
        | failure("`resources.limits.hugepages-SIZE` above it is refused."),
    )
    shm: ShmBound = Field(default=ShmBound(), description="Size of a Pod's /dev/shm.")


class Signatures(ApiModel):
    """Who must have signed an image. Not verified yet: a profile that says so is not served."""

    keys: tuple[Annotated[str, Field(min_length=1, max_length=4096)], ...] = Field(
        default=(),
        max_length=16,
        description="Public keys in PEM, of which one must have signed.",
        json_schema_extra=atomic()
        | failure("The profile is Stalled: this version does not verify signatures."),
    )
    identities: tuple[Annotated[str, Field(min_length=1, max_length=1024)], ...] = Field(
        default=(),
        max_length=16,
        description="Identities of keyless signatures, as `ISSUER SUBJECT`, of which one must have signed.",
        json_schema_extra=a_set()
        | failure("The profile is Stalled: this version does not verify signatures."),
    )


class ProfileImages(ApiModel):
    """Where images may come from and how they are named; the NodeRuntime's `images` holds too."""

    allowed_registries: tuple[RegistryName, ...] = Field(
        default=(),
        max_length=64,
        description="Prefixes such as `registry.example.com` or `registry.example.com/team`; empty allows all.",
        json_schema_extra=REGISTRIES | failure("Images from elsewhere are neither pulled nor run."),
    )
    require_digest: bool = Field(
        default=False,
        description="Whether the Pod must name its images by digest, as `name@sha256:...`.",
        json_schema_extra=failure("An image named by tag is refused."),
    )
    signatures: Signatures = Field(
        default=Signatures(), description="Who must have signed; not served by this version."
    )
