"""What a soak takes for growth, and what for noise."""

from __future__ import annotations

from dataclasses import replace

import pytest

from tests.root.probed_serve import Counts, count
from tests.root.soak_report import Report, growth, problems

FLAT = Counts(
    tasks=3,
    threads=18,
    descriptors=22,
    watches=2,
    blocks=225_000,
    rss_kib=38_000,
    heap_kib=12_400,
    series=420,
    followed=1_500,
    objects={"builtins.dict": 300},
)


def series(last: Counts) -> list[tuple[int, Counts]]:
    return [*((cycles, FLAT) for cycles in range(0, 900, 100)), (1_000, last)]


def test_a_flat_series_is_no_problem() -> None:
    noisy = replace(FLAT, followed=1_700, blocks=226_000, heap_kib=12_500, rss_kib=39_000)
    assert problems(Report(series=series(noisy))) == []
    assert str(Report(series=series(noisy))).count("\n") == 11


@pytest.mark.parametrize(
    "last",
    [
        pytest.param(replace(FLAT, tasks=4), id="tasks"),
        pytest.param(replace(FLAT, descriptors=23), id="descriptors"),
        pytest.param(replace(FLAT, watches=3), id="inotify watches"),
        pytest.param(replace(FLAT, threads=30), id="threads"),
        pytest.param(replace(FLAT, followed=2_500), id="objects"),
        pytest.param(replace(FLAT, blocks=235_000), id="blocks of memory"),
        pytest.param(replace(FLAT, heap_kib=14_400), id="the heap"),
        pytest.param(replace(FLAT, series=1_420), id="lines of /metrics"),
    ],
)
def test_what_grows_is_named(last: Counts, request: pytest.FixtureRequest) -> None:
    found = growth(series(last))
    assert found[0].startswith(f"{request.node.callspec.id} grew from ")


@pytest.mark.slow
def test_a_process_counts_itself() -> None:
    found = count()
    assert min(found.threads, found.descriptors, found.blocks, found.rss_kib, found.heap_kib) > 0
    assert found.followed >= sum(found.objects.values()) > 0
