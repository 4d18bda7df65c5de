"""What a person sees while the cluster comes up.

On a terminal: a line for each finished stage and, below, one moving line with what is at work and
the time left, judged from the last run's timings. Without a terminal: plain log lines.
"""

from __future__ import annotations

import json
import shutil
import sys
import threading
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Final, TextIO

TICK_S: Final = 0.25


def clock(seconds: float) -> str:
    """Seconds as a person reads them."""
    whole = max(0, round(seconds))
    return f"{whole // 60}:{whole % 60:02d}"


def time_left(
    needs: Mapping[str, tuple[str, ...]],
    expected_s: Mapping[str, float],
    elapsed_s: Mapping[str, float],
    done: frozenset[str],
) -> float:
    """The longest chain of unfinished stages in seconds; a stage over its time counts as ending."""
    known: dict[str, float] = {}

    def until(stage: str) -> float:
        if stage in done:
            return 0.0
        if stage not in known:
            own = max(0.0, expected_s.get(stage, 1.0) - elapsed_s.get(stage, 0.0))
            known[stage] = own + max((until(need) for need in needs[stage]), default=0.0)
        return known[stage]

    return max((until(stage) for stage in needs), default=0.0)


class Progress:
    """Told when stages start and end; draws from a thread of its own on a terminal."""

    def __init__(
        self,
        needs: Mapping[str, tuple[str, ...]],
        expected_s: Mapping[str, float],
        timings: Path,
        out: TextIO = sys.stdout,
    ) -> None:
        self._needs = needs
        self._timings = timings
        self._expected = dict(expected_s) | _read(timings)
        self._out = out
        self._terminal = out.isatty()
        self._lock = threading.Lock()
        self._started: dict[str, float] = {}
        self._notes: dict[str, str] = {}
        self._took: dict[str, float] = {}
        self._begun = time.monotonic()
        self._stop = threading.Event()
        self._painter = threading.Thread(target=self._paint, daemon=True)
        if self._terminal:
            self._painter.start()

    def start(self, stage: str) -> None:
        with self._lock:
            self._started[stage] = time.monotonic()
            if not self._terminal:
                self._line(f"{stage}: started")

    def note(self, stage: str, text: str) -> None:
        """What the stage is doing now."""
        with self._lock:
            self._notes[stage] = text
            if not self._terminal:
                self._line(f"{stage}: {text}")

    def finish(self, stage: str, *, changed: bool = True) -> None:
        with self._lock:
            took = time.monotonic() - self._started.pop(stage)
            self._took[stage] = took
            if changed:
                self._expected[stage] = took
            word = f"done in {took:.1f} s" if changed else "nothing to do"
            self._line(f"{stage}: {word}")

    def fail(self, stage: str) -> None:
        with self._lock:
            self._started.pop(stage, None)
            self._line(f"{stage}: failed")

    def close(self) -> float:
        """Stop drawing, keep the timings; returns the whole time in seconds."""
        self._stop.set()
        if self._terminal:
            self._painter.join()
            self._out.write("\r\033[K")
            self._out.flush()
        if self._timings.parent.is_dir():
            kept = {stage: round(took, 2) for stage, took in self._expected.items()}
            self._timings.write_text(json.dumps(kept, indent=1))
        return time.monotonic() - self._begun

    def _line(self, text: str) -> None:
        if self._terminal:
            self._out.write(f"\r\033[K  {text}\n")
        else:
            self._out.write(f"{time.strftime('%H:%M:%S')} {text}\n")
        self._out.flush()

    def _paint(self) -> None:
        while not self._stop.wait(TICK_S):
            with self._lock:
                self._out.write("\r\033[K" + self._moving_line())
                self._out.flush()

    def _moving_line(self) -> str:
        now = time.monotonic()
        elapsed = {stage: now - begun for stage, begun in self._started.items()}
        left = time_left(self._needs, self._expected, elapsed, frozenset(self._took))
        work = ", ".join(
            f"{stage} ({self._notes[stage]})" if stage in self._notes else stage
            for stage in self._started
        )
        head = f"[{len(self._took)}/{len(self._needs)}] about {clock(left)} left: "
        return (head + work)[: shutil.get_terminal_size().columns - 1]


def _read(timings: Path) -> dict[str, float]:
    try:
        return {str(k): float(v) for k, v in json.loads(timings.read_text()).items()}
    except (OSError, ValueError):
        return {}
