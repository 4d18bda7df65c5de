"""What was made, written down before it is made.

``.cluster/state.json`` holds one entry for each thing with the kind of its undo. Entries are
appended under a lock and the file is replaced atomically and synced, so it is whole whenever
``up`` is cut off. An entry may be there for a thing that was never made: undoing is idempotent.
"""

from __future__ import annotations

import fcntl
import json
import os
import threading
from collections.abc import Generator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, cast

Entry = dict[str, Any]  # "kind" and what its undo needs; JSON at the edge


class ClusterError(Exception):
    """The cluster cannot be made or removed; the text says what to do."""


class State:
    """The list of things that were made, on disk."""

    def __init__(self, path: Path) -> None:
        self._path = path
        self._lock = threading.Lock()
        self.entries: list[Entry] = []
        self.facts: dict[str, Any] = {}
        if path.exists():
            try:
                content = cast("dict[str, Any]", json.loads(path.read_text()))
            except ValueError as error:
                raise ClusterError(f"{path} is not readable: {error}") from error
            self.entries = content["entries"]
            self.facts = content["facts"]

    def record(self, kind: str, **values: object) -> Entry:
        """Write down that a thing is about to be made; the same thing twice is one entry."""
        entry: Entry = {"kind": kind, **values}
        with self._lock:
            for known in self.entries:
                if known == entry:
                    return known
            self.entries.append(entry)
            self._write()
        return entry

    def update(self, entry: Entry, **values: object) -> None:
        """Add what is known only after the thing was made."""
        with self._lock:
            entry.update(values)
            self._write()

    def forget(self, entry: Entry) -> None:
        """The thing is undone."""
        with self._lock:
            self.entries.remove(entry)
            self._write()

    def find(self, kind: str, **values: object) -> Entry | None:
        """The entry of a thing, if it was recorded."""
        wanted = {"kind": kind, **values}
        for entry in self.entries:
            if wanted.items() <= entry.items():
                return entry
        return None

    def set_fact(self, name: str, *, value: object) -> None:
        """Remember something about the whole cluster, e.g. that tracing is on."""
        if self.facts.get(name) == value:
            return
        with self._lock:
            self.facts[name] = value
            self._write()

    def remove(self) -> None:
        """Everything is undone: drop the file."""
        self._path.unlink(missing_ok=True)

    def _write(self) -> None:
        self._path.parent.mkdir(parents=True, exist_ok=True)
        beside = self._path.with_suffix(".new")
        with beside.open("w") as file:
            json.dump({"entries": self.entries, "facts": self.facts}, file, indent=1)
            file.flush()
            os.fsync(file.fileno())
        beside.replace(self._path)


@contextmanager
def locked(root: Path) -> Generator[None]:
    """One up or down at a time; the kernel drops the lock when the process dies."""
    root.mkdir(parents=True, exist_ok=True)
    root.chmod(0o711)
    with (root / "lock").open("w") as file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            raise ClusterError(
                f"another up or down is at work in {root}: wait for it, or end it"
            ) from None
        yield
