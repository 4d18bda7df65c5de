"""Which fields of one profile allow more than those of another: none, and it admits no more.

Each comparison is on the compiled rules and sound, not complete: what cannot be shown to be as tight
counts as looser. Sections that are not known here (a newer one) may be set where the base has none,
and must otherwise be the same.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from dataclasses import replace
from functools import lru_cache
from typing import Final, TypeAlias, TypedDict, cast

from noderuntime.api.securityprofile import SecurityProfileSpec
from noderuntime.policy import seccomp, sysctls
from noderuntime.policy.capabilities import KNOWN
from noderuntime.policy.mounts import covering
from noderuntime.policy.rules import ExceptionRule, HandlerRules, Ranges, SeccompRules

_COMPARED: Final = frozenset(
    [
        *("inherits", "mode", "audit_sections", "exceptions", "privileged", "host_namespaces"),
        *("user_namespace", "run_as", "no_new_privileges", "root_filesystem", "proc_mount"),
        *("masked_paths", "readonly_paths", "capabilities", "seccomp", "sysctls", "devices"),
        *("ulimits", "resources", "host_paths", "images"),
    ]
)
_Looser: TypeAlias = Callable[[HandlerRules, HandlerRules], bool]


def loosened(
    base: HandlerRules,
    child: HandlerRules,
    base_spec: SecurityProfileSpec | None = None,
    child_spec: SecurityProfileSpec | None = None,
) -> Iterator[str]:
    """Yield the fields in which ``child`` allows more; the specs are for sections not known here."""
    for field, looser in _FIELDS:
        if looser(base, child):
            yield field
    if base_spec is not None and child_spec is not None:
        yield from _unknown(base_spec, child_spec)


def _unknown(base: SecurityProfileSpec, child: SecurityProfileSpec) -> Iterator[str]:
    for name, field in SecurityProfileSpec.model_fields.items():
        if name in _COMPARED:
            continue
        before = getattr(base, name)
        if before != field.get_default() and getattr(child, name) != before:
            yield str(field.alias or name)
    artifacts = [getattr(spec.seccomp, "artifact", None) for spec in (base, child)]
    if artifacts[0] != artifacts[1]:
        yield "seccomp.artifact"  # what is in it is not known here


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


class _Entry(TypedDict):
    """One of OCI's ``syscalls``, as far as it is compared."""

    names: list[str]
    action: str
    args: list[object]


_PERMISSIVE: Final = frozenset(("SCMP_ACT_ALLOW", "SCMP_ACT_LOG"))
_Verdicts: TypeAlias = frozenset[tuple[bool, str]]  # of one call: is it made, under which arguments


def _seccomp(base: HandlerRules, child: HandlerRules) -> bool:
    """Compare the filters themselves, for the capabilities that make a difference to them."""
    mine, theirs = (replace(rules.seccomp, audit=False) for rules in (child, base))
    return mine != theirs and _is_filter_wider(theirs, mine)


@lru_cache(maxsize=128)
def _is_filter_wider(theirs: SeccompRules, mine: SeccompRules) -> bool:
    cases = [("x86_64", names) for names in _capability_sets()]
    cases.append(("aarch64", KNOWN))  # its entries alone differ
    return any(
        _is_wider(
            seccomp.filter_of(theirs, names, machine), seccomp.filter_of(mine, names, machine)
        )
        for machine, names in cases
    )


def _capability_sets() -> Iterator[frozenset[str]]:
    """Yield sets in which each call's groups hold in every combination that there is.

    What a group depends on is one capability, to be there or not: so none, one, all, and all but one.
    """
    gates = frozenset(name for g in seccomp.GROUPS for name in (g.capability, g.unless) if name)
    yield frozenset()
    yield gates
    for gate in sorted(gates):
        yield frozenset((gate,))
        yield gates - {gate}


def _is_wider(base: dict[str, object], child: dict[str, object]) -> bool:
    entries = set(cast("Iterable[str]", base.get("architectures", ())))
    if not set(cast("Iterable[str]", child.get("architectures", ()))) <= entries:
        return True
    theirs, mine = _verdicts(base), _verdicts(child)
    return any(
        found != theirs.get(name) and not _is_covered(found, theirs.get(name, frozenset()))
        for name, found in mine.items()
    )


def _is_covered(child: _Verdicts, base: _Verdicts) -> bool:
    """Tell whether ``child`` makes the call only where ``base`` does, whatever order rules have."""
    made = {verdict for verdict in child if verdict[0]}
    if not made:
        return True
    if any(not is_made for is_made, _ in base):
        return False  # refused for some arguments: only the same would be as tight
    return (True, "[]") in base or made <= base


def _verdicts(document: dict[str, object]) -> dict[str, _Verdicts]:
    found: dict[str, _Verdicts] = {}
    for entry in cast("list[_Entry]", document["syscalls"]):
        verdict = (entry["action"] in _PERMISSIVE, str(entry.get("args") or []))
        for name in entry["names"]:
            found[name] = found.get(name, frozenset()) | {verdict}
    return found


_FIELDS: Final[tuple[tuple[str, _Looser], ...]] = (
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
    ("seccomp", _seccomp),
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
