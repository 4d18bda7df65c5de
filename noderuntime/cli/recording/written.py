"""What was written: below a container's root, by its writable layer; below a path of the node, by time.

The writable layer of overlayfs has each file that was changed, made, removed or opened for writing,
and each folder that something was made in or removed from. overlayfs.rst of the kernel.
"""

from __future__ import annotations

import os
import stat
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Final

Listing = Mapping[str, tuple[int, int]]
"""Paths below a folder, "" for itself, each with inode number and time of the last change in ns."""

MOST: Final = 50_000  # entries that are looked at


def listing(folder: Path) -> Listing:
    """Return what there is; without what is removed meanwhile, and of more than MOST a part."""
    found: dict[str, tuple[int, int]] = {}
    for path, status in _walk(folder):
        found[path] = (status.st_ino, status.st_ctime_ns)
        if len(found) >= MOST:
            break
    return found


def changes(before: Listing, after: Listing) -> tuple[str, ...]:
    """Return the paths that are new or changed, each with a leading "/"; of files, not their folders."""
    changed = {path for path, state in after.items() if before.get(path) != state}
    changed |= before.keys() - after.keys()
    above = {parent for path in changed for parent in _parents(path)}
    return tuple(sorted(f"/{path}" for path in changed - above))


def is_changed_since(path: Path, when_ns: int) -> bool | None:
    """Tell whether something at or below ``path`` changed since (of the epoch), by whomever.

    None where there is too much to look at.
    """
    for number, (_, status) in enumerate(_walk(path)):
        if status.st_ctime_ns >= when_ns:
            return True
        if number >= MOST:
            return None
    return False


def _parents(path: str) -> Iterator[str]:
    while path:
        path = path.rpartition("/")[0]
        yield path


def _walk(folder: Path) -> Iterator[tuple[str, os.stat_result]]:
    """Yield what is below, on the same file system, and the folder itself; links are not followed."""
    try:
        top = folder.lstat()
    except OSError:
        return
    yield "", top
    pending = [""] if stat.S_ISDIR(top.st_mode) else []
    while pending:
        relative = pending.pop()
        try:
            entries = list(os.scandir(folder / relative))
        except OSError:
            continue
        for entry in entries:
            try:
                status = entry.stat(follow_symlinks=False)
            except OSError:
                continue
            if status.st_dev != top.st_dev:
                continue
            path = f"{relative}/{entry.name}".lstrip("/")
            yield path, status
            if stat.S_ISDIR(status.st_mode):
                pending.append(path)
