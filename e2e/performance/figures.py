"""Samples to figures: medians, percentiles, ratios. Pure."""

from __future__ import annotations

import statistics
from collections.abc import Sequence
from dataclasses import dataclass, field

OURS = "noderuntime"
THEIRS = "containerd"


def percentile(samples: Sequence[float], share: float) -> float:
    """The smallest sample that at least ``share`` (0 to 1) of all are not above."""
    ordered = sorted(samples)
    return ordered[max(0, min(len(ordered) - 1, -(-len(ordered) * share // 1).__int__() - 1))]


def median(samples: Sequence[float]) -> float:
    return statistics.median(samples)


@dataclass(frozen=True, slots=True, kw_only=True)
class Row:
    """One line of the table. ``aim`` is the ratio ours to theirs that is wanted."""

    work: str
    unit: str
    ours: float
    theirs: float
    aim: float | None = None
    more_is_better: bool = False
    limit: float | None = None  # an aim that is not a ratio: ours in ``unit``
    floor: float | None = None

    @property
    def ratio(self) -> float:
        return self.ours / self.theirs if self.theirs else float("inf")

    @property
    def is_met(self) -> bool | None:
        """Whether the aim is reached; None where there is none."""
        if self.limit is not None:
            return self.ours <= self.limit
        if self.aim is None:
            return None
        return self.ratio >= self.aim if self.more_is_better else self.ratio <= self.aim

    @property
    def aim_text(self) -> str:
        if self.limit is not None:
            return f"≤ {self.limit:g} {self.unit}"
        if self.aim is None:
            return ""
        return f"{'≥' if self.more_is_better else '≤'} {self.aim:g}"


@dataclass(slots=True)
class Samples:
    """What was measured, by work and by who did it."""

    of: dict[str, dict[str, list[float]]] = field(default_factory=dict[str, dict[str, list[float]]])

    def add(self, work: str, who: str, *values: float) -> None:
        self.of.setdefault(work, {}).setdefault(who, []).extend(values)

    def get(self, work: str, who: str) -> list[float]:
        return self.of.get(work, {}).get(who, [])

    def median(self, work: str, who: str) -> float:
        return median(self.get(work, who))


def number(value: float) -> str:
    """Three figures that mean something."""
    if value >= 100:
        return f"{value:,.0f}"
    return f"{value:.1f}" if value >= 10 else f"{value:.2f}"
