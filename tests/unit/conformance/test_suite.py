"""What a run of the conformance suite is judged by."""

from __future__ import annotations

from pathlib import Path

import pytest

from e2e.conformance.suite import Expected, Outcome, Run, counts, read_report, surprises

REPORT = """<?xml version="1.0"?>
<testsuites><testsuite name="CRI validation">
<testcase name="[BeforeSuite]" status="passed"/>
<testcase name="[It] [k8s.io] Pods run [Conformance]" status="passed"/>
<testcase name="[It] [k8s.io] Pods sleep" status="failed"><failure message="no
  sleep">trace</failure></testcase>
<testcase name="[It] [k8s.io] Pods dream" status="skipped"><skipped message="skipped - no"/></testcase>
</testsuite></testsuites>
"""
RUNS = "Pods run [Conformance]"
SLEEP = Outcome("Pods sleep", "failed", "no sleep")
DREAM = Outcome("Pods dream", "skipped", "skipped - no")
FILE = """
[[skips]]
reason = "later"
by_us = true
specs = ["a [Serial]"]
[[fails]]
reason = "runc cannot"
handlers = ["runc"]
specs = ["b"]
[[fails]]
reason = "no WebSocket"
websocket = true
specs = ["c"]
"""


@pytest.fixture
def outcomes(tmp_path: Path) -> list[Outcome]:
    path = tmp_path / "junit.xml"
    path.write_text(REPORT)
    return read_report(path)


def test_a_report_is_read(outcomes: list[Outcome]) -> None:
    assert outcomes[1:] == [Outcome(RUNS, "passed"), SLEEP, DREAM]
    assert counts(outcomes) == "1 passed, 1 failed, 1 skipped"


def test_a_run_as_written_down_is_no_surprise(outcomes: list[Outcome]) -> None:
    expected = Expected({"Pods sleep": "?"}, {"Pods dream": "?"})
    assert surprises(outcomes, expected) == []


def test_what_fails_or_is_skipped_without_a_reason_is_told(outcomes: list[Outcome]) -> None:
    found = surprises(outcomes, Expected())
    assert [line.split()[0] for line in found] == ["FAILED", "SKIPPED"]
    assert "no sleep" in found[0]


@pytest.mark.parametrize("kind", ["fails", "skips"])
def test_what_passes_must_leave_the_list(outcomes: list[Outcome], kind: str) -> None:
    expected = Expected(
        {"Pods sleep": "?"} | ({RUNS: "?"} if kind == "fails" else {}),
        {"Pods dream": "?"} | ({RUNS: "?"} if kind == "skips" else {}),
    )
    (line,) = surprises(outcomes, expected)
    assert f"[[{kind}]]" in line


def test_a_spec_that_critest_does_not_have_is_told(outcomes: list[Outcome]) -> None:
    found = surprises(outcomes, Expected({"Pods sleep": "?", "Pods fly": "?"}), focus="Pods")
    assert [line.split()[0] for line in found] == ["UNKNOWN"]


def test_a_report_that_is_not_there_fails(tmp_path: Path) -> None:
    with pytest.raises(AssertionError, match="no report"):
        read_report(tmp_path / "junit.xml")


def test_reasons_are_those_of_the_run(tmp_path: Path) -> None:
    path = tmp_path / "expected.toml"
    path.write_text(FILE)
    skips = {"a [Serial]": "later"}
    assert Expected.of(Run("crun"), path) == Expected({}, skips, ["a [Serial]"])
    assert Expected.of(Run("runc"), path).fails == {"b": "runc cannot"}
    assert Expected.of(Run("crun", websocket=True), path).fails == {"c": "no WebSocket"}


def test_every_reason_of_the_repository_is_read() -> None:
    expected = Expected.of(Run("crun"))
    assert all(expected.skips.values())
    assert set(expected.left_out) <= expected.skips.keys()
