"""What was found out, for people and as JSON; a hostile manifest cannot reach the terminal."""

from __future__ import annotations

import difflib
import json
from collections.abc import Iterator, Mapping, Sequence
from itertools import groupby
from typing import Any, Final

from noderuntime.cli.explaining.judge import ContainerReport, PodReport, Row
from noderuntime.policy.denial import Denial, printable

_WORDS: Final = {
    "runs": "would run",
    "unknown": "depends on the image",
    "refused": "REFUSED",
}
_LONGEST_RUN: Final = 16  # lines of one sign that people are shown
_COLOURS: Final = {"+": "32", "-": "31", "@": "36"}


def as_json(reports: Sequence[PodReport]) -> str:
    """Return everything for programs; keys are added, never renamed."""
    return json.dumps({"pods": [_pod(report) for report in reports]}, indent=2)


def as_text(reports: Sequence[PodReport], *, colour: bool) -> str:
    """Return everything for people; ``colour`` is for a terminal alone."""
    return "\n\n".join("\n".join(_lines(report, colour=colour)) for report in reports)


def difference(report: ContainerReport, profile: str) -> list[str]:
    """Return the unified diff of the container's config.json; none where it would not run."""
    if report.plain is None or report.governed is None:
        return []
    before, after = (_json(document) for document in (report.plain, report.governed))
    name = f"{report.name}/config.json"
    lines = difflib.unified_diff(
        before, after, f"{name} without a profile", f"{name} under {profile}", lineterm=""
    )
    return list(lines)


def _json(document: Mapping[str, Any]) -> list[str]:
    return json.dumps(document, indent=2).splitlines()


def _pod(report: PodReport) -> dict[str, Any]:
    workload, rules = report.workload, report.rules
    return {
        "kind": workload.kind,
        "name": workload.name,
        "namespace": workload.namespace,
        "profile": rules.profile,
        "handler": rules.handler,
        "verdict": report.verdict,
        "error": report.error,
        "notes": list(report.notes),
        "rules": [_row(row) for row in report.rows],
        "containers": [_container(report, each) for each in report.containers],
    }


def _container(pod: PodReport, report: ContainerReport) -> dict[str, Any]:
    runs = pod.verdict != "refused"
    return {
        "name": report.name,
        "place": report.place,
        "error": report.error,
        "notes": list(report.notes),
        "rules": [_row(row) for row in report.rows],
        "spec": report.governed if runs else None,
        "diff": difference(report, pod.rules.profile) if runs else [],
    }


def _row(row: Row) -> dict[str, Any]:
    return {
        "field": row.field,
        "verdict": row.verdict,
        "says": list(row.says),
        "denials": [
            {"field": d.field, "value": d.value, "rule": d.rule, "remedy": d.remedy}
            for d in row.denials
        ],
    }


def _lines(report: PodReport, *, colour: bool) -> Iterator[str]:
    workload, rules = report.workload, report.rules
    yield f"{workload.kind} {workload.namespace}/{workload.name}: {_WORDS[report.verdict]}"
    runtime = (
        f" through NodeRuntime {rules.node_runtime}" if rules.node_runtime != rules.profile else ""
    )
    yield f"  under SecurityProfile {rules.profile}{runtime}"
    yield from _part("the Pod", report)
    for each in report.containers:
        yield from _part(f"{each.place}[{each.name}]", each)
    if report.verdict == "refused":
        return
    for each in report.containers:
        yield ""
        lines = list(_shortened(difference(each, rules.profile)))
        yield from (_coloured(line) for line in lines) if colour else lines


def _part(title: str, report: PodReport | ContainerReport) -> Iterator[str]:
    yield f"  {title}"
    for note in report.notes:
        yield f"    note: {printable(note, 400)}"
    if report.error:
        yield f"    REFUSED under any profile: {printable(report.error, 600)}"
    for row in report.rows:
        word = "REFUSED" if row.verdict == "refused" else row.verdict
        said = "; ".join(row.says) if row.verdict in ("set", "unknown") else ""
        yield f"    {row.field:<18}{word:<10}{printable(said, 400)}".rstrip()
        for denial in row.denials:
            yield from _denial(denial)


def _denial(denial: Denial) -> Iterator[str]:
    yield f"      {printable(denial.field)}: {printable(denial.value)}"
    yield f"        rule:   {printable(denial.rule, 300)}"
    yield f"        passes: {printable(denial.remedy, 300)}"


def _shortened(lines: Sequence[str]) -> Iterator[str]:
    """Yield the lines, of a long run of one sign only the first; a filter has hundreds."""
    for sign, group in groupby(lines, key=lambda line: line[:1]):
        run = list(group)
        if sign not in "+-" or len(run) <= _LONGEST_RUN:
            yield from run
            continue
        yield from run[: _LONGEST_RUN - 1]
        yield f"{sign} ... {len(run) - _LONGEST_RUN + 1} more lines; -o json has them"


def _coloured(line: str) -> str:
    code = _COLOURS.get(line[:1])
    return line if code is None else f"\x1b[{code}m{line}\x1b[0m"
