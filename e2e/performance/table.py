"""The table: which samples make which row, and what issue 5 aims at. Pure."""

from __future__ import annotations

from e2e.performance.figures import OURS, THEIRS, Row, Samples, median, number, percentile
from e2e.performance.floor import PLUGINS_ADD, PLUGINS_DEL


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


def built_in_rows(samples: Samples) -> list[Row]:
    """Ours on its own bridge network beside containerd on the plugins; none where it was not run."""
    if not samples.get("start at 1, built-in network", OURS):
        return []
    works = (
        ("Pod start, {} at once, p50", "start at {}", "ms"),
        ("Pods started a second, {} at once", "rate at {}", "1/s"),
        ("stop and remove, {} at once, p50", "remove at {}", "ms"),
        ("CPU time of a start, {} at once", "CPU of a start at {}", "ms"),
        ("CPU time of stop and remove, {} at once", "CPU of a removal at {}", "ms"),
    )
    return [
        _row(samples, title.format(at), f"{work.format(at)}, built-in network", unit)
        for title, work, unit in works
        for at in (1, 8, 16)
    ]


def plugins_text(samples: Samples) -> str:
    """What of a start and of a removal, one at a time, the CNI plugins are, on either side."""
    steps = floor_steps(samples)
    add, delete = steps[PLUGINS_ADD], steps[PLUGINS_DEL]
    floor = add + steps["create"] + steps["start"]
    start = {who: samples.median("start at 1", who) for who in (OURS, THEIRS)}
    remove = {who: samples.median("remove at 1", who) for who in (OURS, THEIRS)}
    shares = {who: (add / start[who], delete / remove[who]) for who in (OURS, THEIRS)}
    return (
        f"The floor with the CNI plugins (a network namespace, the same chain's ADD, create and start, "
        f"with no node runtime): {number(floor)} ms, of which the namespace and the ADD are "
        f"{number(add)}. A Pod start, one at a time, is {start[OURS] / floor:.1f} times that with "
        f"{OURS} and {start[THEIRS] / floor:.1f} times with {THEIRS}. The plugins are "
        f"{shares[OURS][0]:.0%} of a start with {OURS} and {shares[THEIRS][0]:.0%} with {THEIRS}; their "
        f"DEL ({number(delete)} ms) is {shares[OURS][1]:.0%} and {shares[THEIRS][1]:.0%} of a stop and "
        "remove."
    )


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
