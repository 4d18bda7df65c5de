"""The table: which samples make which row, and what issue 5 aims at. Pure."""

from __future__ import annotations

from e2e.performance.figures import OURS, THEIRS, Row, Samples, median, percentile


def rows(samples: Samples) -> list[Row]:
    """Every row, in the table's order."""
    floor = median(samples.get("floor: floor", "floor"))
    made = [
        Row(
            work=f"Pod start, {at} at once, {name}",
            unit="ms",
            ours=percentile(samples.get(f"start at {at}", OURS), share),
            theirs=percentile(samples.get(f"start at {at}", THEIRS), share),
            aim=0.33,
            floor=floor if at == 1 and name == "p50" else None,
        )
        for at in (1, 8, 16)
        for name, share in (("p50", 0.5), ("p99", 0.99))
    ]
    made += [
        _row(samples, f"Pods started a second, {at} at once", f"rate at {at}", "1/s", 3.0)
        for at in (1, 8, 16)
    ]
    made += [
        _row(samples, f"stop and remove, {at} at once, p50", f"remove at {at}", "ms", 0.25)
        for at in (1, 8, 16)
    ]
    made += [
        _row(samples, f"memory (PSS), {pods} Pods", f"PSS at {pods} Pods", "MiB", aim)
        for pods, aim in ((0, 1.3), (50, 0.25), (100, 0.16))
    ]
    made += [
        _row(samples, "ExecSync true, 100 Pods, p50", "ExecSync", "ms", 0.7),
        _row(samples, "ListContainerStats, 100 Pods, p50", "ListContainerStats", "ms", 0.3),
        _limit(samples, "ListPodSandbox"),
        _limit(samples, "ListContainers"),
        _row(samples, "CPU a minute, 100 idle Pods", "CPU a minute", "ms", 0.7),
        _row(samples, "cold start, 100 Pods", "cold start", "ms", 0.8),
        _row(samples, "Pod start with RuntimeDefault seccomp, p50", "start with seccomp", "ms"),
    ]
    for what, name in (("start", "a start"), ("removal", "stop and remove")):
        made += [
            _row(samples, f"CPU time of {name}, {at} at once", f"CPU of a {what} at {at}", "ms")
            for at in (1, 8, 16)
        ]
    made += [
        _row(samples, f"memory, file pages whole, {pods} Pods", f"memory at {pods} Pods", "MiB")
        for pods in (0, 50, 100)
    ]
    return made


def floor_steps(samples: Samples) -> dict[str, float]:
    """The medians of the floor's steps, the sum last."""
    return {
        work.removeprefix("floor: "): median(by["floor"])
        for work, by in samples.of.items()
        if work.startswith("floor: ")
    }


def _row(samples: Samples, title: str, work: str, unit: str, aim: float | None = None) -> Row:
    ours, theirs = samples.median(work, OURS), samples.median(work, THEIRS)
    return Row(
        work=title, unit=unit, ours=ours, theirs=theirs, aim=aim, more_is_better=unit == "1/s"
    )


def _limit(samples: Samples, work: str) -> Row:
    ours, theirs = samples.median(work, OURS), samples.median(work, THEIRS)
    title = f"{work}, 100 Pods, p50"
    return Row(work=title, unit="ms", ours=ours, theirs=theirs, limit=2.0)
