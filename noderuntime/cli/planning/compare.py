"""One Pod under the rules that it has and under those that it would have, by the node's own code."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace
from enum import StrEnum
from typing import Any, Final

from noderuntime.cli.explaining.image import Image
from noderuntime.cli.explaining.judge import ContainerReport, PodReport, judge
from noderuntime.cli.manifest.workloads import Workload
from noderuntime.cli.planning import difference
from noderuntime.cli.planning.difference import Change
from noderuntime.cli.planning.rules import Runtime
from noderuntime.policy.denial import Denial
from noderuntime.policy.rules import HandlerRules

_UNKNOWN_IMAGE: Final = Image()


class Result(StrEnum):
    """What becomes of a Pod, the worst first."""

    REFUSED = "refused"
    LOST = "lost"  # no NodeRuntime governs it on its node any more
    UNJUDGED = "unjudged"  # this version cannot read it
    DEPENDS = "depends"  # on what its image alone knows
    CHANGED = "changed"
    ADMITTED = "admitted"  # it was refused, and would run
    RECORDED = "recorded"  # as before, with findings in mode Audit that are new
    STILL_REFUSED = "stillRefused"
    SAME = "same"


@dataclass(frozen=True, slots=True, kw_only=True)
class Outcome:
    """A result with its reasons; equal for Pods to which the same happens for the same reasons."""

    result: Result
    node_runtime: str = ""
    profile: str = ""
    denials: tuple[Denial, ...] = ()
    changes: tuple[Change, ...] = ()
    says: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True, kw_only=True)
class Moment:
    """When (seconds of the epoch) and for which machine (uname(2)) is judged."""

    now_s: float
    machine: str


def compare(
    workload: Workload, present: Runtime | None, planned: Runtime, moment: Moment
) -> Outcome:
    """Judge a Pod that stays governed, or becomes so (``present`` None). Raises ConfigError."""
    if planned.rules is None:  # Stalled as before: nodes keep what they serve
        return Outcome(result=Result.SAME)
    after = _judged(workload, planned.rules, moment)
    was = present.rules if present is not None else None
    before = None if was is None else _judged(workload, was, moment)
    result, says = _result(before, after)
    denials = {
        Result.REFUSED: _denials(after, "refused"),
        Result.STILL_REFUSED: _denials(after, "refused"),
        Result.ADMITTED: () if before is None else _denials(before, "refused"),
    }.get(result, ())
    changes: tuple[Change, ...] = ()
    if result is Result.SAME or result is Result.DEPENDS:
        changes = tuple(_changes(present, before, planned, after))
    if result is Result.SAME and changes:
        result = Result.CHANGED
    if result is Result.SAME and (found := _new_findings(before, after)):
        result, denials = Result.RECORDED, found
    if result is Result.CHANGED and before is None:
        says = (_why_from_nothing(present),)
    return Outcome(
        result=result,
        node_runtime=planned.name,
        profile=planned.rules.profile,
        denials=_anonymous(denials),
        changes=changes,
        says=says + (_errors(after) if result in (Result.REFUSED, Result.STILL_REFUSED) else ()),
    )


def _judged(workload: Workload, rules: HandlerRules, moment: Moment) -> PodReport:
    return judge(workload, rules, _UNKNOWN_IMAGE, now_s=moment.now_s, machine=moment.machine)


def _result(before: PodReport | None, after: PodReport) -> tuple[Result, tuple[str, ...]]:
    if after.verdict == "refused":
        was_too = before is not None and before.verdict == "refused"
        return (Result.STILL_REFUSED if was_too else Result.REFUSED), ()
    if after.verdict == "unknown" and (before is None or _users(before) != _users(after)):
        return Result.DEPENDS, tuple(_unknown(after))
    if before is not None and before.verdict == "refused":
        return Result.ADMITTED, ()
    return Result.SAME, ()


def _users(report: PodReport) -> tuple[object, ...]:
    """Return what the rules say of users: a Pod that runs under the same has an image that fits."""
    rules = report.rules
    return (
        rules.non_root,
        rules.users,
        rules.groups,
        rules.supplemental_groups,
        rules.audits("runAs"),
    )


def _parts(report: PodReport) -> tuple[PodReport | ContainerReport, ...]:
    return (report, *report.containers)


def _denials(report: PodReport, verdict: str) -> tuple[Denial, ...]:
    found = (row for part in _parts(report) for row in part.rows if row.verdict == verdict)
    return tuple(dict.fromkeys(denial for row in found for denial in row.denials))


def _anonymous(denials: tuple[Denial, ...]) -> tuple[Denial, ...]:
    """Return them without the revision, which is one of this plan alone."""
    return tuple(replace(each, revision="") for each in denials)


def _errors(report: PodReport) -> tuple[str, ...]:
    """Return what no runtime of ours would run, whatever the profile says."""
    return tuple(
        f"containers[{part.name}]: {part.error}"
        if isinstance(part, ContainerReport)
        else part.error
        for part in _parts(report)
        if part.error
    )


def _unknown(report: PodReport) -> Iterator[str]:
    for each in report.containers:
        for row in each.rows:
            if row.verdict == "unknown":
                yield f"containers[{each.name}]: {row.field}: {', '.join(row.says)}"


def _new_findings(before: PodReport | None, after: PodReport) -> tuple[Denial, ...]:
    old = () if before is None else _denials(before, "recorded")
    known = {(each.field, each.value) for each in old}
    found = _denials(after, "recorded")
    return tuple(each for each in found if (each.field, each.value) not in known)


def _why_from_nothing(present: Runtime | None) -> str:
    if present is None:
        return "no NodeRuntime governs it now; the changes are to a Pod without a profile"
    return (
        f"NodeRuntime {present.name} is stalled now; the changes are to a Pod without a profile: "
        f"{present.problem}"
    )


def _changes(
    present: Runtime | None, before: PodReport | None, planned: Runtime, after: PodReport
) -> Iterator[Change]:
    """Yield what would differ: the engine, the sandbox, and each container's config.json."""
    if before is not None and present is not None:
        old, new = (each.spec.engine for each in (present, planned))
        yield from difference.changes(old.oci_runtime, new.oci_runtime, field="engine.ociRuntime")
        yield from difference.changes(old.cni_conf_dir, new.cni_conf_dir, field="engine.cniConfDir")
        yield from difference.changes(before.shm_bytes, after.shm_bytes, field="resources.shm")
        filters = (before.rules.seccomp, after.rules.seccomp)
        was, will = (each.artifact for each in filters)
        yield from difference.changes(was, will, field="seccomp.artifact")
    documents: dict[str, Mapping[str, Any] | None] = {}
    for each in before.containers if before is not None else ():
        documents[each.name] = each.governed
    for each in after.containers:
        old_document = each.plain if before is None else documents.get(each.name)
        yield from difference.changes(old_document, each.governed, each.name)
