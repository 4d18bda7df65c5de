"""What one handler of one revision allows, parsed and checked: the checks read only this.

Made by ``load.rules_of``, once a revision; frozen, so that a decision can be repeated.
"""

from __future__ import annotations

from dataclasses import dataclass

from noderuntime.policy.denial import Denial


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


@dataclass(frozen=True, slots=True, kw_only=True, order=True)
class HostPathRule:
    """A path of the node, normalised, that may be mounted with everything below it."""

    path: str
    readonly: bool


@dataclass(frozen=True, slots=True, kw_only=True)
class Bounds:
    """Amounts of one container; None is 'says nothing'."""

    cpu_millis: int | None = None
    memory_bytes: int | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class HandlerRules:
    """A handler's profile and bounds."""

    handler: str
    node_runtime: str
    profile: str
    revision: str
    audit: bool = False
    privileged: bool = False
    host_namespaces: frozenset[str] = frozenset()
    non_root: bool = False
    users: tuple[tuple[int, int], ...] = ()
    no_new_privileges: bool = True
    readonly_root: bool = False
    default_capabilities: frozenset[str] = frozenset()
    allowed_capabilities: frozenset[str] = frozenset()
    seccomp: SeccompRules = SeccompRules()
    sysctls: frozenset[str] = frozenset()
    host_paths: tuple[HostPathRule, ...] = ()
    registries: tuple[str, ...] = ()
    defaults: Bounds = Bounds()
    limits: Bounds = Bounds()
    pids_limit: int | None = None

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
