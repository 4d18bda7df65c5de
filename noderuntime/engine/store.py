"""The records of all sandboxes and containers: JSON files, with a picture of them in memory.

What always holds: a record is on disk (fsynced, renamed into place) before memory shows it (but
for ``put_end``), and gone from disk before memory forgets it. A file that cannot be read becomes ``ID.json.corrupt``;
what it said of an object that is here comes from a copy beside the object itself, in ``run_dir``.
"""

from __future__ import annotations

import logging
from bisect import bisect_left, insort
from collections.abc import Callable, Hashable
from pathlib import Path
from typing import Generic, Protocol, TypeVar

from pydantic import TypeAdapter

from noderuntime.engine.disk import NO_ROOM, Disk
from noderuntime.engine.state import ContainerRecord, SandboxRecord
from noderuntime.errors import HostError, NodeRuntimeError, NotFoundError
from noderuntime.telemetry import metrics

_log = logging.getLogger(__name__)

SUFFIX = ".json"
COPY = "record.json"


class Record(Protocol):
    """What a table keeps: anything with an ID."""

    @property
    def id(self) -> str:
        """64 hexadecimal digits."""
        ...


R = TypeVar("R", bound=Record)


class Table(Generic[R]):
    """The records of one kind. Callers hold the object's lock while they replace its record."""

    def __init__(
        self,
        kind: str,
        directory: Path,
        adapter: TypeAdapter[R],
        name_of: Callable[[R], Hashable],
        disk: Disk,
        *,
        copies: Path | None = None,
    ) -> None:
        """Keep ``name_of(record)`` as a second, unique key, and copies in ``copies/ID``."""
        self._kind = kind
        self._directory = directory
        self._adapter = adapter
        self._name_of = name_of
        self._disk = disk
        self._copies = copies
        self._records: dict[str, R] = {}
        self._ids: list[str] = []
        self._unwritten: set[str] = set()
        self._names: dict[Hashable, str] = {}
        self._watchers: list[Callable[[R | None, R | None], None]] = []

    def watch(self, changed: Callable[[R | None, R | None], None]) -> None:
        """Call ``changed(before, now)`` after each change; None is 'not there'. Not for ``load``."""
        self._watchers.append(changed)

    async def load(self) -> tuple[str, ...]:
        """Read the folder; return the IDs whose files were corrupted and have been set aside."""
        corrupted: list[str] = []
        for file in await self._disk.open_folder(self._directory):
            record_id = file.name.removesuffix(SUFFIX)
            try:
                record = await self._read(file, record_id)
            except (NodeRuntimeError, ValueError) as error:
                await self._disk.set_aside(file)
                metrics.count_damaged_record(self._kind)
                copied = await self._from_copy(record_id)
                if copied is None:
                    corrupted.append(record_id)
                _log.error(
                    "a record is corrupted and was set aside",
                    extra={
                        "file": str(file),
                        "error": " ".join(str(error).split()),
                        "copy_is_used": copied is not None,
                    },
                )
                if copied is not None:
                    await self.put_end(copied)
            else:
                self._remember(record)
        return tuple(corrupted)

    async def _read(self, file: Path, record_id: str) -> R:
        record = self._adapter.validate_json(await self._disk.read(file))
        if record.id != record_id:
            raise ValueError(f"holds the record of {record.id}")
        return record

    async def _from_copy(self, record_id: str) -> R | None:
        """Return the record as it was last written beside the object; None where there is none."""
        if self._copies is None:
            return None
        try:
            return await self._read(self._copies / record_id / COPY, record_id)
        except (NodeRuntimeError, ValueError):
            return None

    def get(self, record_id: str) -> R | None:
        """Find by the whole ID."""
        return self._records.get(record_id)

    def find(self, prefix: str) -> R | None:
        """Find by ID or unique prefix, or None. Raises NotFoundError if it is ambiguous."""
        record = self._records.get(prefix)
        if record is not None or not prefix:
            return record
        at = bisect_left(self._ids, prefix)
        found = [key for key in self._ids[at : at + 2] if key.startswith(prefix)]
        if len(found) > 1:
            raise NotFoundError(f"{self._kind} {prefix} is ambiguous; give more of its ID")
        return self._records[found[0]] if found else None

    def require(self, prefix: str) -> R:
        """Find by ID or unique prefix; raises NotFoundError."""
        record = self.find(prefix)
        if record is None:
            raise NotFoundError(f"{self._kind} {prefix or '(empty ID)'} is not there")
        return record

    def named(self, name: Hashable) -> R | None:
        """Find by the second key."""
        found = self._names.get(name)
        return None if found is None else self._records[found]

    def all(self) -> tuple[R, ...]:
        """Return every record, by ID."""
        return tuple(self._records[key] for key in self._ids)

    async def put(self, record: R) -> None:
        """Write the record, then show it."""
        data = self._adapter.dump_json(record)
        copy = None if self._copies is None else self._copies / record.id / COPY
        await self._disk.write(self._file(record.id), data, copy=copy)
        self._unwritten.discard(record.id)
        before = self._records.get(record.id)
        self._remember(record)
        self._tell(before, record)

    async def put_end(self, record: R) -> None:
        """Like ``put``; where the disk takes nothing, show the record now and write it later.

        Only for what a restart finds out again from the node: that something has ended. A node
        whose disk is full must be able to end Pods, since that is what makes room.
        """
        try:
            await self.put(record)
        except HostError as error:
            if error.errno not in NO_ROOM:
                raise
            _log.warning(
                "a record cannot be written now; it is written when there is room",
                extra={"kind": self._kind, "id": record.id, "error": str(error)},
            )
            self._unwritten.add(record.id)
            before = self._records.get(record.id)
            self._remember(record)
            self._tell(before, record)

    def unwritten(self) -> tuple[str, ...]:
        """Return the IDs of the records that ``put_end`` could only show."""
        return tuple(self._unwritten)

    async def flush(self, record_id: str) -> None:
        """Write a record that could not be written, as it is now."""
        record = self._records.get(record_id)
        if record is not None and record_id in self._unwritten:
            await self.put_end(record)

    async def drop(self, record_id: str) -> None:
        """Remove the record; unknown is success."""
        await self._disk.remove(self._file(record_id))
        self._unwritten.discard(record_id)
        record = self._records.pop(record_id, None)
        if record is not None:
            del self._ids[bisect_left(self._ids, record_id)]
            if self._names.get(self._name_of(record)) == record_id:
                del self._names[self._name_of(record)]
            self._tell(record, None)

    def _tell(self, before: R | None, now: R | None) -> None:
        for changed in self._watchers:
            changed(before, now)

    def _file(self, record_id: str) -> Path:
        return self._directory / (record_id + SUFFIX)

    def _remember(self, record: R) -> None:
        if record.id not in self._records:
            insort(self._ids, record.id)
        self._records[record.id] = record
        self._names[self._name_of(record)] = record.id


def name_of_sandbox(record: SandboxRecord) -> Hashable:
    """Return what makes a duplicate RunPodSandbox: the whole PodSandboxMetadata."""
    return record.config.pod


def name_of_container(record: ContainerRecord) -> Hashable:
    """Return what makes a duplicate CreateContainer: ContainerMetadata within the sandbox."""
    return (record.sandbox_id, record.config.name, record.config.attempt)


class Store:
    """Both tables, below ``state_dir``; the copies are below ``run_dir``."""

    def __init__(self, state_dir: Path, disk: Disk, run_dir: Path | None = None) -> None:
        """Read nothing yet."""
        self.sandboxes: Table[SandboxRecord] = Table(
            "sandbox",
            state_dir / "sandboxes",
            TypeAdapter(SandboxRecord),
            name_of_sandbox,
            disk,
            copies=run_dir and run_dir / "sandboxes",
        )
        self.containers: Table[ContainerRecord] = Table(
            "container",
            state_dir / "containers",
            TypeAdapter(ContainerRecord),
            name_of_container,
            disk,
            copies=run_dir and run_dir / "containers",
        )
        # Sandboxes and containers that are being stopped or removed: nothing new is begun in them.
        self.closing: set[str] = set()

    def containers_of(self, sandbox_id: str) -> tuple[ContainerRecord, ...]:
        """Return the containers of one sandbox."""
        return tuple(r for r in self.containers.all() if r.sandbox_id == sandbox_id)
