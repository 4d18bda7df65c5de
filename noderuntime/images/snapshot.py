"""The writable layer of each container: ``snapshots/ID/{upper,work,lowers.json}``.

``lowers.json`` (the chains of the image's layers) is written last, so a folder without it, or with half of
it, was cut off and is dropped; while it is there the layers stay, also when their image is removed.
Nothing here is fsynced, as nothing here outlives the container: after a power loss none runs, none is
started again, and what is lost then are the files of one that has ended (its overlay is volatile too).
"""

from __future__ import annotations

import json
import os
import stat
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Final, cast

from noderuntime.errors import InvalidArgumentError
from noderuntime.images.content import PRIVATE
from noderuntime.images.layers import remove_tree

MAX_ID: Final = 128
PRIVATE_FILE: Final = 0o600


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

    def create(self) -> None:
        """Make the folder."""
        self._root.mkdir(mode=PRIVATE, exist_ok=True)

    def recover(self) -> None:
        """Drop what was cut off; remember who uses which layers."""
        self._chains.clear()
        for path in self._root.iterdir():
            chains = _chains_in(path)
            if chains is None:
                remove_tree(path)
            else:
                self._chains[path.name] = chains

    def ids(self) -> tuple[str, ...]:
        """Return the containers that have one."""
        return tuple(self._chains)

    def used(self) -> frozenset[str]:
        """Return the chains that containers stand on."""
        return frozenset(chain for chains in self._chains.values() for chain in chains)

    def hold(self, container_id: str, chains: tuple[str, ...]) -> None:
        """Keep the layers from now on; ``make`` does the rest."""
        self._chains[container_id] = chains

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
        lowers = folder / "lowers.json"
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

    def folder(self, container_id: str) -> Path:
        """Return the folder of a container; raises InvalidArgumentError for what is no ID."""
        if not container_id.replace("-", "").replace("_", "").isalnum() or not (
            container_id.isascii() and len(container_id) <= MAX_ID
        ):
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


def _chains_in(folder: Path) -> tuple[str, ...] | None:
    if folder.name.startswith("."):
        return None
    try:
        document: object = json.loads((folder / "lowers.json").read_bytes())
    except (OSError, ValueError):
        return None
    if not isinstance(document, list):
        return None
    return tuple(str(chain) for chain in cast("list[object]", document))
