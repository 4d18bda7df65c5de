"""A plan for people and as JSON; a hostile name or value cannot reach the terminal."""

from __future__ import annotations

import json
from collections.abc import Iterator
from typing import Any, Final

from noderuntime.cli.planning.compare import Outcome, Result
from noderuntime.cli.planning.difference import Change
from noderuntime.cli.planning.objects import ObjectChange
from noderuntime.cli.planning.plan import Group, Plan
from noderuntime.policy.denial import Denial, printable

_SIGNS: Final = {"added": "+", "changed": "~", "removed": "-", "affected": "~"}
_TITLES: Final = {
    Result.REFUSED: "REFUSED when they start next",
    Result.LOST: "LOSE their handler",
    Result.UNJUDGED: "could not be judged: this version cannot read them",
    Result.DEPENDS: "depend on their image",
    Result.CHANGED: "would run with another configuration when they start next",
    Result.ADMITTED: "were refused, and would run",
    Result.RECORDED: "run as before, with findings that are new (mode Audit)",
    Result.STILL_REFUSED: "are refused already, and stay so",
    Result.SAME: "stay as they are",
}
_MOST_LINES: Final = 12  # of one kind, of one group or object


def as_json(plan: Plan, exit_code: int) -> str:
    """Return everything for programs; keys are added, never renamed."""
    document = {
        "objects": [_object(each) for each in plan.objects],
        "pods": [_group(each) for each in plan.groups],
        "summary": {result.value: plan.counts.get(result, 0) for result in Result},
        "untold": plan.untold,
        "notes": list(plan.notes),
        "exitCode": exit_code,
    }
    return json.dumps(document, indent=2)


def as_text(plan: Plan) -> str:
    """Return everything for people."""
    lines = ["NodeRuntimes and SecurityProfiles"]
    for each in plan.objects:
        lines += _object_lines(each)
    if not plan.objects:
        lines.append("  nothing changes")
    lines += [f"  note: {printable(note, 400)}" for note in plan.notes]
    shown: Result | None = None
    for group in plan.groups:
        if group.outcome.result is not shown:
            shown = group.outcome.result
            lines += ["", f"{_pods(plan.counts[shown])} {_TITLES[shown]}"]
        lines += _group_lines(group)
    if plan.untold:
        lines += ["", f"{_pods(plan.untold)} more, of other workloads, are only counted"]
    return "\n".join([*lines, "", _summary(plan)])


def _summary(plan: Plan) -> str:
    total = sum(plan.counts.values())
    said = [
        f"{plan.counts[result]} {_WORDS[result]}" for result in Result if plan.counts.get(result)
    ]
    return f"{_pods(total)} under NodeRuntimes: {', '.join(said) or 'nothing to judge'}"


_WORDS: Final = {
    Result.REFUSED: "would be refused",
    Result.LOST: "would lose their handler",
    Result.UNJUDGED: "could not be judged",
    Result.DEPENDS: "depend on their image",
    Result.CHANGED: "would change",
    Result.ADMITTED: "would run that were refused",
    Result.RECORDED: "with new findings",
    Result.STILL_REFUSED: "refused as before",
    Result.SAME: "the same",
}


def _pods(number: int) -> str:
    return "1 Pod" if number == 1 else f"{number} Pods"


def _object(each: ObjectChange) -> dict[str, Any]:
    return {
        "kind": each.kind,
        "name": each.name,
        "change": each.change,
        "fields": [_change(change) for change in each.fields],
        "notes": list(each.notes),
    }


def _group(group: Group) -> dict[str, Any]:
    outcome = group.outcome
    return {
        "result": outcome.result.value,
        "namespace": group.namespace,
        "workload": {"kind": group.kind, "name": group.workload},
        "count": group.count,
        "examples": list(group.names),
        "nodeRuntime": outcome.node_runtime,
        "profile": outcome.profile,
        "denials": [
            {
                "container": denial.container,
                "field": denial.field,
                "value": denial.value,
                "rule": denial.rule,
                "remedy": denial.remedy,
            }
            for denial in outcome.denials
        ],
        "changes": [_change(change) for change in outcome.changes],
        "says": list(outcome.says),
    }


def _change(change: Change) -> dict[str, str]:
    where = {"container": change.container} if change.container else {}
    return {**where, "field": change.field, "before": change.before, "after": change.after}


def _object_lines(each: ObjectChange) -> Iterator[str]:
    yield f"  {_SIGNS[each.change]} {each.kind} {printable(each.name)} {each.change}"
    yield from _bounded(_said(change) for change in each.fields)
    for note in each.notes:
        yield f"      {printable(note, 300)}"


def _group_lines(group: Group) -> Iterator[str]:
    outcome = group.outcome
    name = f"{printable(group.namespace)}/{printable(group.workload)}"
    if group.kind == "Pod":
        yield f"  Pod {name}{_under(outcome)}"
    else:
        more = ", ..." if group.count > len(group.names) else ""
        names = ", ".join(map(printable, group.names))
        yield f"  {_pods(group.count)} of {printable(group.kind)} {name}{_under(outcome)} ({names}{more})"
    for said in outcome.says:
        yield f"      {printable(said, 400)}"
    yield from _bounded(line for denial in outcome.denials for line in _denial(denial))
    yield from _bounded(_said(change) for change in outcome.changes)


def _under(outcome: Outcome) -> str:
    if not outcome.profile:
        return ""
    runtime, profile = printable(outcome.node_runtime), printable(outcome.profile)
    return f" under NodeRuntime {runtime}, SecurityProfile {profile}"


def _said(change: Change) -> str:
    return printable(change.sentence(), 500)


def _denial(denial: Denial) -> Iterator[str]:
    yield f"{printable(denial.field)}: {printable(denial.value)}"
    yield f"  rule:   {printable(denial.rule, 300)}"
    yield f"  passes: {printable(denial.remedy, 300)}"


def _bounded(lines: Iterator[str]) -> Iterator[str]:
    """Yield the lines, indented; of very many the first."""
    found = list(lines)
    yield from (f"      {line}" for line in found[:_MOST_LINES])
    if len(found) > _MOST_LINES:
        yield f"      ... {len(found) - _MOST_LINES} more lines; -o json has them"
