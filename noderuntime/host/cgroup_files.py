"""The formats that files of a cgroup have. A file that is not there reads as nothing.

A controller may not be enabled, the kernel may be older, and the cgroup may go right now.
Source: Documentation/admin-guide/cgroup-v1 and cgroup-v2.rst of the kernel, PSI in
Documentation/accounting/psi.rst.
"""

from __future__ import annotations

import os
from collections.abc import Mapping
from pathlib import Path


def _text(file: Path) -> str:
    try:
        return file.read_text()
    except OSError:
        return ""


def number(file: Path) -> int:
    """Return a file's one number; 0 for ``max`` as well."""
    text = _text(file).strip()
    return int(text) if text.isdigit() else 0


def table(file: Path) -> Mapping[str, int]:
    """Return lines of a name and a number."""
    pairs = (line.split() for line in _text(file).splitlines())
    return {pair[0]: int(pair[1]) for pair in pairs if len(pair) == 2 and pair[1].isdigit()}


def words(file: Path) -> tuple[str, ...]:
    """Return a file's words."""
    return tuple(_text(file).split())


def members(directory: Path) -> tuple[int, ...]:
    """Return the PIDs in a cgroup and in those below it."""
    # Not Path.glob, which raises when a folder goes while it is walked.
    files = (Path(folder) / "cgroup.procs" for folder, _, _ in os.walk(directory))
    return tuple({int(pid): None for file in files for pid in _text(file).split()})


def named(directory: Path, beginning: str, end: str) -> tuple[Path, ...]:
    """Return the files whose names begin and end so, sorted."""
    try:
        found = sorted(directory.iterdir())
    except OSError:
        return ()
    return tuple(f for f in found if f.name.startswith(beginning) and f.name.endswith(end))


def by_device(file: Path) -> Mapping[str, Mapping[str, int]]:
    """Return ``MAJOR:MINOR`` -> name -> number, of v2's ``io.stat`` and v1's ``blkio.*``."""
    found: dict[str, dict[str, int]] = {}
    for line in _text(file).splitlines():
        device, *words = line.split()
        if ":" not in device:
            continue  # v1's Total
        pairs = [word.split("=") for word in words] if "=" in line else [words]
        for pair in pairs:
            if len(pair) == 2 and pair[1].isdigit():
                found.setdefault(device, {})[pair[0]] = int(pair[1])
    return found


def pressure_us(file: Path) -> Mapping[str, int]:
    """Return ``some`` and ``full`` -> microseconds that tasks were stalled in all; PSI."""
    found: dict[str, int] = {}
    for line in _text(file).splitlines():
        kind, *pairs = line.split()
        values = dict(pair.split("=", 1) for pair in pairs if "=" in pair)
        if values.get("total", "").isdigit():
            found[kind] = int(values["total"])
    return found
