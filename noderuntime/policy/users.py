"""Which numeric user and groups a container's process may have, after the image's passwd was read."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Final

from noderuntime.errors import InvalidArgumentError
from noderuntime.policy.denial import Denial
from noderuntime.policy.facts import ContainerFacts
from noderuntime.policy.model import ContainerConfig, ResolvedUser, UserNamespace
from noderuntime.policy.rules import HandlerRules, Ranges

HIGHEST_ID: Final = 2**32 - 2  # 2^32-1 means 'leave unchanged' to setresuid(2)


def require_in_range(container: str, user: ResolvedUser) -> None:
    """Raise InvalidArgumentError for an ID that Linux does not have; it must never wrap to 0."""
    ids: dict[str, tuple[int, ...]] = {
        "runAsUser": (user.uid,),
        "runAsGroup": (user.gid,),
        "supplementalGroups": user.additional_gids,
    }
    for field, numbers in ids.items():
        for number in numbers:
            if not 0 <= number <= HIGHEST_ID:
                raise InvalidArgumentError(
                    f"containers[{container}].securityContext.{field}: {number} is not "
                    f"between 0 and {HIGHEST_ID}"
                )


def require_mapped(container: str, user: ResolvedUser, namespace: UserNamespace | None) -> None:
    """Raise InvalidArgumentError for an ID that the Pod's user namespace does not have."""
    if namespace is None:
        return
    for field, mapping, numbers in (
        ("runAsUser", namespace.uids, (user.uid,)),
        ("runAsGroup", namespace.gids, (user.gid, *user.additional_gids)),
    ):
        for number in numbers:
            if not 0 <= number - mapping.container_id < mapping.length:
                raise InvalidArgumentError(
                    f"containers[{container}].securityContext.{field}: {number} is not among the "
                    f"{mapping.length} IDs of the pod's user namespace"
                )


def is_allowed(facts: ContainerFacts) -> Iterator[Denial]:
    """Refuse user 0 where the profile says nonRoot, and users and groups outside of its ranges."""
    yield from user_and_group_are_allowed(facts)
    yield from _supplementary(facts)


def user_and_group_are_allowed(facts: ContainerFacts) -> Iterator[Denial]:
    """Refuse what a process cannot be without; supplementary groups can be taken from it."""
    rules, uid = facts.rules, facts.image.user.uid
    if rules.non_root and uid == 0:
        yield facts.deny(
            "securityContext.runAsUser",
            _source(facts.container, uid),
            "runAs.nonRoot is true",
            "set runAsUser to another user than 0, or use an image with such a USER",
        )
    if not _within(uid, rules.users):
        yield facts.deny(
            "securityContext.runAsUser",
            _source(facts.container, uid),
            f"runAs.users has {shown(rules.users)}",
            "set runAsUser to one of these",
        )
    gid = facts.image.user.gid
    if not _within(gid, rules.groups):
        asked = facts.container.security.run_as_group is not None
        yield facts.deny(
            "securityContext.runAsGroup",
            str(gid) if asked else f"{gid} (the image's group)",
            f"runAs.groups has {shown(rules.groups)}",
            "set runAsGroup to one of these",
        )


def _supplementary(facts: ContainerFacts) -> Iterator[Denial]:
    """Refuse groups outside of the ranges; the image's own count like those of the Pod."""
    rules, user, security = facts.rules, facts.image.user, facts.container.security
    for gid in outside(rules, user):
        asked = gid in security.supplemental_groups
        yield facts.deny(
            "securityContext.supplementalGroups",
            str(gid) if asked else f"{gid} (of the image's group file)",
            f"runAs.supplementalGroups has {shown(rules.supplemental_groups)}",
            "use groups of these" if asked else "set supplementalGroupsPolicy: Strict",
        )


def outside(rules: HandlerRules, user: ResolvedUser) -> tuple[int, ...]:
    """Return the supplementary groups that the profile does not allow."""
    kept = rules.supplemental_groups
    return tuple(g for g in user.additional_gids if g != user.gid and not _within(g, kept))


def _within(number: int, ranges: Ranges) -> bool:
    return not ranges or any(low <= number <= high for low, high in ranges)


def shown(ranges: Ranges) -> str:
    """Return up to four ranges as a user reads them."""
    more = len(ranges) - 4
    first = ", ".join(f"{low}-{high}" for low, high in ranges[:4])
    return first + (f" and {more} more" if more > 0 else "")


def _source(container: ContainerConfig, uid: int) -> str:
    asked = container.security.run_as_user is not None or container.security.run_as_username
    return str(uid) if asked else f"{uid} (the image's user)"
