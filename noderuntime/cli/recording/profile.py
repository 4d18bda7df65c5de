"""The least SecurityProfile that a recorded Pod runs under, and why each part is in it.

What the Pod asks for is allowed, or it would be refused; everything else is what was seen. A part
that could not be seen is as wide as it was while recorded, and says so.
"""

from __future__ import annotations

from collections.abc import Collection, Iterable, Mapping
from dataclasses import dataclass, field
from typing import Final

from noderuntime.api.profile_process import Capabilities, IdRange, RunAs
from noderuntime.api.seccomp import Seccomp, SeccompNames
from noderuntime.api.securityprofile import SecurityProfileSpec
from noderuntime.cli.recording.asked import Asked, needed
from noderuntime.cli.recording.seen import Recording, Seen
from noderuntime.host.notifications import ARCHITECTURES, Architecture, Call, Names
from noderuntime.policy import capabilities
from noderuntime.policy.model import ContainerConfig

# The kernel itself makes a process call these: after a signal, and at an end that came otherwise
# while it was recorded. Without them a program would die where it should not.
ALWAYS: Final = frozenset({"exit", "exit_group", "restart_syscall", "rt_sigreturn"})
_IN_A_LIST: Final = 384  # of SeccompNames
_SHOWN: Final = 12


@dataclass(slots=True, kw_only=True)
class Made:
    """A profile, and sentences by the field that they are about."""

    spec: SecurityProfileSpec
    why: dict[str, list[str]] = field(default_factory=dict[str, list[str]])


def least(
    of: Asked,
    recording: Recording,
    names: Mapping[str, str],
    changed: Mapping[str, bool | None] | None = None,
) -> Made:
    """Return the profile. ``names`` are of containers by ID, those that were recorded.

    ``changed`` says of paths of the node whether something changed below while it was recorded.
    """
    made = Made(spec=needed(of))
    seen = [recording.containers[key] for key in names if key in recording.containers]
    gained = [names[key] for key in names if _seen(recording, key).gained]
    parts: dict[str, object] = {
        "no_new_privileges": "Optional" if gained else "Required",
        "run_as": _run_as(seen),
        "root_filesystem": _root(made, recording, names),
        "capabilities": _capabilities(made, of, recording, names),
        "seccomp": _seccomp(made, seen, required=not gained),
    }
    if gained:
        made.why["noNewPrivileges"] = [
            f"{_listed(gained)} started a setuid program, or one with capabilities of its own"
        ]
    _tell_of_paths(made, changed or {})
    made.spec = SecurityProfileSpec.model_validate(
        made.spec.model_copy(update=parts).model_dump(by_alias=True, exclude_none=True)
    )
    return made


def _seen(recording: Recording, container_id: str) -> Seen:
    return recording.containers.get(container_id) or Seen()


def _run_as(seen: Iterable[Seen]) -> RunAs:
    starts = {ids for each in seen for ids in each.starts}
    users = {ids.uid for ids in starts}
    groups = {ids.gid for ids in starts}
    return RunAs(
        non_root=bool(users) and 0 not in users,
        users=_ranges(users),
        groups=_ranges(groups),
        supplemental_groups=_ranges({gid for ids in starts for gid in ids.groups} - groups),
    )


def _ranges(numbers: Collection[int]) -> tuple[IdRange, ...]:
    found: list[tuple[int, int]] = []
    for number in sorted(numbers):
        if found and found[-1][1] == number - 1:
            found[-1] = found[-1][0], number
        else:
            found.append((number, number))
    return tuple(IdRange(min=low, max=high) for low, high in found)


def _root(made: Made, recording: Recording, names: Mapping[str, str]) -> str:
    why = [
        f"{name} wrote {_listed(_seen(recording, key).written)}"
        for key, name in names.items()
        if _seen(recording, key).written
    ]
    if why:
        made.why["rootFilesystem"] = [*why, "with an emptyDir for each it could be ReadOnly"]
    return "ReadWrite" if why else "ReadOnly"


def _capabilities(
    made: Made, of: Asked, recording: Recording, names: Mapping[str, str]
) -> Capabilities:
    """Return those that were used: in allow where the Pod adds them, else in default."""
    added = of.added
    by_name = {each.name: each for each in of.containers}
    default = set[str]()
    why = made.why.setdefault("capabilities", [])
    for key, name in names.items():
        own = by_name[name]
        used = _used(recording, key, own)
        default |= used - capabilities.asked(own.security)
        if used and not recording.blind:
            why.append(f"{name} used {_listed(sorted(used))}")
        idle = capabilities.asked(own.security) & capabilities.KNOWN - used
        if idle:
            why.append(
                f"{name} adds {_listed(sorted(idle))}, and did not use it: leave it out there"
            )
    if not why and not recording.blind:
        why.append("none was used")
    if recording.blind:
        why.insert(0, f"not recorded, so all that the Pod had: {recording.blind}")
    return Capabilities(default=tuple(sorted(default)), allow=tuple(sorted(added - default)))


def _used(recording: Recording, key: str, own: ContainerConfig) -> set[str]:
    if own.security.privileged:
        return set()
    granted = capabilities.granted(own.security, capabilities.NODE_DEFAULT)
    if recording.blind:
        return set(granted)
    numbers = {number for number, name in enumerate(capabilities.IN_ORDER) if name in granted}
    used = _seen(recording, key).used(frozenset(numbers))
    return {capabilities.IN_ORDER[number] for number in used}


def _seccomp(made: Made, seen: Iterable[Seen], *, required: bool) -> Seccomp:
    """Return the filter. What the OCI runtime did under it is needed, as it will do it again.

    With noNewPrivileges crun loads the filter last, and does nothing under it but to start the program.
    """
    table = Names()
    calls = {call for each in seen for call in each.calls}
    before = {call for each in seen for call in each.of_runtime}
    names = {table.name(call) for call in calls}
    of_runtime = {table.name(call) for call in before}
    if required:
        of_runtime &= {"execve"}
    found = {name for name in names | of_runtime if name} | ALWAYS
    if None in names:
        made.why["seccomp"] = ["it made calls that this machine's libseccomp has no names for"]
    ordered = sorted(found)
    return Seccomp(
        base="DenyAll",
        allow=tuple(
            SeccompNames(names=tuple(ordered[start : start + _IN_A_LIST]))
            for start in range(0, len(ordered), _IN_A_LIST)
        ),
        architectures=_architectures(calls | before),
    )


def _architectures(calls: Iterable[Call]) -> tuple[Architecture, ...]:
    known = {call.architecture for call in calls}
    return tuple(name for token, name in ARCHITECTURES.items() if token in known)


def _tell_of_paths(made: Made, changed: Mapping[str, bool | None]) -> None:
    why = made.why.setdefault("hostPaths", [])
    for each in made.spec.host_paths:
        if each.read_only:
            continue
        if changed.get(each.path) is False:
            why.append(
                f"nothing changed below {each.path}: mounted with readOnly: true, it could be here too"
            )
        elif changed.get(each.path):
            why.append(f"something changed below {each.path} meanwhile, by the Pod or by others")


def _listed(words: Collection[str]) -> str:
    shown, more = [*words][:_SHOWN], len(words) - _SHOWN
    return ", ".join(shown) + (f" and {more} more" if more > 0 else "")
