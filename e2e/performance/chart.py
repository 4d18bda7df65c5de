"""Bars as SVG, written by hand: one picture for light and dark pages. Pure."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from html import escape
from typing import Final

from e2e.performance.figures import number

WIDTH: Final = 720
LABEL: Final = 230
BAR: Final = 14
STEP: Final = 44
TOP: Final = 52
COLOURS: Final = ("#2f6fde", "#9aa3ad", "#e0a526")


@dataclass(frozen=True, slots=True, kw_only=True)
class Bars:
    """One group: a label, and a value for each series (None: no bar)."""

    label: str
    values: tuple[float | None, ...]


def draw(title: str, unit: str, series: Sequence[str], groups: Sequence[Bars]) -> str:
    """A chart with one group of bars a line; each group has a scale of its own where it needs one."""
    height = TOP + STEP * len(groups) + 12
    largest = max(value for group in groups for value in group.values if value is not None)
    room = WIDTH - LABEL - 90
    parts = [
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {WIDTH} {height}" role="img"'
        f' aria-label="{escape(title)}" font-family="sans-serif" font-size="12">',
        "<style>text{fill:#24292f}@media(prefers-color-scheme:dark){text{fill:#d0d7de}}</style>",
        f'<text x="8" y="20" font-size="15" font-weight="bold">{escape(title)}</text>',
    ]
    for index, name in enumerate(series):
        x = LABEL + index * 130
        parts.append(f'<rect x="{x}" y="30" width="10" height="10" fill="{COLOURS[index]}"/>')
        parts.append(f'<text x="{x + 15}" y="39">{escape(name)}</text>')
    for line, group in enumerate(groups):
        y = TOP + line * STEP
        parts.append(
            f'<text x="{LABEL - 8}" y="{y + 18}" text-anchor="end">{escape(group.label)}</text>'
        )
        there = [(i, value) for i, value in enumerate(group.values) if value is not None]
        thin = BAR if len(there) <= 2 else 10
        for place, (index, value) in enumerate(there):
            width = max(1.0, value / largest * room)
            top = y + place * (thin + 1)
            parts.append(
                f'<rect x="{LABEL}" y="{top}" width="{width:.1f}" height="{thin}" rx="2"'
                f' fill="{COLOURS[index]}"/>'
            )
            parts.append(
                f'<text x="{LABEL + width + 6:.1f}" y="{top + thin - 2}" font-size="11">'
                f"{number(value)} {escape(unit)}</text>"
            )
    parts.append("</svg>")
    return "\n".join(parts) + "\n"
