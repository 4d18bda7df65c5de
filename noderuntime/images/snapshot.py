"""The writable layer of each container: ``snapshots/ID/{upper,work,lowers.json}``.

``lowers.json`` (the chains of the image's layers) is written last; while it is there the layers stay,
also when their image is removed. A folder without it was cut off, or is damaged: which of the two,
only the engine can tell, who knows whether there is such a container. So it stays, and with it
every layer, until the engine lets it go.
Nothing here is fsynced, as nothing here outlives the container: after a power loss none runs, none
is started again, and what is lost then are the files of one that has ended (its overlay is volatile
too).
"""

from __future__ import annotations

import json
import logging
import os
import stat
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Final, cast

from noderuntime.errors import InvalidArgumentError
from noderuntime.images.content import PRIVATE
from noderuntime.images.layers import remove_tree
from noderuntime.images.reference import is_digest
from noderuntime.telemetry import metrics

MAX_ID: Final = 128
_LOWERS: Final = "lowers.json"
PRIVATE_FILE: Final = 0o600

_log = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True, kw_only=True)
class Usage:
    """What a tree takes on disk."""

    used_bytes: int
    inodes: int


class Snapshots:
    """The snapshots folder of one store."""

    def __init__(self, state_dir: Path) -> None:
        """Nothing is made until ``create``."""
        self._root = state_dir / "snapshots"
        self._chains: dict[str, tuple[str, ...]] = {}
        self._unknown: set[str] = set()  # snapshots on nobody knows which layers

    def create(self) -> None:
        """Make the folder."""
        self._root.mkdir(mode=PRIVATE, exist_ok=True)

    def recover(self) -> None:
        """Drop what was half removed; remember who uses which layers. Nothing else is removed."""
        self._chains.clear()
        self._unknown.clear()
        for path in self._root.iterdir():
            if not _is_id(path.name):
                remove_tree(path)
                continue
            chains = _chains_in(path)
            if chains is None:
                self._unknown.add(path.name)
                _set_aside(path / _LOWERS)
            else:
                self._chains[path.name] = chains

    def ids(self) -> tuple[str, ...]:
        """Return the containers that have one."""
        return (*self._chains, *self._unknown)

    def used(self) -> frozenset[str] | None:
        """Return the chains that containers stand on; None is that nobody knows which."""
        if self._unknown:
            return None
        return frozenset(chain for chains in self._chains.values() for chain in chains)

    def hold(self, container_id: str, chains: tuple[str, ...]) -> None:
        """Keep the layers from now on; ``make`` does the rest."""
        self._chains[container_id] = chains
        self._unknown.discard(container_id)

    def is_same(self, container_id: str, chains: tuple[str, ...]) -> bool:
        """Tell whether the container has a whole snapshot on these layers."""
        return self._chains.get(container_id) == chains and (
            _chains_in(self.folder(container_id)) == chains
        )

    def make(self, container_id: str, chains: Sequence[str], top: Path) -> None:
        """Make upper and work; upper gets the attributes of ``top``, the root folder below it."""
        folder = self.folder(container_id)
        remove_tree(folder)
        folder.mkdir(mode=PRIVATE)
        upper = folder / "upper"
        upper.mkdir(mode=0o755)
        (folder / "work").mkdir(mode=PRIVATE)
        found = top.stat()
        os.chown(upper, found.st_uid, found.st_gid)
        upper.chmod(stat.S_IMODE(found.st_mode))
        lowers = folder / _LOWERS
        lowers.touch(mode=PRIVATE_FILE)
        lowers.write_bytes(json.dumps(list(chains)).encode())

    def drop(self, container_id: str) -> None:
        """Remove it; nothing there is success."""
        folder = self.folder(container_id)
        aside = self._root / f".gone-{container_id}"
        remove_tree(aside)
        if folder.exists():
            folder.rename(aside)
            remove_tree(aside)

    def forget(self, container_id: str) -> None:
        """Let its layers go."""
        self._chains.pop(container_id, None)
        self._unknown.discard(container_id)

    def folder(self, container_id: str) -> Path:
        """Return the folder of a container; raises InvalidArgumentError for what is no ID."""
        if not _is_id(container_id):
            raise InvalidArgumentError(f"{ascii(container_id)[:200]} is not a container's ID")
        return self._root / container_id

    def upper(self, container_id: str) -> Path:
        """Return what the container writes to."""
        return self.folder(container_id) / "upper"

    def work(self, container_id: str) -> Path:
        """Return overlay's own folder."""
        return self.folder(container_id) / "work"


def usage_of(path: Path) -> Usage:
    """Count a tree that may change meanwhile; files with several links count once."""
    used_bytes = inodes = 0
    seen: set[int] = set()
    folders = [str(path)]
    while folders:
        try:
            entries = os.scandir(folders.pop())
        except OSError:
            continue  # gone meanwhile, or deeper than a name can say
        with entries:
            for entry in entries:
                try:
                    found = entry.stat(follow_symlinks=False)
                except OSError:
                    continue
                if found.st_nlink > 1 and not stat.S_ISDIR(found.st_mode):
                    if found.st_ino in seen:
                        continue
                    seen.add(found.st_ino)
                used_bytes += found.st_blocks * 512
                inodes += 1
                if stat.S_ISDIR(found.st_mode):
                    folders.append(entry.path)
    return Usage(used_bytes=used_bytes, inodes=inodes)


def _is_id(name: str) -> bool:
    plain = name.replace("-", "").replace("_", "")
    return plain.isalnum() and name.isascii() and len(name) <= MAX_ID


def _chains_in(folder: Path) -> tuple[str, ...] | None:
    try:
        document: object = json.loads((folder / _LOWERS).read_bytes())
    except (OSError, ValueError):
        return None
    chains = cast("list[object]", document) if isinstance(document, list) else []
    if not chains or not all(isinstance(c, str) and is_digest(c) for c in chains):
        return None
    return tuple(map(str, chains))


def _set_aside(file: Path) -> None:
    if not os.path.lexists(file):
        return  # cut off, or set aside before
    metrics.count_damaged_record("snapshot")
    _log.error("a snapshot's record is corrupted and was set aside", extra={"file": str(file)})
    with suppress(OSError):
        file.replace(file.with_name(file.name + ".corrupt"))
