"""What the engine and the policy know of a Pod: CRI's words as frozen dataclasses, no protobuf.

``cri/convert.py`` makes them once at the edge; everything below reads only these. They are stored
as JSON, so fields are plain values, tuples and mappings. Units are in the names.
Source: ``runtime.v1`` of k8s.io/cri-api v0.37.2, the messages named in each docstring.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from enum import StrEnum

from noderuntime.policy.denial import Denial
from noderuntime.policy.rules import SHM_BYTES, SeccompRules, Ulimit


class NamespaceMode(StrEnum):
    """NamespaceMode of CRI; TARGET joins the PID namespace of another container."""

    POD = "POD"
    CONTAINER = "CONTAINER"
    NODE = "NODE"
    TARGET = "TARGET"


class ProfileType(StrEnum):
    """SecurityProfile.ProfileType of CRI."""

    RUNTIME_DEFAULT = "RuntimeDefault"
    UNCONFINED = "Unconfined"
    LOCALHOST = "Localhost"


class Propagation(StrEnum):
    """MountPropagation of CRI."""

    PRIVATE = "PROPAGATION_PRIVATE"
    HOST_TO_CONTAINER = "PROPAGATION_HOST_TO_CONTAINER"
    BIDIRECTIONAL = "PROPAGATION_BIDIRECTIONAL"


@dataclass(frozen=True, slots=True, kw_only=True)
class IdMapping:
    """IDMapping: ``length`` IDs from ``container_id`` on are those of the node from ``host_id`` on."""

    container_id: int
    host_id: int
    length: int


@dataclass(frozen=True, slots=True, kw_only=True)
class UserNamespace:
    """UserNamespace of mode POD; both maps begin at the container's root."""

    uids: IdMapping
    gids: IdMapping


@dataclass(frozen=True, slots=True, kw_only=True)
class Namespaces:
    """NamespaceOption; ``user`` None is the node's user namespace."""

    network: NamespaceMode = NamespaceMode.POD
    pid: NamespaceMode = NamespaceMode.CONTAINER
    ipc: NamespaceMode = NamespaceMode.POD
    target_id: str = ""
    user: UserNamespace | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class SecurityProfileRef:
    """SecurityProfile of CRI: which seccomp or AppArmor profile the Pod itself asks for."""

    type: ProfileType = ProfileType.UNCONFINED
    localhost_ref: str = ""


@dataclass(frozen=True, slots=True, kw_only=True)
class SelinuxOptions:
    """SELinuxOption; "" leaves a part open."""

    user: str = ""
    role: str = ""
    type: str = ""
    level: str = ""


@dataclass(frozen=True, slots=True, kw_only=True)
class SelinuxLabels:
    """``user:role:type:level`` of a container's processes, and of what is mounted for it."""

    process: str
    mount: str


@dataclass(frozen=True, slots=True, kw_only=True)
class PortMapping:
    """PortMapping; protocol is tcp, udp or sctp."""

    protocol: str
    container_port: int
    host_port: int
    host_ip: str = ""


@dataclass(frozen=True, slots=True, kw_only=True)
class Dns:
    """DNSConfig."""

    servers: tuple[str, ...] = ()
    searches: tuple[str, ...] = ()
    options: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True, kw_only=True)
class Resources:
    """LinuxContainerResources; 0 means 'not asked for', as in CRI."""

    cpu_period_us: int = 0
    cpu_quota_us: int = 0
    cpu_shares: int = 0
    memory_limit_bytes: int = 0
    memory_swap_limit_bytes: int = 0
    oom_score_adj: int = 0
    cpuset_cpus: str = ""
    cpuset_mems: str = ""
    hugepage_limits_bytes: Mapping[str, int] = field(
        default_factory=dict[str, int]
    )  # page size -> bytes
    unified: Mapping[str, str] = field(default_factory=dict[str, str])


@dataclass(frozen=True, slots=True, kw_only=True)
class PodIdentity:
    """PodSandboxMetadata."""

    name: str
    namespace: str
    uid: str
    attempt: int = 0


@dataclass(frozen=True, slots=True, kw_only=True)
class SandboxConfig:
    """PodSandboxConfig: what RunPodSandbox asks for."""

    pod: PodIdentity
    hostname: str = ""
    log_directory: str = ""
    dns: Dns = Dns()
    port_mappings: tuple[PortMapping, ...] = ()
    labels: Mapping[str, str] = field(default_factory=dict[str, str])
    annotations: Mapping[str, str] = field(default_factory=dict[str, str])
    cgroup_parent: str = ""
    namespaces: Namespaces = Namespaces()
    privileged: bool = False
    sysctls: Mapping[str, str] = field(default_factory=dict[str, str])
    seccomp: SecurityProfileRef = SecurityProfileRef()
    selinux: SelinuxOptions | None = None
    run_as_user: int | None = None
    run_as_group: int | None = None
    supplemental_groups: tuple[int, ...] = ()
    overhead: Resources = Resources()
    resources: Resources = Resources()


@dataclass(frozen=True, slots=True, kw_only=True)
class Mount:
    """Mount of CRI. ``host_path`` is the kubelet's volume, a file of its, or a hostPath.

    With ``image`` (an ID or a reference, as the kubelet resolved it) it is empty: then the image is
    the volume, ``image_reference`` are the Pod's own words, and ``image_ref`` is the image's digest
    as soon as it is mounted. ``options`` are of noexec, nodev, nosuid.
    """

    container_path: str
    host_path: str = ""
    readonly: bool = False
    recursive_readonly: bool = False
    propagation: Propagation = Propagation.PRIVATE
    selinux_relabel: bool = False
    idmap: UserNamespace | None = None  # its files' owners are seen through these
    options: tuple[str, ...] = ()
    image: str = ""
    image_reference: str = ""
    image_sub_path: str = ""
    image_ref: str = ""


@dataclass(frozen=True, slots=True, kw_only=True)
class Device:
    """Device of CRI; permissions is a subset of 'rwm'."""

    container_path: str
    host_path: str
    permissions: str


@dataclass(frozen=True, slots=True, kw_only=True)
class ContainerSecurity:
    """LinuxContainerSecurityContext."""

    capabilities_add: tuple[str, ...] = ()
    capabilities_drop: tuple[str, ...] = ()
    privileged: bool = False
    namespaces: Namespaces = Namespaces()
    run_as_user: int | None = None
    run_as_username: str = ""
    run_as_group: int | None = None
    supplemental_groups: tuple[int, ...] = ()
    supplemental_groups_strict: bool = False  # Strict: the image's group file adds none
    readonly_rootfs: bool = False
    no_new_privs: bool = False
    masked_paths: tuple[str, ...] = ()
    readonly_paths: tuple[str, ...] = ()
    seccomp: SecurityProfileRef = SecurityProfileRef()
    apparmor: SecurityProfileRef | None = None  # None leaves it open
    selinux: SelinuxOptions | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class ContainerConfig:
    """ContainerConfig of CRI: what CreateContainer asks for."""

    name: str
    attempt: int = 0
    image: str  # ImageSpec.image: the image ID or a reference, as the kubelet resolved it
    image_reference: str = ""  # ImageSpec.user_specified_image: the Pod's own words
    command: tuple[str, ...] = ()
    args: tuple[str, ...] = ()
    working_dir: str = ""
    env: tuple[tuple[str, str], ...] = ()
    mounts: tuple[Mount, ...] = ()
    devices: tuple[Device, ...] = ()
    cdi_devices: tuple[str, ...] = ()  # by name: VENDOR/CLASS=DEVICE
    labels: Mapping[str, str] = field(default_factory=dict[str, str])
    annotations: Mapping[str, str] = field(default_factory=dict[str, str])
    log_path: str = ""  # relative to the sandbox's log_directory
    stdin: bool = False
    stdin_once: bool = False
    tty: bool = False
    stop_signal: str = ""  # "" or a name such as SIGTERM
    resources: Resources = Resources()
    security: ContainerSecurity = ContainerSecurity()


@dataclass(frozen=True, slots=True, kw_only=True)
class ImageConfig:
    """What matters of an image's OCI config (image-spec config.md), with nothing trusted yet."""

    user: str = ""
    env: tuple[str, ...] = ()
    entrypoint: tuple[str, ...] = ()
    cmd: tuple[str, ...] = ()
    working_dir: str = ""
    stop_signal: str = ""
    volumes: tuple[str, ...] = ()
    labels: Mapping[str, str] = field(default_factory=dict[str, str])


@dataclass(frozen=True, slots=True, kw_only=True)
class ResolvedUser:
    """The numeric user that a container's process gets, after the image's passwd was read."""

    uid: int
    gid: int
    additional_gids: tuple[int, ...] = ()


@dataclass(frozen=True, slots=True, kw_only=True)
class ImageFacts:
    """What the image contributes: its config, and the user as its passwd resolves it."""

    config: ImageConfig
    user: ResolvedUser


@dataclass(frozen=True, slots=True, kw_only=True)
class LsmFacts:
    """What the node's kernel has of AppArmor and SELinux.

    ``apparmor_profiles`` are the loaded ones' names; ``selinux_process`` and ``selinux_file`` what
    the policy has for containers, "" for nothing; ``selinux_level`` is the Pod's.
    """

    apparmor: bool = False
    can_load_apparmor: bool = False  # apparmor_parser is there
    apparmor_profiles: frozenset[str] = frozenset()
    selinux: bool = False
    selinux_process: str = ""
    selinux_file: str = ""
    selinux_level: str = ""


@dataclass(frozen=True, slots=True, kw_only=True)
class HostFacts:
    """What only the node knows; the engine reads it, the policy judges it.

    ``mountinfo`` is the text of /proc/self/mountinfo: the kubelet binds a subPath to a folder of
    its own, and only there is written what lies behind; "" where no mount needs it
    (``mounts.need_the_table``). ``real_paths`` maps the ``host_path`` of a
    mount or a device to the path that is left when every symlink is followed. ``capabilities`` is
    what the node can give at all (``capabilities.of_status`` of /proc/self/status), without CAP_: a
    privileged container gets these, and to ask for one more would fail. None is all of Linux's.
    ``seccomp_file`` is the text of the Localhost profile that the container asks for.
    """

    mountinfo: str = ""
    real_paths: Mapping[str, str] = field(default_factory=dict[str, str])
    capabilities: frozenset[str] | None = None
    seccomp_file: str | None = None
    seccomp_artifact: Mapping[str, object] | None = None  # the profile's artifact, parsed
    lsm: LsmFacts = LsmFacts()


@dataclass(frozen=True, slots=True, kw_only=True)
class SandboxGrant:
    """A sandbox may run. ``sysctls`` have dots between their parts and are the namespaces' own."""

    sysctls: Mapping[str, str] = field(default_factory=dict[str, str])
    shm_bytes: int = SHM_BYTES
    findings: tuple[Denial, ...] = ()  # mode Audit: what Enforce would have refused
    changes: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True, kw_only=True)
class ContainerGrant:
    """A container may run, and this is how: everything that ``spec.build`` writes down."""

    args: tuple[str, ...]
    env: tuple[str, ...]
    cwd: str
    user: ResolvedUser
    capabilities: tuple[str, ...]  # with CAP_, sorted
    ambient: tuple[str, ...] = ()  # of these, and only for a user other than 0
    privileged: bool
    no_new_privileges: bool
    readonly_rootfs: bool
    masked_paths: tuple[str, ...]
    readonly_paths: tuple[str, ...]
    resources: Resources
    pids_limit: int | None = None
    ulimits: tuple[Ulimit, ...] = ()
    seccomp: SeccompRules | None = None  # None is unconfined, but for:
    seccomp_document: Mapping[str, object] | None = None  # the Localhost profile, as OCI has it
    apparmor: str = ""  # the profile's name in the kernel; "" is unconfined
    selinux: SelinuxLabels | None = None
    recursive_readonly: frozenset[str] = (
        frozenset()
    )  # container paths whose submounts too are read-only
    findings: tuple[Denial, ...] = ()  # mode Audit: what Enforce would have refused
    changes: tuple[str, ...] = ()  # what the profile set, a sentence each
