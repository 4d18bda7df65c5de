"""A process that joins a running container: at most what both revisions give.

The container runs under what it was started with; the profile may have been tightened since. What a
process has of its own is narrowed to what the profile gives now: capabilities, noNewPrivileges,
supplementary groups, ulimits. What belongs to the container as a whole stays until it is made anew:
the filter, AppArmor and SELinux labels, mounts, namespaces, cgroup. Nothing is ever widened.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Final, cast

from noderuntime.policy import capabilities, users
from noderuntime.policy.denial import Denial, listed
from noderuntime.policy.facts import ContainerFacts
from noderuntime.policy.rules import HandlerRules

_KEPT_AT_EXECVE: Final = ("inheritable", "ambient")

Process = dict[str, object]  # ``process`` of an OCI configuration


@dataclass(frozen=True, slots=True, kw_only=True)
class ExecGrant:
    """The process may join. ``findings``: what is let pass; ``changes``: what was taken away."""

    process: Mapping[str, object]
    findings: tuple[Denial, ...] = ()
    changes: tuple[str, ...] = ()


def narrowed(
    facts: ContainerFacts, process: Mapping[str, object]
) -> tuple[Process, tuple[str, ...]]:
    """Return the OCI process with what the profile gives now, and a sentence for each change.

    Raises KeyError, TypeError where ``process`` is no OCI process.
    """
    result, changes = dict(process), list[str]()
    for part in (_capabilities, _no_new_privileges, _groups, _ulimits):
        changes += part(facts, result)
    return result, tuple(changes)


def _capabilities(facts: ContainerFacts, process: Process) -> Iterator[str]:
    own = cast("Mapping[str, list[str]]", process["capabilities"])
    most = {f"CAP_{name}" for name in capabilities.given(facts.rules, facts.container.security)}
    kept = most & {f"CAP_{name}" for name in facts.rules.ambient_capabilities}
    new = {
        name: [each for each in names if each in (kept if name in _KEPT_AT_EXECVE else most)]
        for name, names in own.items()
    }
    lost = {each for name in own for each in set(own[name]) - set(new[name])}
    process["capabilities"] = new
    if lost:
        yield f"capabilities {listed(frozenset(lost))} are taken away, as the profile gives less now"


def _no_new_privileges(facts: ContainerFacts, process: Process) -> Iterator[str]:
    if facts.rules.no_new_privileges and not process.get("noNewPrivileges"):
        process["noNewPrivileges"] = True
        yield "noNewPrivileges is set, as it is Required now"


def _groups(facts: ContainerFacts, process: Process) -> Iterator[str]:
    lost = users.outside(facts.rules, facts.image.user)
    if not lost or facts.rules.audits("runAs"):
        return
    user = cast("Mapping[str, object]", process["user"])
    had = cast("list[int]", user.get("additionalGids", []))
    process["user"] = {**user, "additionalGids": [gid for gid in had if gid not in lost]}
    yield (
        f"supplementary groups {listed(tuple(map(str, lost)))} are taken away, as "
        "runAs.supplementalGroups does not have them now"
    )


def _ulimits(facts: ContainerFacts, process: Process) -> Iterator[str]:
    limits = {
        cast("str", each["type"]): each
        for each in cast("list[dict[str, object]]", process.get("rlimits", []))
    }
    changed = [name for name, each in _wanted(facts.rules, limits) if limits.get(name) != each]
    limits |= dict(_wanted(facts.rules, limits))
    if changed:
        process["rlimits"] = list(limits.values())
        names = tuple(name.removeprefix("RLIMIT_").lower() for name in changed)
        yield f"ulimits {listed(names)} are no higher than the profile's of now"


def _wanted(
    rules: HandlerRules, limits: Mapping[str, Mapping[str, object]]
) -> tuple[tuple[str, dict[str, object]], ...]:
    """Return the profile's limits, each no higher than the one that the container has."""
    found: list[tuple[str, dict[str, object]]] = []
    for each in rules.ulimits:
        name = f"RLIMIT_{each.name.upper()}"
        own = limits.get(name, {})
        soft, hard = (
            cast("int", own.get("soft", each.soft)),
            cast("int", own.get("hard", each.hard)),
        )
        limit = {"type": name, "soft": min(soft, each.soft), "hard": min(hard, each.hard)}
        found.append((name, dict[str, object](limit)))
    return tuple(found)
