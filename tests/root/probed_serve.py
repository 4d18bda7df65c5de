"""``noderuntime serve`` that says what it holds: on SIGUSR1 it counts itself into a file.

``python -m tests.root.probed_serve FILE serve ...``. The counts come from inside, as memory seen from
outside also holds what the allocator keeps for later.
"""

from __future__ import annotations

import ctypes
import gc
import json
import signal
import sys
import threading
from collections import Counter
from dataclasses import asdict, dataclass, field
from pathlib import Path

from noderuntime.cli.main import main

TOP = 400


@dataclass(frozen=True, slots=True, kw_only=True)
class Counts:
    """What a process holds. Objects are those that the collector follows, by class."""

    tasks: int
    threads: int
    descriptors: int
    watches: int  # inotify
    blocks: int  # of Python's allocator
    rss_kib: int  # anonymous memory, as the kernel counts it
    heap_kib: int  # of it what is in use in glibc's heap, without the gaps; mallinfo(3)
    series: int  # lines of /metrics
    followed: int  # objects, in all
    objects: dict[str, int] = field(default_factory=dict[str, int])


def count() -> Counts:
    """Count this process, after collecting what is garbage."""
    from noderuntime.telemetry import metrics

    for _ in range(3):
        gc.collect()
    objects = Counter(f"{type(o).__module__}.{type(o).__qualname__}" for o in gc.get_objects())
    rss_kib, heap = _rss_kib(), _heap()
    descriptors = tuple(Path("/proc/self/fdinfo").iterdir())
    return Counts(
        tasks=objects.get("_asyncio.Task", 0),
        threads=threading.active_count(),
        descriptors=len(descriptors),
        watches=sum(text.count("inotify wd:") for text in map(_read, descriptors)),
        blocks=sys.getallocatedblocks(),
        rss_kib=rss_kib,
        heap_kib=(heap.uordblks + heap.hblkhd) >> 10,
        series=len(metrics.render().splitlines()),
        followed=objects.total(),
        objects=dict(objects.most_common(TOP)),
    )


class _Heap(ctypes.Structure):
    """struct mallinfo2."""

    _fields_ = [  # as ctypes has it
        (name, ctypes.c_size_t)
        for name in "arena ordblks smblks hblks hblkhd usmblks fsmblks uordblks fordblks keep".split()
    ]


def _heap() -> _Heap:
    mallinfo2 = ctypes.CDLL(None).mallinfo2
    mallinfo2.restype = _Heap
    found: _Heap = mallinfo2()
    return found


def _rss_kib() -> int:
    lines = Path("/proc/self/smaps_rollup").read_text().splitlines()
    return next(int(line.split()[1]) for line in lines if line.startswith("Pss_Anon:"))


def _read(path: Path) -> str:
    try:
        return path.read_text()
    except OSError:  # closed meanwhile
        return ""


def write(file: Path) -> None:
    """Write the counts, whole or not at all."""
    part = file.with_suffix(".part")
    part.write_text(json.dumps(asdict(count())))
    part.rename(file)


if __name__ == "__main__":
    target = Path(sys.argv[1])
    signal.signal(signal.SIGUSR1, lambda *_: write(target))
    raise SystemExit(main(sys.argv[2:]))
