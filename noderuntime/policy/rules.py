"""What one handler of one revision allows, parsed and checked: the checks read only this.

Made by ``load.rules_of``, once a revision; frozen, so that a decision can be repeated.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Final, Literal, TypeAlias

from noderuntime.api.securityprofile import Section
from noderuntime.policy.denial import Denial

Ranges: TypeAlias = tuple[tuple[int, int], ...]

SHM_BYTES: Final = 64 << 20  # what container engines give a /dev/shm


@dataclass(frozen=True, slots=True, kw_only=True, order=True)
class SeccompArgument:
    """A condition on an argument of 64 bits; ``op`` is OCI's name without SCMP_CMP_.

    For MASKED_EQ ``value`` is the mask and ``value_two`` what is left of the argument under it.
    """

    index: int
    op: str
    value: int
    value_two: int = 0


@dataclass(frozen=True, slots=True, kw_only=True, order=True)
class SeccompRule:
    """What some calls do where all conditions hold; ``action`` is OCI's name without SCMP_ACT_."""

    names: tuple[str, ...]
    action: str
    errno: int = 0  # with ERRNO
    args: tuple[SeccompArgument, ...] = ()


@dataclass(frozen=True, slots=True, kw_only=True)
class SeccompRules:
    """The filter of a profile. ``audit``: what it would refuse is logged by the kernel and done.

    ``rules`` stand in place of what base and ``allow`` say about their names. ``artifact`` is the
    reference, with a digest, of a filter that stands for all of it.
    """

    deny_all: bool = False
    allow: frozenset[str] = frozenset()
    deny: frozenset[str] = frozenset()
    rules: tuple[SeccompRule, ...] = ()
    architectures: frozenset[str] = frozenset()  # OCI's names without SCMP_ARCH_; none is all
    artifact: str = ""
    audit: bool = False

    @property
    def names(self) -> frozenset[str]:
        """The system calls that the profile itself names."""
        return self.allow | self.deny | self.ruled

    @property
    def ruled(self) -> frozenset[str]:
        """The system calls that have rules of their own."""
        return frozenset(name for rule in self.rules for name in rule.names)


@dataclass(frozen=True, slots=True, kw_only=True)
class AppArmorRules:
    """The declared AppArmor profile by its name in the kernel; "" is unconfined.

    ``text`` is what to load under that name; "" is loaded already, or the runtime's own default.
    ``digest`` is that of the declared text, whatever its mode and the profile's name. ``audited`` is
    the same text as the kernel only logs what it would deny, for the Pods of an exception.
    """

    name: str
    text: str = ""
    digest: str = ""
    audited: AppArmorRules | None = None

    def texts(self) -> dict[str, str]:
        """Return what must be in the kernel, by its name there."""
        own = {self.name: self.text} if self.text else {}
        return own if self.audited is None else own | self.audited.texts()


@dataclass(frozen=True, slots=True, kw_only=True)
class SelinuxRules:
    """The declared SELinux label; "" is the node's default. ``level`` "" is one of each Pod's own."""

    type: str
    user: str = ""
    role: str = ""
    level: str = ""
    relabel: bool = False


@dataclass(frozen=True, slots=True, kw_only=True, order=True)
class HostPathRule:
    """A path of the node, normalised, that may be mounted with everything below it.

    ``propagation`` has what is allowed besides None, in the words of Kubernetes, sorted.
    """

    path: str
    readonly: bool
    propagation: tuple[str, ...] = ("HostToContainer",)


@dataclass(frozen=True, slots=True, kw_only=True, order=True)
class DeviceRule:
    """A path below /dev, normalised, with everything below it; ``permissions`` of ``rwm``."""

    path: str
    permissions: str


@dataclass(frozen=True, slots=True, kw_only=True, order=True)
class Ulimit:
    """A limit of getrlimit(2); ``name`` in lower case and without RLIMIT_."""

    name: str
    soft: int
    hard: int


@dataclass(frozen=True, slots=True, kw_only=True)
class ExceptionRule:
    """Sections that are only audited for Pods of a namespace, until ``expires_s`` of the epoch.

    ``service_account`` "" is every one; ``expires`` is the same time as the profile writes it.
    """

    namespace: str
    service_account: str
    sections: frozenset[Section]
    expires_s: int
    expires: str


@dataclass(frozen=True, slots=True, kw_only=True)
class Bounds:
    """Amounts of one container; None is 'says nothing'."""

    cpu_millis: int | None = None
    memory_bytes: int | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class HandlerRules:
    """A handler's profile and bounds.

    ``defaults``, ``limits`` and ``pids_limit`` are the narrower of what the profile and the
    NodeRuntime say; ``profile_limits`` is the profile's part, for sentences. ``hugepages`` maps a
    page size in CRI's words (2MB) to bytes; None says nothing. Ranges are inclusive; none at all
    allow every ID.
    """

    handler: str
    node_runtime: str
    profile: str
    revision: str
    audit: bool = False
    audit_sections: frozenset[Section] = frozenset()
    exceptions: tuple[ExceptionRule, ...] = ()
    privileged: bool = False
    host_namespaces: frozenset[str] = frozenset()
    user_namespace: Literal["Required", "Optional", "Deny"] = "Optional"
    non_root: bool = False
    users: Ranges = ()
    groups: Ranges = ()
    supplemental_groups: Ranges = ()
    no_new_privileges: bool = True
    readonly_root: bool = False
    unmasked_proc: bool = False
    masked_paths: tuple[str, ...] = ()
    readonly_paths: tuple[str, ...] = ()
    default_capabilities: frozenset[str] = frozenset()
    allowed_capabilities: frozenset[str] = frozenset()
    ambient_capabilities: frozenset[str] = frozenset()
    seccomp: SeccompRules = SeccompRules()
    apparmor: AppArmorRules | None = None  # None says nothing
    selinux: SelinuxRules | None = None  # None says nothing
    sysctls: frozenset[str] = frozenset()
    devices: tuple[DeviceRule, ...] = ()
    cdi: tuple[str, ...] = ()
    ulimits: tuple[Ulimit, ...] = ()
    host_paths: tuple[HostPathRule, ...] = ()
    registries: tuple[str, ...] = ()  # the NodeRuntime's
    profile_registries: tuple[str, ...] = ()
    require_digest: bool = False
    defaults: Bounds = Bounds()
    limits: Bounds = Bounds()
    profile_limits: Bounds = Bounds()
    pids_limit: int | None = None
    hugepages: tuple[tuple[str, int], ...] | None = None
    shm_bytes: int = SHM_BYTES
    shm_limit_bytes: int | None = None

    def audits(self, section: Section) -> bool:
        """Tell whether what the section refuses is only recorded."""
        return self.audit or section in self.audit_sections

    def deny(
        self, field: str, value: str, rule: str, remedy: str, *, container: str = ""
    ) -> Denial:
        """Make the denial of one field under this profile."""
        return Denial(
            container=container,
            field=f"containers[{container}].{field}" if container else field,
            value=value or '""',
            rule=rule,
            profile=self.profile,
            revision=self.revision,
            remedy=remedy,
        )
