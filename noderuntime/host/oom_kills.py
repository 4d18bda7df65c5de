"""OOM kills of containers whose cgroup is gone before anyone could ask it, as under systemd.

systemd takes a scope away as soon as its last process has ended, and with it the count. The slice
above stays, and cgroup v2 counts there what happened below. So the kills of a container that has
ended are those of the slice, less those of the scopes that live and those given to earlier ones.
Source: memory.events in Documentation/admin-guide/cgroup-v2.rst of the kernel.
"""

from __future__ import annotations

import threading
from dataclasses import dataclass, field
from pathlib import Path
from typing import Final

from noderuntime.host.cgroup_files import table

_TRIES: Final = 3


@dataclass(slots=True)
class _Slice:
    """``given``: kills that are accounted for; ``ended``: scopes that were asked for, and theirs.

    A slice that is made again has another inode, and counts from 0.
    """

    inode: int
    given: int = 0
    ended: dict[str, int] = field(default_factory=dict[str, int])


class OomKills:
    """The counts of one v2 hierarchy. All calls block, and may come from any thread."""

    def __init__(self, root: Path) -> None:
        """``root`` is the mount point."""
        self._root = root
        self._lock = threading.Lock()
        self._slices: dict[str, _Slice] = {}

    def begin(self, relative: str) -> None:
        """Take note of a scope that is about to run: what was counted before is not its own."""
        name = relative.rpartition("/")[0]
        with self._lock:
            inode = _inode(self._root / name)
            one = self._slices.get(name)
            if one is not None and one.inode == inode:
                return
            for known in [x for x in self._slices if not (self._root / x).is_dir()]:
                del self._slices[known]
            one = self._slices[name] = _Slice(inode)
            one.given = self._unaccounted(name, one, "")

    def of(self, relative: str) -> int:
        """Return the kills in a scope that has ended; 0 where its slice is not known or gone."""
        name, _, scope = relative.rpartition("/")
        with self._lock:
            one = self._slices.get(name)
            if one is None or one.inode not in {0, _inode(self._root / name)}:
                return _kills(self._root / relative)
            if scope not in one.ended:
                one.ended[scope] = max(self._unaccounted(name, one, scope), 0)
                one.given += one.ended[scope]
            return one.ended[scope]

    def _unaccounted(self, name: str, one: _Slice, scope: str) -> int:
        """Count the slice's kills that belong neither to a scope that lives nor to an ended one."""
        total = found = 0
        for _ in range(_TRIES):  # again if one more came between the readings
            total = _kills(self._root / name)
            living = sum(
                _kills(folder)
                for folder in (self._root / name).glob("*.scope")
                if folder.name != scope and folder.name not in one.ended
            )
            found = total - living - one.given
            if _kills(self._root / name) == total:
                break
        return found


def _inode(folder: Path) -> int:
    """Return 0 for what is not there: the slice may come with its first scope."""
    try:
        return folder.stat().st_ino
    except FileNotFoundError:
        return 0


def _kills(folder: Path) -> int:
    return table(folder / "memory.events").get("oom_kill", 0)
