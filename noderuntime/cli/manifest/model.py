"""A Pod as its manifest has it: the fields that reach the runtime or the kubelet's work, strictly.

What confines a Pod knows no other field than Kubernetes', so that a misspelled one is an error and
not ignored; of the rest (probes, affinity, ...) nothing is read.
Source: k8s.io/api ``core/v1`` v1.37.
"""

from __future__ import annotations

from typing import Annotated, Any, Final, Literal, Self, cast

from pydantic import BaseModel, BeforeValidator, ConfigDict, Field, model_validator
from pydantic.alias_generators import to_camel

_MOST: Final = 4096  # entries of a list

Name = Annotated[str, Field(min_length=1, max_length=253, pattern=r"^[a-z0-9][-a-z0-9.]*$")]
Text = Annotated[str, Field(max_length=131071, pattern=r"^[^\x00]*$")]
Word = Annotated[str, Field(min_length=1, max_length=4095, pattern=r"^[^\s\x00-\x1f\x7f]+$")]
Path = Annotated[str, Field(min_length=1, max_length=4095, pattern=r"^[^\x00-\x1f\x7f]+$")]
Id = Annotated[int, Field(ge=0, le=2**31 - 1)]
Amount = Annotated[
    str,
    BeforeValidator(lambda v: str(v) if type(v) in (int, float) else v),
    Field(max_length=32),
]


class Part(BaseModel):
    """Fields as Kubernetes names them; null is left out."""

    model_config = ConfigDict(
        extra="forbid",
        frozen=True,
        strict=True,
        alias_generator=to_camel,
        populate_by_name=False,
    )

    @model_validator(mode="before")
    @classmethod
    def _without_nulls(cls, value: Any) -> Any:  # noqa: ANN401 - whatever the file holds
        if isinstance(value, dict):
            found = cast("dict[object, object]", value)
            return {key: each for key, each in found.items() if each is not None}
        return value


class Open(Part):
    """A part of which other fields say nothing to the runtime."""

    model_config = ConfigDict(extra="ignore")


class ConfinedBy(Part):
    """SeccompProfile and AppArmorProfile."""

    type: Literal["RuntimeDefault", "Unconfined", "Localhost"]
    localhost_profile: Path | None = None

    @model_validator(mode="after")
    def _has_a_file_where_it_is_one(self) -> Self:
        if (self.type == "Localhost") != (self.localhost_profile is not None):
            raise ValueError("localhostProfile belongs to type: Localhost")
        return self


class SelinuxOptions(Part):
    """SELinuxOptions."""

    user: Text = ""
    role: Text = ""
    type: Text = ""
    level: Text = ""


class Capabilities(Part):
    """Capabilities."""

    add: Annotated[list[Word], Field(max_length=_MOST)] = []
    drop: Annotated[list[Word], Field(max_length=_MOST)] = []


class Sysctl(Part):
    """Sysctl."""

    name: Word
    value: Text


class Identity(Part):
    """What the security contexts of the Pod and of a container share; the container's wins."""

    run_as_user: Id | None = None
    run_as_group: Id | None = None
    run_as_non_root: bool | None = None
    se_linux_options: SelinuxOptions | None = None
    seccomp_profile: ConfinedBy | None = None
    app_armor_profile: ConfinedBy | None = None


class PodSecurity(Identity):
    """PodSecurityContext."""

    supplemental_groups: Annotated[list[Id], Field(max_length=_MOST)] = []
    supplemental_groups_policy: Literal["Merge", "Strict"] = "Merge"
    fs_group: Id | None = None
    fs_group_change_policy: Literal["OnRootMismatch", "Always"] | None = None
    se_linux_change_policy: Literal["MountOption", "Recursive"] | None = None
    sysctls: Annotated[list[Sysctl], Field(max_length=_MOST)] = []


class ContainerSecurity(Identity):
    """SecurityContext."""

    privileged: bool = False
    allow_privilege_escalation: bool | None = None
    read_only_root_filesystem: bool = False
    proc_mount: Literal["Default", "Unmasked"] = "Default"
    capabilities: Capabilities = Capabilities()


class Variable(Open):
    """EnvVar; with ``value_from`` only the cluster knows the value."""

    name: Annotated[Text, Field(min_length=1)]
    value: Text = ""
    value_from: dict[str, Any] | None = None


class VolumeMount(Part):
    """VolumeMount."""

    name: Name
    mount_path: Path
    read_only: bool = False
    recursive_read_only: Literal["Disabled", "IfPossible", "Enabled"] = "Disabled"
    mount_propagation: Literal["None", "HostToContainer", "Bidirectional"] = "None"
    sub_path: Path | Literal[""] = ""
    sub_path_expr: Path | Literal[""] = ""


class VolumeDevice(Part):
    """VolumeDevice."""

    name: Name
    device_path: Path


class Resources(Part):
    """ResourceRequirements; amounts are Kubernetes quantities by the resource's name."""

    limits: dict[Word, Amount] = {}
    requests: dict[Word, Amount] = {}
    claims: Annotated[list[dict[str, Any]], Field(max_length=_MOST)] = []


class Port(Open):
    """ContainerPort; without ``host_port`` it only tells."""

    container_port: Annotated[int, Field(ge=1, le=65535)]
    host_port: Annotated[int, Field(ge=0, le=65535)] = 0
    host_ip: Text = Field(default="", alias="hostIP")
    protocol: Literal["TCP", "UDP", "SCTP"] = "TCP"


class Container(Open):
    """Container and EphemeralContainer."""

    name: Name
    image: Word
    command: Annotated[list[Text], Field(max_length=_MOST)] = []
    args: Annotated[list[Text], Field(max_length=_MOST)] = []
    working_dir: Text = ""
    env: Annotated[list[Variable], Field(max_length=_MOST)] = []
    env_from: Annotated[list[dict[str, Any]], Field(max_length=_MOST)] = []
    volume_mounts: Annotated[list[VolumeMount], Field(max_length=_MOST)] = []
    volume_devices: Annotated[list[VolumeDevice], Field(max_length=_MOST)] = []
    resources: Resources = Resources()
    security_context: ContainerSecurity = ContainerSecurity()
    ports: Annotated[list[Port], Field(max_length=_MOST)] = []
    image_pull_policy: Literal["Always", "IfNotPresent", "Never"] = "IfNotPresent"
    restart_policy: str = ""
    target_container_name: Name | None = None
    stdin: bool = False
    stdin_once: bool = False
    tty: bool = False
    liveness_probe: dict[str, Any] | None = None
    readiness_probe: dict[str, Any] | None = None
    startup_probe: dict[str, Any] | None = None

    @property
    def has_probes(self) -> bool:
        """Whether the kubelet would ask it how it is."""
        return bool(self.liveness_probe or self.readiness_probe or self.startup_probe)


class HostPath(Open):
    """HostPathVolumeSource."""

    path: Path


class EmptyDir(Open):
    """EmptyDirVolumeSource."""

    medium: Text = ""
    size_limit: Amount | None = None


class ImageVolume(Open):
    """ImageVolumeSource."""

    reference: Word


class Volume(Part):
    """Volume; its source is one key beside the name, and those below matter."""

    model_config = ConfigDict(extra="allow")

    name: Name
    host_path: HostPath | None = None
    empty_dir: EmptyDir | None = None
    image: ImageVolume | None = None

    @property
    def source(self) -> str:
        """The volume's kind as the manifest names it: emptyDir where it says nothing."""
        own = [to_camel(field) for field in self.model_fields_set if field != "name"]
        return next(iter([*own, *(self.model_extra or {})]), "emptyDir")


class DnsOption(Open):
    """PodDNSConfigOption."""

    name: Word
    value: Text = ""


class DnsConfig(Open):
    """PodDNSConfig."""

    nameservers: Annotated[list[Word], Field(max_length=_MOST)] = []
    searches: Annotated[list[Word], Field(max_length=_MOST)] = []
    options: Annotated[list[DnsOption], Field(max_length=_MOST)] = []


class HostAlias(Open):
    """HostAlias: a line of /etc/hosts."""

    ip: Word
    hostnames: Annotated[list[Word], Field(max_length=_MOST)] = []


class PodSpec(Open):
    """PodSpec."""

    containers: Annotated[list[Container], Field(min_length=1, max_length=512)]
    init_containers: Annotated[list[Container], Field(max_length=512)] = []
    ephemeral_containers: Annotated[list[Container], Field(max_length=512)] = []
    volumes: Annotated[list[Volume], Field(max_length=_MOST)] = []
    security_context: PodSecurity = PodSecurity()
    resources: Resources = Resources()
    host_network: bool = False
    host_pid: bool = Field(default=False, alias="hostPID")
    host_ipc: bool = Field(default=False, alias="hostIPC")
    host_users: bool = True
    share_process_namespace: bool = False
    hostname: Name | None = None
    runtime_class_name: Name | None = None
    termination_grace_period_seconds: Annotated[int, Field(ge=0, le=2**31 - 1)] = 30
    dns_config: DnsConfig = DnsConfig()
    host_aliases: Annotated[list[HostAlias], Field(max_length=_MOST)] = []
    service_account_name: Text = ""


class Metadata(Open):
    """ObjectMeta."""

    name: Name | None = None
    generate_name: Name | None = None
    namespace: Name | None = None
    annotations: dict[Word, Text] = {}
    labels: dict[Word, Text] = {}


class Pod(Open):
    """A Pod, or the template of one."""

    metadata: Metadata = Metadata()
    spec: PodSpec
