"""Running critest and judging it: what failed or was skipped must be exactly what is written down.

A spec that fails or is skipped without being in ``expected.toml`` fails the run, and so does one
that is in it and passes: the lists can only shrink.
"""

from __future__ import annotations

import re
import shutil
import subprocess
import time
import tomllib
import xml.etree.ElementTree as ET
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Final

from e2e.cluster.layout import Layout
from e2e.conformance.node import Node, running

EXPECTED: Final = Path(__file__).with_name("expected.toml")
LIMIT_S: Final = 900.0
PASSED: Final = "passed"
FAILED: Final = "failed"
SKIPPED: Final = "skipped"
_WEBSOCKET: Final = ("--websocket-exec", "--websocket-attach", "--websocket-portforward")


@dataclass(frozen=True, slots=True)
class Outcome:
    """One spec: its name, what became of it, and critest's words for that."""

    name: str
    state: str
    why: str = ""


@dataclass(frozen=True, slots=True)
class Run:
    """How the suite is run: under which handler, what of it, over which streaming protocol."""

    handler: str
    focus: str = ""
    websocket: bool = False


@dataclass(frozen=True, slots=True)
class Expected:
    """What is known of a run: reasons by spec, and the specs that critest is told to skip."""

    fails: Mapping[str, str] = field(default_factory=dict[str, str])
    skips: Mapping[str, str] = field(default_factory=dict[str, str])
    left_out: Sequence[str] = ()

    @classmethod
    def of(cls, wanted: Run, path: Path = EXPECTED) -> Expected:
        """What the file says of a run."""
        content = tomllib.loads(path.read_text())

        def groups(key: str) -> list[dict[str, Any]]:
            return [
                group
                for group in content.get(key, [])
                if wanted.handler in group.get("handlers", [wanted.handler])
                and (wanted.websocket or not group.get("websocket"))
            ]

        def reasons(key: str) -> dict[str, str]:
            return {spec: group["reason"] for group in groups(key) for spec in group["specs"]}

        left_out = [s for group in groups("skips") if group.get("by_us") for s in group["specs"]]
        return cls(reasons("fails"), reasons("skips"), left_out)


def run(node: Node, wanted: Run, left_out: Sequence[str], keep: Path) -> list[Outcome]:
    """Run critest to its end; its log, its report and the runtime's log are kept in `keep`."""
    shutil.rmtree(keep, ignore_errors=True)
    keep.mkdir(parents=True)
    report = keep / "junit.xml"
    argv = [
        node.layout.binary("critest"),
        *("--config", str(node.folder / "crictl.yaml")),
        *("--runtime-endpoint", node.endpoint, "--runtime-handler", node.handler),
        *("--ginkgo.no-color", "--ginkgo.seed=1", f"--ginkgo.junit-report={report}"),
        *(f"--ginkgo.skip={pattern}" for pattern in ("benchmark", *map(_pattern, left_out))),
        *((f"--ginkgo.focus={wanted.focus}",) if wanted.focus else ()),
        *(_WEBSOCKET if wanted.websocket else ()),
    ]
    try:
        with (keep / "critest.log").open("wb") as log:
            subprocess.run(
                argv,
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
                cwd=node.folder,
                # critest leaves folders behind; these go with the node's.
                env=node.layout.environment() | {"TMPDIR": str(node.folder / "tmp")},
                timeout=LIMIT_S,
                check=False,
            )
    finally:
        shutil.copy(node.folder / "runtime.log", keep)
    return read_report(report)


def _pattern(spec: str) -> str:
    # The labels behind a name in the report are not part of what critest compares.
    return re.escape(re.sub(r"( \[\w+\])+$", "", spec))


def read_report(path: Path) -> list[Outcome]:
    """The specs of a JUnit report, without those that a focus left out."""
    if not path.exists():
        raise AssertionError(f"critest wrote no report: see {path.with_name('critest.log')}")
    return [_outcome(case) for case in ET.parse(path).iter("testcase")]  # noqa: S314


def _outcome(case: ET.Element) -> Outcome:
    name = case.attrib["name"].removeprefix("[It] ").removeprefix("[k8s.io] ")
    for kind, state in (("failure", FAILED), ("error", FAILED), ("skipped", SKIPPED)):
        told = case.find(kind)
        if told is not None:
            return Outcome(name, state, _why(told))
    return Outcome(name, PASSED if case.attrib["status"] == PASSED else SKIPPED)


def _why(told: ET.Element) -> str:
    text = told.get("message") or told.text or ""
    return re.sub(r"\s+", " ", text).strip()[:400]


def surprises(outcomes: Sequence[Outcome], expected: Expected, focus: str = "") -> list[str]:
    """Why the run is not as it should be, a line each; empty if it is.

    With a focus, nothing is said of skips: critest skips whatever is outside of it.
    """
    found: list[str] = []
    for outcome in outcomes:
        if outcome.state == FAILED and outcome.name not in expected.fails:
            found.append(f"FAILED   {outcome.name}\n         {outcome.why}")
        if outcome.state == SKIPPED and outcome.name not in expected.skips and not focus:
            found.append(f"SKIPPED  {outcome.name}\n         {outcome.why}")
        if outcome.state == PASSED and outcome.name in expected.fails:
            found.append(f"PASSES   {outcome.name}\n         take it out of [[fails]]")
        if outcome.state == PASSED and outcome.name in expected.skips:
            found.append(f"RUNS     {outcome.name}\n         take it out of [[skips]]")
    names = {outcome.name for outcome in outcomes}
    unknown = [name for name in (*expected.fails, *expected.skips) if name not in names]
    return [*found, *(f"UNKNOWN  {name}\n         critest has no such spec" for name in unknown)]


def judge(layout: Layout, wanted: Run) -> tuple[str, list[str]]:
    """A run on a node of its own: what it was in a line, and its surprises."""
    begun = time.monotonic()
    name = f"{wanted.handler}-websocket" if wanted.websocket else wanted.handler
    keep = layout.logs / "conformance" / name
    expected = Expected.of(wanted)
    with running(layout, wanted.handler) as node:
        outcomes = run(node, wanted, expected.left_out, keep)
    found = surprises(outcomes, expected, wanted.focus)
    return f"{name}: {counts(outcomes)}; {time.monotonic() - begun:.0f} s; logs: {keep}", found


def counts(outcomes: Sequence[Outcome]) -> str:
    """In a line: passed, failed, skipped."""
    specs = [outcome for outcome in outcomes if not outcome.name.startswith("[")]
    return ", ".join(
        f"{sum(spec.state == state for spec in specs)} {state}"
        for state in (PASSED, FAILED, SKIPPED)
    )
