import io
from pathlib import Path

import pytest

from e2e.cluster.progress import Progress, clock, time_left
from e2e.cluster.stages import Stage, run_stages

NEEDS: dict[str, tuple[str, ...]] = {"a": (), "b": ("a",), "c": ("a",), "d": ("b", "c")}
EXPECTED = {"a": 1.0, "b": 10.0, "c": 2.0, "d": 3.0}


@pytest.mark.parametrize(
    ("elapsed", "done", "left"),
    [
        pytest.param({}, frozenset[str](), 14.0, id="nothing done: the longest chain"),
        pytest.param({"b": 4.0}, frozenset({"a", "c"}), 9.0, id="what is at work counts the rest"),
        pytest.param({"b": 99.0}, frozenset({"a", "c"}), 3.0, id="over its time counts as ending"),
        pytest.param({}, frozenset(NEEDS), 0.0, id="all done"),
    ],
)
def test_the_time_left_is_the_longest_chain_of_unfinished_stages(
    elapsed: dict[str, float], done: frozenset[str], left: float
) -> None:
    assert time_left(NEEDS, EXPECTED, elapsed, done) == left


def test_a_clock_shows_minutes_and_seconds() -> None:
    assert [clock(5), clock(65.4), clock(-1)] == ["0:05", "1:05", "0:00"]


def progress_of(stages: list[Stage], folder: Path, out: io.StringIO) -> Progress:
    return Progress(
        {stage.name: stage.needs for stage in stages},
        {stage.name: stage.expected_s for stage in stages},
        folder / "timings.json",
        out,
    )


def test_stages_run_after_what_they_need_and_say_whether_something_changed(tmp_path: Path) -> None:
    order: list[str] = []

    def doing(name: str, *, changed: bool) -> bool:
        order.append(name)
        return changed

    stages = [
        Stage("last", lambda: doing("last", changed=False), ("first", "second")),
        Stage("second", lambda: doing("second", changed=True), ("first",)),
        Stage("first", lambda: doing("first", changed=False)),
    ]
    out = io.StringIO()

    progress = progress_of(stages, tmp_path, out)
    changed = run_stages(stages, progress)
    progress.close()

    assert order == ["first", "second", "last"]
    assert changed
    assert "first: nothing to do" in out.getvalue()
    assert "second: done in" in out.getvalue()


def test_a_failed_stage_starts_no_more_and_its_error_is_told(tmp_path: Path) -> None:
    ran: list[str] = []

    def fail() -> bool:
        raise RuntimeError("no disk")

    def note() -> bool:
        ran.append("after")
        return True

    stages = [
        Stage("broken", fail),
        Stage("after", note, ("broken",)),
    ]
    out = io.StringIO()

    with pytest.raises(RuntimeError, match="no disk"):
        run_stages(stages, progress_of(stages, tmp_path, out))

    assert ran == []
    assert "broken: failed" in out.getvalue()
    assert "after" not in out.getvalue()
