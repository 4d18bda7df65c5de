"""Listing trees, to compare what two programs made of one image, and what a crash left."""

from __future__ import annotations

import os
import stat
import subprocess
from collections.abc import Generator, Sequence
from contextlib import contextmanager
from pathlib import Path


def listing(root: Path) -> dict[str, tuple[object, ...]]:
    """Everything that is to be the same, by path."""
    found: dict[str, tuple[object, ...]] = {}
    for path in sorted([root, *root.rglob("*")]):
        info = path.lstat()
        kind = stat.S_IFMT(info.st_mode)
        xattrs = {
            key: os.getxattr(path, key, follow_symlinks=False)
            for key in os.listxattr(path, follow_symlinks=False)
            if not key.startswith(("trusted.overlay.", "user.rootlesscontainers", "user.umoci"))
        }
        found[str(path.relative_to(root))] = (
            oct(info.st_mode),
            info.st_uid,
            info.st_gid,
            0 if kind == stat.S_IFDIR else info.st_size,
            info.st_mtime_ns,
            os.readlink(path) if kind == stat.S_IFLNK else "",  # noqa: PTH115
            info.st_rdev if kind in {stat.S_IFCHR, stat.S_IFBLK} else 0,
            xattrs,
            path.read_bytes() if kind == stat.S_IFREG else b"",
        )
    return found


def census(root: Path) -> set[tuple[str, str, int]]:
    """Names, modes and sizes of all below ``root`` (records hold times: not their size)."""
    return {
        (
            str(path.relative_to(root)),
            oct(path.lstat().st_mode),
            0 if path.is_dir() or path.suffix == ".json" else path.lstat().st_size,
        )
        for path in root.rglob("*")
    }


@contextmanager
def overlay(lowers: Sequence[Path], at: Path) -> Generator[Path, None, None]:
    """Mount layers (topmost first) read-only."""
    at.mkdir()
    if len(lowers) == 1:
        command = ["mount", "--bind", str(lowers[0]), str(at)]
    else:
        options = "ro,lowerdir=" + ":".join(map(str, lowers))
        command = ["mount", "-t", "overlay", "overlay", "-o", options, str(at)]
    subprocess.run(command, check=True)
    try:
        yield at
    finally:
        subprocess.run(["umount", str(at)], check=True)
