"""The benchmark's arithmetic, table, pictures and page; nothing is timed here."""

from __future__ import annotations

import random
import xml.etree.ElementTree as ET
from typing import TYPE_CHECKING

import pytest

from e2e.performance import chart, page, registry, table
from e2e.performance.figures import OURS, THEIRS, Row, Samples, number, percentile
from e2e.performance.floor import PLUGINS_ADD, PLUGINS_DEL, STEPS

if TYPE_CHECKING:
    from pathlib import Path

RUN = page.Run(mode="short", oci_runtime="crun", machine="2 cores", versions="crun 1.8.1")


@pytest.mark.parametrize(
    ("samples", "share", "wanted"),
    [
        ([1.0], 0.99, 1.0),
        ([3.0, 1.0, 2.0], 0.5, 2.0),
        ([1.0, 2.0, 3.0, 4.0], 0.5, 2.0),
        ([float(n) for n in range(1, 101)], 0.99, 99.0),
        ([float(n) for n in range(1, 11)], 0.99, 10.0),
        ([1.0, 2.0], 0.0, 1.0),
    ],
)
def test_a_percentile_is_a_sample_that_so_many_do_not_exceed(
    samples: list[float], share: float, wanted: float
) -> None:
    random.Random(1).shuffle(samples)
    assert percentile(samples, share) == wanted


@pytest.mark.parametrize(
    ("row", "wanted", "text"),
    [
        (Row(work="w", unit="ms", ours=33, theirs=100, aim=0.33), True, "≤ 0.33"),
        (Row(work="w", unit="ms", ours=34, theirs=100, aim=0.33), False, "≤ 0.33"),
        (Row(work="w", unit="1/s", ours=3, theirs=1, aim=3, more_is_better=True), True, "≥ 3"),
        (Row(work="w", unit="1/s", ours=2, theirs=1, aim=3, more_is_better=True), False, "≥ 3"),
        (Row(work="w", unit="ms", ours=1.9, theirs=0.1, limit=2.0), True, "≤ 2 ms"),
        (Row(work="w", unit="ms", ours=1, theirs=0), None, ""),
    ],
)
def test_a_row_tells_whether_its_aim_is_met(row: Row, wanted: bool | None, text: str) -> None:
    assert row.is_met is wanted
    assert row.aim_text == text


@pytest.mark.parametrize(("value", "text"), [(0.5, "0.50"), (12.34, "12.3"), (1234.5, "1,234")])
def test_a_number_has_three_figures_that_mean_something(value: float, text: str) -> None:
    assert number(value) == text


def test_the_page_keeps_what_people_wrote_and_gets_a_row_for_every_work(tmp_path: Path) -> None:
    figures = figures_of(every_sample())
    document = tmp_path / "performance.md"
    document.write_text(f"above\n{page.BEGIN}\nstale\n{page.END}\nbelow\n")
    page.write(tmp_path, RUN, figures)
    once = document.read_text()
    page.write(tmp_path, RUN, figures)
    assert document.read_text() == once  # writing again changes nothing
    assert once.startswith("above\n")
    assert once.endswith("\nbelow\n")
    assert "stale" not in once
    assert all(f"| {row.work} |" in once for row in figures.rows)
    assert "25% of a start with noderuntime and 12% with containerd" in once
    assert "bridge network" not in once
    assert "2.0 times the floor" in once
    for picture in (tmp_path / "performance").iterdir():
        ET.fromstring(picture.read_text())  # noqa: S314  # our own
        assert f"performance/{picture.name}" in once


def test_rows_with_our_own_network_are_a_table_of_their_own(tmp_path: Path) -> None:
    samples = every_sample()
    for work in tuple(samples.of):
        if " at 1" in work or " at 8" in work:
            samples.add(f"{work}, built-in network", OURS, 1.0)
            samples.add(f"{work}, built-in network", THEIRS, 4.0)
    (tmp_path / "performance.md").write_text(f"{page.BEGIN}{page.END}")
    page.write(tmp_path, RUN, figures_of(samples))
    first, _, second = (tmp_path / "performance.md").read_text().partition("its own bridge network")
    assert "| Pod start, 8 at once, p50 | 1.00 ms | 2.00 ms | 0.50 | ≤ 0.33 ✗ missed |" in first
    assert "| Pod start, 8 at once, p50 | 1.00 ms | 4.00 ms | 0.25 |  |" in second


def test_a_chart_draws_a_bar_for_every_value_and_escapes_its_words() -> None:
    bars = [chart.Bars(label="a < b", values=(1.0, 2.0)), chart.Bars(label="c", values=(3.0, None))]
    top = ET.fromstring(chart.draw("T & U", "ms", ("x", "y"), bars))  # noqa: S314  # our own
    found = [e for e in top.iter() if e.tag.endswith("rect") and e.get("rx")]
    assert len(found) == 3
    assert "a < b" in [e.text for e in top.iter()]


def test_the_pause_program_is_a_whole_elf_file() -> None:
    program = registry.pause_program()
    assert program[:4] == b"\x7fELF"
    assert len(program) == 64 + 56 + 9


def figures_of(samples: Samples) -> page.Figures:
    return page.Figures(
        rows=table.rows(samples),
        built_in=table.built_in_rows(samples),
        floor=table.floor_steps(samples),
        plugins=table.plugins_text(samples),
        policy="A decision takes 0.1 ms.",
    )


def every_sample() -> Samples:
    """One sample of everything, as a run leaves them: theirs takes twice as long."""
    samples = Samples()
    works = [f"{what} at {at}" for what in ("start", "rate", "remove") for at in (1, 8, 16)]
    works += [f"CPU of a {what} at {at}" for what in ("start", "removal") for at in (1, 8, 16)]
    works += [f"{what} at {pods} Pods" for what in ("PSS", "memory") for pods in (0, 50, 100)]
    works += ["ExecSync", "ListContainerStats", "ListPodSandbox", "ListContainers"]
    works += ["CPU a minute", "cold start", "start with seccomp"]
    for work in works:
        samples.add(work, OURS, 1.0)
        samples.add(work, THEIRS, 2.0)
    for step in (*STEPS, "floor"):
        samples.add(f"floor: {step}", "floor", 0.5)
    for step in (PLUGINS_ADD, PLUGINS_DEL):
        samples.add(f"floor: {step}", "floor", 0.25)
    return samples
