"""Mounts that a killed runtime leaves: its run_dir is a bind of itself, which ismount(3) misses."""

from __future__ import annotations

import subprocess
from pathlib import Path


def mounts_below(folder: Path) -> list[str]:
    """Return the mount points at and below ``folder``, the last made first."""
    lines = Path("/proc/self/mountinfo").read_text().splitlines()
    points = [line.split()[4].encode().decode("unicode_escape") for line in lines]
    return [p for p in reversed(points) if Path(p).is_relative_to(folder)]


def unmount_below(folder: Path) -> None:
    """Unmount all of it, also what is still used."""
    for point in mounts_below(folder):
        subprocess.run(("umount", "--lazy", point), check=False, capture_output=True)
