"""The filter of system calls: the runtime default, a profile's own list, as the OCI object.

``data/seccomp_default.json`` is the runtime default, a reason beside each group: what ordinary
programs need, minus what reaches more of the kernel than a container should, as container engines
agree on. Groups with a ``capability`` hold only for containers that have it. Everything else
fails with EPERM.

- ``deny`` wins: a name in it is taken out of every group, conditions or not.
- ``base: DenyAll`` starts from nothing: also what every program needs (execve, exit_group, brk,
  mmap, ...) is the user's to allow, or the container does not start. For names that the default
  allows under a condition (clone without new namespaces, socket, personality) an ``allow`` keeps
  the condition.
- With base RuntimeDefault, ``allow`` of such a name lifts its condition.
- clone3 fails with ENOSYS wherever it is not allowed, denied or not: the C library then uses
  clone.
- With noNewPrivileges: Optional the OCI runtime loads the filter before it has given up its own
  privileges: the list must then also leave it capset, prctl, setresgid, setresuid and
  rt_sigprocmask.
- runc ends its own Go code under the filter: a list for it must also have fstatfs, futex,
  getdents64, openat and what Go's threads use. crun needs execve alone.
- A call often has siblings (mkdir and mkdirat, open, openat and openat2, fork, vfork and clone):
  a deny of one leaves the others, so name all.
- What a newer kernel has and the node's libseccomp does not know cannot be in a filter, and so is
  refused by it: ``without`` takes it out, and the node's status tells it.
- A profile's ``rules`` for a name stand in place of all that is said about it above.
- socketcall and ipc are many calls behind one number, for 32-bit programs. Where one of these is
  denied or has rules, and under DenyAll, the whole fails with ENOSYS unless ``allow`` names it. It
  needs a rule of its own, the first: for a call with a condition on its arguments libseccomp lets
  the one behind the number through without the condition (seen with 2.5.4).
- A condition compares 64 bits, where the kernel often reads 32 of them: the default uses masks.
- mode Audit: whatever would fail is done, and logged by the kernel (SCMP_ACT_LOG).

Source: OCI runtime-spec config-linux.md "seccomp"; seccomp(2); names of libseccomp 2.5.4.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import lru_cache
from importlib.resources import files
from typing import Any, Final, cast

from pydantic import BaseModel, ConfigDict

from noderuntime.policy.rules import SeccompRule, SeccompRules

EPERM: Final = 1
ENOSYS: Final = 38
_CLONE3: Final = "clone3"
ARCHITECTURES: Final = {
    "x86_64": ("SCMP_ARCH_X86_64", "SCMP_ARCH_X86", "SCMP_ARCH_X32"),
    "aarch64": ("SCMP_ARCH_AARCH64", "SCMP_ARCH_ARM"),
}


# Calls behind one number of x86; linux/net.h, linux/ipc.h.
MULTIPLEXED: Final = {
    "socketcall": frozenset(
        "accept accept4 bind connect getpeername getsockname getsockopt listen recv recvfrom "
        "recvmmsg recvmsg send sendmmsg sendmsg sendto setsockopt shutdown socket "
        "socketpair".split()
    ),
    "ipc": frozenset(
        "msgctl msgget msgrcv msgsnd semctl semget semop semtimedop shmat shmctl shmdt "
        "shmget".split()
    ),
}


class _Argument(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True)
    index: int
    value: int
    valueTwo: int | None = None  # noqa: N815  (OCI's name)
    op: str


class _Group(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True)
    reason: str
    names: frozenset[str]
    capability: str = ""  # holds only with it
    unless: str = ""  # holds only without it
    errno: int = 0  # 0 allows
    args: tuple[_Argument, ...] = ()


@dataclass(frozen=True, slots=True)
class _Rule:
    """One entry of OCI's ``syscalls``; ``errno`` 0 allows."""

    names: tuple[str, ...]
    errno: int = 0
    args: tuple[_Argument, ...] = ()


class _Default(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True)
    groups: tuple[_Group, ...]


class _Names(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True)
    libseccomp: frozenset[str]
    newer: frozenset[str]


def _read(name: str) -> str:
    return files("noderuntime.policy").joinpath("data", name).read_text(encoding="utf-8")


GROUPS: Final = _Default.model_validate_json(_read("seccomp_default.json")).groups
_NAMES: Final = _Names.model_validate_json(_read("syscalls.json"))
# What libseccomp 2.5.4 knows, the oldest that is supported; in a profile also what newer kernels have.
IN_LIBSECCOMP: Final = _NAMES.libseccomp
KNOWN: Final = _NAMES.libseccomp | _NAMES.newer


def filter_of(rules: SeccompRules, capabilities: frozenset[str], machine: str) -> dict[str, object]:
    """Return ``linux.seccomp`` for a container with these capabilities (without CAP_).

    ``machine`` is what uname(2) says; others than those in ARCHITECTURES are left to the OCI
    runtime.
    """
    result: dict[str, object] = (
        {"defaultAction": "SCMP_ACT_LOG"}
        if rules.audit
        else {"defaultAction": "SCMP_ACT_ERRNO", "defaultErrnoRet": EPERM}
    )
    if machine in ARCHITECTURES:
        own, *others = ARCHITECTURES[machine]
        chosen = {f"SCMP_ARCH_{name}" for name in rules.architectures} or set(others)
        result["architectures"] = [own, *(name for name in others if name in chosen)]
    result["syscalls"] = [
        *(_as_oci(rule) for rule in _rules(rules, capabilities)),
        *(rule for given in rules.rules for rule in _given(given, rules)),
    ]
    return result


def _given(given: SeccompRule, rules: SeccompRules) -> Iterator[dict[str, object]]:
    """Yield the profile's own rule as OCI has it; in Audit the default action is in its place."""
    names = [name for name in given.names if name not in rules.deny]
    if not names or (rules.audit and given.action != "ALLOW"):
        return
    result: dict[str, object] = {"names": names, "action": f"SCMP_ACT_{given.action}"}
    if given.action == "ERRNO":
        result["errnoRet"] = given.errno
    if given.args:
        result["args"] = [
            {"index": a.index, "value": a.value, "valueTwo": a.value_two, "op": f"SCMP_CMP_{a.op}"}
            for a in given.args
        ]
    yield result


def names_of(document: Mapping[str, object]) -> frozenset[str]:
    """Return the system calls that a filter names."""
    rules = cast("Sequence[Mapping[str, Any]]", document.get("syscalls") or ())
    return frozenset(name for rule in rules for name in rule["names"])


def without(document: Mapping[str, object], unknown: frozenset[str]) -> dict[str, object]:
    """Return the filter without these names; they get its default action."""
    rules = cast("Sequence[Mapping[str, Any]]", document.get("syscalls") or ())
    kept = [{**rule, "names": [n for n in rule["names"] if n not in unknown]} for rule in rules]
    return {**document, "syscalls": [rule for rule in kept if rule["names"]]}


@lru_cache(maxsize=256)
def _rules(rules: SeccompRules, capabilities: frozenset[str]) -> tuple[_Rule, ...]:
    free = _free_names(rules, capabilities)
    conditional = tuple(_conditional(rules, capabilities, free))
    hint = (
        ()
        if _CLONE3 in free | (rules.ruled - rules.deny) or rules.audit
        else (_Rule((_CLONE3,), ENOSYS),)
    )
    allowed = (_Rule(tuple(sorted(free))),) if free else ()
    closed = sorted(_closed(rules))
    first = (_Rule(tuple(closed), ENOSYS),) if closed and not rules.audit else ()
    return (*first, *allowed, *conditional, *hint)


def _closed(rules: SeccompRules) -> frozenset[str]:
    """Return which of socketcall and ipc would lead past what is said about the calls behind."""
    told = rules.deny | rules.ruled
    return frozenset(
        whole
        for whole, calls in MULTIPLEXED.items()
        if whole in rules.deny
        or (whole not in rules.allow and (rules.deny_all or not told.isdisjoint(calls)))
    )


def _free_names(rules: SeccompRules, capabilities: frozenset[str]) -> frozenset[str]:
    """Return the names that are allowed whatever their arguments are."""
    default = frozenset(
        name
        for group in _holding(capabilities)
        if not group.args and not group.errno
        for name in group.names
    )
    conditional = frozenset(
        name for group in _holding(capabilities) if group.args for name in group.names
    )
    kept = rules.allow - (conditional - default)
    names = kept if rules.deny_all else default | rules.allow
    return names - rules.deny - rules.ruled - _closed(rules)


def _conditional(
    rules: SeccompRules, capabilities: frozenset[str], free: frozenset[str]
) -> Iterator[_Rule]:
    """Yield the rules about arguments, for the names that are not free anyway."""
    for group in _holding(capabilities):
        names = group.names - free - rules.deny - rules.ruled
        if group.args and rules.deny_all:
            names &= rules.allow
        if group.args and names:
            yield _Rule(tuple(sorted(names)), args=group.args)


def _holding(capabilities: frozenset[str]) -> Iterator[_Group]:
    for group in GROUPS:
        if group.capability and group.capability not in capabilities:
            continue
        if group.unless and group.unless in capabilities:
            continue
        yield group


def _as_oci(rule: _Rule) -> dict[str, object]:
    result: dict[str, object] = {"names": list(rule.names)}
    if rule.errno:
        result |= {"action": "SCMP_ACT_ERRNO", "errnoRet": rule.errno}
    else:
        result["action"] = "SCMP_ACT_ALLOW"
    if rule.args:
        result["args"] = [argument.model_dump(exclude_none=True) for argument in rule.args]
    return result
