"""What a soak has seen, told while it goes on and at its end, and what of it must not be."""

from __future__ import annotations

import sys
from dataclasses import dataclass, field

from tests.root.probed_serve import Counts

SETTLES = 3  # a third of the series is left out: caches and pools fill with what comes first
# What differs from one look to the next without being kept: deadlines that have not come yet.
NOISE_OBJECTS = 400
NOISE_BLOCKS = 2500
NOISE_HEAP_KIB = 1200  # Python's table of interned strings doubles once, in the first hundreds
ENOUGH_CYCLES = 400  # over fewer, noise is all that is seen of memory
HEAP_KIB_A_CYCLE = 0.1
HEADER = "cycles  tasks threads fds watches objects  blocks  heap KiB  anon KiB  series"


@dataclass(slots=True)
class Report:
    """What happened. ``series`` is of one process that was left alone: (cycles, counts)."""

    cycles: int = 0
    started: int = 0
    runtime_kills: int = 0
    monitor_kills: int = 0
    network_failures: int = 0
    refused: int = 0
    internal: list[str] = field(default_factory=list[str])
    series: list[tuple[int, Counts]] = field(default_factory=list[tuple[int, Counts]])
    leftovers: list[str] = field(default_factory=list[str])

    def __str__(self) -> str:
        """Return it as lines, with the series as a table."""
        told = (
            f"{self.cycles} Pods, {self.started} of them ran; the runtime was killed "
            f"{self.runtime_kills} times, monitors {self.monitor_kills} times; the network failed "
            f"{self.network_failures} times; {self.refused} calls ended with an error"
        )
        return "\n".join([told, HEADER, *(row(*each) for each in self.series)])


def row(cycles: int, counts: Counts) -> str:
    """Return a line of the table."""
    return (
        f"{cycles:6} {counts.tasks:6} {counts.threads:7} {counts.descriptors:3} {counts.watches:7} "
        f"{counts.followed:7} {counts.blocks:7} {counts.heap_kib:9} {counts.rss_kib:9} "
        f"{counts.series:7}"
    )


def say(line: str) -> None:
    """Print a line now: a soak takes long."""
    sys.stdout.write(line + "\n")
    sys.stdout.flush()


def problems(report: Report) -> list[str]:
    """Return what must not be."""
    return [*report.leftovers, *report.internal, *growth(report.series)]


def growth(series: list[tuple[int, Counts]]) -> list[str]:
    """Return what is more at the end of the series than it was when it had settled."""
    settled = series[len(series) // SETTLES :]
    (first_cycles, first), (last_cycles, last) = settled[0], settled[-1]
    found = [
        f"{name} grew from {before} to {after}"
        for name, before, after, noise in (
            ("tasks", first.tasks, last.tasks, 0),
            ("threads", max(c.threads for _, c in series[:-1] or series), last.threads, 2),
            ("descriptors", first.descriptors, last.descriptors, 0),
            ("inotify watches", first.watches, last.watches, 0),
            ("lines of /metrics", first.series, last.series, 40),
            ("objects", first.followed, last.followed, NOISE_OBJECTS),
            ("blocks of memory", first.blocks, last.blocks, NOISE_BLOCKS),
        )
        if after > before + noise
    ]
    cycles = last_cycles - first_cycles
    allowed_kib = NOISE_HEAP_KIB + HEAP_KIB_A_CYCLE * cycles
    if cycles >= ENOUGH_CYCLES and last.heap_kib - first.heap_kib > allowed_kib:
        found.append(f"the heap grew from {first.heap_kib} to {last.heap_kib} KiB in {cycles} Pods")
    if found:
        more = {
            name: count - first.objects.get(name, 0)
            for name, count in last.objects.items()
            if count - first.objects.get(name, 0) > 10
        }
        found.append(f"objects that are more: {more}")
    return found
