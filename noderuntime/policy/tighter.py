"""Which fields of one profile allow more than those of another: none, and it admits no more.

Each comparison is on the compiled rules and sound, not complete: what cannot be shown to be as tight
counts as looser. So an AppArmor text, a SELinux type and an artifact must be those of the base: what
they allow is known to the kernel and the node's policy alone.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Final, Literal, TypeAlias

from noderuntime.policy import sysctls, tighter_seccomp
from noderuntime.policy.apparmor import DEFAULT, UNCONFINED
from noderuntime.policy.mounts import covering
from noderuntime.policy.rules import (
    AppArmorRules,
    ExceptionRule,
    HandlerRules,
    Ranges,
    SelinuxRules,
)
from noderuntime.policy.selinux import DEFAULT_TYPE

_Looser: TypeAlias = Callable[[HandlerRules, HandlerRules], bool]


def loosened(base: HandlerRules, child: HandlerRules) -> Iterator[str]:
    """Yield the fields in which ``child`` allows more, or cannot be shown to allow no more."""
    for field, looser in FIELDS:
        if looser(base, child):
            yield field


def _exceptions(base: HandlerRules, child: HandlerRules) -> bool:
    return not base.audit and not all(_is_excepted(base, each) for each in child.exceptions)


def _is_excepted(base: HandlerRules, asked: ExceptionRule) -> bool:
    """Tell whether each section of an exception is audited in the base, for as long at least."""
    holding = [
        each
        for each in base.exceptions
        if each.namespace == asked.namespace
        and each.service_account in ("", asked.service_account)
        and each.expires_s >= asked.expires_s
    ]
    covered = base.audit_sections.union(*(each.sections for each in holding))
    return asked.sections <= covered


def _within(base: Ranges, child: Ranges) -> bool:
    """Tell whether every ID of ``child`` is one of ``base``; no ranges are all IDs."""
    if not base:
        return True
    joined: list[tuple[int, int]] = []
    for low, high in sorted(base):
        if joined and low <= joined[-1][1] + 1:
            joined[-1] = (joined[-1][0], max(joined[-1][1], high))
        else:
            joined.append((low, high))
    return bool(child) and all(
        any(low >= first and high <= last for first, last in joined) for low, high in child
    )


def _more(base: int | None, child: int | None) -> bool:
    return base is not None and (child is None or child > base)


def _least(*amounts: int | None) -> int | None:
    return min((each for each in amounts if each is not None), default=None)


def _default(base: tuple[int | None, int | None], child: tuple[int | None, int | None]) -> bool:
    """Compare what a container gets that asks for nothing, from (default, most)."""
    return base[0] is not None and _more(_least(*base), _least(*child))


def _hugepages(base: HandlerRules, child: HandlerRules) -> bool:
    if base.hugepages is None:
        return False
    most = dict(base.hugepages)
    return child.hugepages is None or any(
        amount > most.get(size, 0) for size, amount in child.hugepages
    )


def _ulimits(base: HandlerRules, child: HandlerRules) -> bool:
    mine = {each.name: each for each in child.ulimits}
    return any(
        each.name not in mine
        or mine[each.name].soft > each.soft
        or mine[each.name].hard > each.hard
        for each in base.ulimits
    )


def _devices(base: HandlerRules, child: HandlerRules) -> bool:
    for each in child.devices:
        above = covering(each.path, base.devices)
        if not set(each.permissions) <= {letter for rule in above for letter in rule.permissions}:
            return True
    return False


def _cdi(base: HandlerRules, child: HandlerRules) -> bool:
    return any(
        name not in base.cdi and f"{name.partition('=')[0]}=*" not in base.cdi for name in child.cdi
    )


def _host_paths(base: HandlerRules, child: HandlerRules) -> bool:
    for each in child.host_paths:
        above = covering(each.path, base.host_paths)
        if not above or (not each.readonly and all(rule.readonly for rule in above)):
            return True
        if not set(each.propagation) <= {word for rule in above for word in rule.propagation}:
            return True
    return False


def _registries(base: tuple[str, ...], child: tuple[str, ...]) -> bool:
    if not base:
        return False
    return not child or not all(
        any(mine == theirs or mine.startswith(theirs + "/") for theirs in base) for mine in child
    )


def _apparmor(base: HandlerRules, child: HandlerRules) -> bool:
    """Compare what confines; of two texts or names only the same is known to be as tight.

    A profile that says nothing is the runtime's own where the kernel has AppArmor, so that alone may
    be declared in its place.
    """
    above, mine = base.apparmor, child.apparmor
    if above is not None and above.name == UNCONFINED:
        return False
    if mine is None or above is None:
        return mine is not above and (mine is None or mine.name != DEFAULT)
    return _content(above) != _content(mine)


def _content(rules: AppArmorRules) -> str:
    """Return what stands for the content: the name in the kernel has the profile's name as well."""
    return rules.digest or f"named {rules.name}"


_SAYS_NOTHING: Final = SelinuxRules(type=DEFAULT_TYPE)


def _selinux(part: Literal["type", "user", "role"]) -> _Looser:
    """Compare a part of the label: which of two allows more, only the node's policy knows."""

    def is_looser(base: HandlerRules, child: HandlerRules) -> bool:
        above, mine = base.selinux or _SAYS_NOTHING, child.selinux or _SAYS_NOTHING
        before, after = getattr(above, part), getattr(mine, part)
        return bool(before != after)

    return is_looser


def _level(base: HandlerRules, child: HandlerRules) -> bool:
    """Compare levels; one of each Pod's own shares nothing, and is tighter than any that is shared."""
    mine = "" if child.selinux is None else child.selinux.level
    return bool(mine) and (base.selinux is None or base.selinux.level != mine)


def _relabel(base: HandlerRules, child: HandlerRules) -> bool:
    mine = child.selinux is not None and child.selinux.relabel
    return mine and not (base.selinux is not None and base.selinux.relabel)


FIELDS: Final[tuple[tuple[str, _Looser], ...]] = (
    ("mode", lambda a, b: b.audit and not a.audit),
    ("auditSections", lambda a, b: not a.audit and not b.audit_sections <= a.audit_sections),
    ("exceptions", _exceptions),
    ("privileged", lambda a, b: b.privileged and not a.privileged),
    ("hostNamespaces", lambda a, b: not b.host_namespaces <= a.host_namespaces),
    ("userNamespace", lambda a, b: a.user_namespace not in ("Optional", b.user_namespace)),
    ("runAs.nonRoot", lambda a, b: a.non_root and not b.non_root),
    ("runAs.users", lambda a, b: not _within(a.users, b.users)),
    ("runAs.groups", lambda a, b: not _within(a.groups, b.groups)),
    (
        "runAs.supplementalGroups",
        lambda a, b: not _within(a.supplemental_groups, b.supplemental_groups),
    ),
    ("noNewPrivileges", lambda a, b: a.no_new_privileges and not b.no_new_privileges),
    ("rootFilesystem", lambda a, b: a.readonly_root and not b.readonly_root),
    ("procMount", lambda a, b: b.unmasked_proc and not (a.unmasked_proc or a.privileged)),
    ("maskedPaths", lambda a, b: not set(a.masked_paths) <= set(b.masked_paths)),
    ("readonlyPaths", lambda a, b: not set(a.readonly_paths) <= set(b.readonly_paths)),
    ("capabilities.default", lambda a, b: not b.default_capabilities <= a.default_capabilities),
    (
        "capabilities.allow",
        lambda a, b: not b.allowed_capabilities <= a.allowed_capabilities | a.default_capabilities,
    ),
    ("capabilities.ambient", lambda a, b: not b.ambient_capabilities <= a.ambient_capabilities),
    ("seccomp", lambda a, b: tighter_seccomp.is_wider(a.seccomp, b.seccomp)),
    # What is in an artifact is not known here.
    ("seccomp.artifact", lambda a, b: a.seccomp.artifact != b.seccomp.artifact),
    ("appArmor", _apparmor),
    ("seLinux", lambda a, b: a.selinux is not None and b.selinux is None),
    ("seLinux.type", _selinux("type")),
    ("seLinux.user", _selinux("user")),
    ("seLinux.role", _selinux("role")),
    ("seLinux.level", _level),
    ("seLinux.relabel", _relabel),
    ("sysctls.allow", lambda a, b: not b.sysctls <= a.sysctls | sysctls.SAFE),
    ("devices.allow", _devices),
    ("devices.cdi", _cdi),
    ("ulimits", _ulimits),
    ("resources.pids", lambda a, b: _more(a.pids_limit, b.pids_limit)),
    (
        "resources.cpu.default",
        lambda a, b: _default(
            (a.defaults.cpu_millis, a.limits.cpu_millis),
            (b.defaults.cpu_millis, b.limits.cpu_millis),
        ),
    ),
    ("resources.cpu.max", lambda a, b: _more(a.limits.cpu_millis, b.limits.cpu_millis)),
    (
        "resources.memory.default",
        lambda a, b: _default(
            (a.defaults.memory_bytes, a.limits.memory_bytes),
            (b.defaults.memory_bytes, b.limits.memory_bytes),
        ),
    ),
    ("resources.memory.max", lambda a, b: _more(a.limits.memory_bytes, b.limits.memory_bytes)),
    ("resources.hugepages", _hugepages),
    ("resources.shm.default", lambda a, b: b.shm_bytes > a.shm_bytes),
    ("resources.shm.max", lambda a, b: _more(a.shm_limit_bytes, b.shm_limit_bytes)),
    ("hostPaths", _host_paths),
    (
        "images.allowedRegistries",
        lambda a, b: _registries(a.profile_registries, b.profile_registries),
    ),
    ("images.requireDigest", lambda a, b: a.require_digest and not b.require_digest),
)
