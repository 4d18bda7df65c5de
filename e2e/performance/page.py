"""``docs/performance.md`` and its pictures, from one run. What people wrote in the page stays."""

from __future__ import annotations

import platform
import shutil
import subprocess
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from e2e.performance import chart
from e2e.performance.figures import OURS, THEIRS, Row, number
from e2e.performance.floor import STEPS

BEGIN: Final = "<!-- make bench writes from here -->"
END: Final = "<!-- to here -->"


@dataclass(frozen=True, slots=True, kw_only=True)
class Run:
    """Where and how it was measured."""

    mode: str
    oci_runtime: str
    machine: str
    versions: str


def describe(mode: str, oci_runtime: Path) -> Run:
    """Look at this machine."""
    memory = next(
        int(line.split()[1]) / 2**20
        for line in Path("/proc/meminfo").read_text().splitlines()
        if line.startswith("MemTotal")
    )
    cores = sum(
        line.startswith("processor") for line in Path("/proc/cpuinfo").read_text().splitlines()
    )
    words = subprocess.run([oci_runtime, "--version"], check=True, capture_output=True, text=True)
    conmon = subprocess.run(["conmon", "--version"], check=True, capture_output=True, text=True)
    return Run(
        mode=mode,
        oci_runtime=oci_runtime.name,
        machine=f"{cores} cores, {memory:.0f} GiB, Linux {platform.release()}",
        versions=f"containerd 2.4.2, {words.stdout.splitlines()[0]}, {conmon.stdout.splitlines()[0]}"
        f", Python {platform.python_version()}",
    )


def as_text(rows: Sequence[Row]) -> str:
    """The table for a terminal."""
    wide = max(len(row.work) for row in rows)
    lines = [f"{'':{wide}}  {OURS:>12} {THEIRS:>12} {'ratio':>7}  aim"]
    for row in rows:
        met = {True: "met", False: "MISSED", None: ""}[row.is_met]
        lines.append(
            f"{row.work:{wide}}  {number(row.ours):>8} {row.unit:3} {number(row.theirs):>8} {row.unit:3}"
            f" {row.ratio:7.2f}  {row.aim_text} {met}".rstrip()
        )
    return "\n".join(lines)


@dataclass(frozen=True, slots=True, kw_only=True)
class Figures:
    """What a run found.

    ``plugins``: a sentence about the CNI plugins' part in it; ``policy``: what a decision costs.
    """

    rows: Sequence[Row]
    built_in: Sequence[Row]
    floor: Mapping[str, float]
    plugins: str
    policy: str


def write(docs: Path, run: Run, figures: Figures) -> None:
    """Write the part between the marks, and the pictures."""
    rows = figures.rows
    page = docs / "performance.md"
    pictures = docs / "performance"
    pictures.mkdir(exist_ok=True)
    for name, text in charts(rows).items():
        (pictures / f"{name}.svg").write_text(text)
    before, _, rest = page.read_text().partition(BEGIN)
    after = rest.partition(END)[2]
    page.write_text(f"{before}{BEGIN}\n{_measured(run, figures)}\n{END}{after}")


def _measured(run: Run, figures: Figures) -> str:
    rows, floor = figures.rows, figures.floor
    lines = [
        f"Measured on {run.machine}, with {run.versions} ({run.mode} mode; OCI runtime of both: "
        f"{run.oci_runtime}).",
        "",
        "![Pod start](performance/start.svg)",
        "![Memory](performance/memory.svg)",
        "",
        *_table(rows),
    ]
    steps = ", ".join(f"{name} {number(floor[name])}" for name in STEPS)
    whole = floor.get("floor", 0.0)
    start = next(row.ours for row in rows if row.floor is not None)
    lines += [
        "",
        f"The floor (what the kernel and the OCI runtime cost alone): {number(whole)} ms "
        f"({steps}). A Pod start, one at a time, is {start / whole:.1f} times the floor; the aim is "
        "2.5 at most.",
        "",
        figures.plugins,
        "",
        figures.policy,
    ]
    if figures.built_in:
        lines += [
            "",
            f"With no CNI configuration on our side, {OURS} runs its own bridge network, and {THEIRS} the "
            "same plugins as above: another network, so no aim is judged by these.",
            "",
            *_table(figures.built_in),
        ]
    return "\n".join(lines)


def _table(rows: Sequence[Row]) -> list[str]:
    lines = [f"| work | {OURS} | {THEIRS} | ratio | aim |", "|---|---:|---:|---:|---|"]
    for row in rows:
        mark = {True: " ✓", False: " ✗ missed", None: ""}[row.is_met]
        lines.append(
            f"| {row.work} | {number(row.ours)} {row.unit} | {number(row.theirs)} {row.unit} "
            f"| {row.ratio:.2f} | {row.aim_text}{mark} |"
        )
    return lines


def charts(rows: Sequence[Row]) -> dict[str, str]:
    """The pictures by name."""
    starts = [row for row in rows if row.work.startswith("Pod start,")]
    weights = [row for row in rows if row.work.startswith("memory (PSS)")]
    return {
        "start": chart.draw(
            "Pod start: RunPodSandbox, CreateContainer, StartContainer",
            "ms",
            (OURS, THEIRS, "floor"),
            [
                chart.Bars(
                    label=row.work.removeprefix("Pod start, "),
                    values=(row.ours, row.theirs, row.floor),
                )
                for row in starts
            ],
        ),
        "memory": chart.draw(
            "Memory of everything but the workload",
            "MiB",
            (OURS, THEIRS),
            [
                chart.Bars(
                    label=row.work.removeprefix("memory (PSS), "), values=(row.ours, row.theirs)
                )
                for row in weights
            ],
        ),
    }


def which(name: str) -> Path:
    """A program of this machine; raises FileNotFoundError."""
    found = shutil.which(name)
    if found is None:
        raise FileNotFoundError(f"{name} is not installed: run make packages")
    return Path(found)
