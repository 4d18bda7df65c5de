"""Intents: what a verb is about to do, on disk before its first step, so that a restart can end it.

Whatever a verb makes has a name that follows from the object's ID, so verb and record are enough to
undo it or to do it again; no line is written for a single step.
"""

from __future__ import annotations

import logging
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

from pydantic import TypeAdapter

from noderuntime.engine.disk import Disk
from noderuntime.engine.state import ContainerRecord, SandboxRecord
from noderuntime.errors import HostError, NodeRuntimeError
from noderuntime.telemetry import metrics

_log = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True, kw_only=True)
class Intent:
    """One verb under way. Exactly one of ``sandbox`` and ``container`` is there."""

    verb: str
    sandbox: SandboxRecord | None = None
    container: ContainerRecord | None = None
    until_ns: int = 0  # stop_container: when its grace ends

    @property
    def id(self) -> str:
        """The ID of the object that the verb is about."""
        record = self.sandbox or self.container
        return "" if record is None else record.id


_INTENT = TypeAdapter(Intent)


class Journal:
    """The intents below ``state_dir/intents``, one file each."""

    def __init__(self, directory: Path, disk: Disk) -> None:
        """Read nothing yet."""
        self._directory = directory
        self._disk = disk
        self._open: dict[str, set[Path]] = {}  # ID -> files
        self._unfinished: dict[Path, Intent] = {}
        self._ended: dict[Path, Intent] = {}

    async def begin(self, intent: Intent) -> None:
        """Write the intent; a second one of the same verb and object replaces the first."""
        file = self._file(intent)
        self._ended.pop(file, None)
        self._open.setdefault(intent.id, set()).add(file)
        try:
            await self._disk.write(file, _INTENT.dump_json(intent, exclude_none=True))
        except HostError:
            # It may be in place and only not durable: then a restart finds nothing to undo.
            with suppress(HostError):
                await self._forget(intent.id, file)
            raise

    async def end(self, intent: Intent) -> None:
        """Forget the intent. Not fsynced: one that comes back finds nothing to undo or do.

        So it is no error where the disk does not let go of it; it is tried again later.
        """
        try:
            await self._forget(intent.id, self._file(intent))
        except HostError as error:
            _log.warning(
                "an intent could not be removed",
                extra={"verb": intent.verb, "id": intent.id, "error": str(error)},
            )
            self._ended[self._file(intent)] = intent

    async def sweep(self) -> None:
        """Forget what could not be forgotten at its end."""
        for file in tuple(self._ended):
            await self.end(self._ended.pop(file))

    def keep(self, intent: Intent) -> None:
        """Remember an intent whose undo failed: it is tried again later, not only at a restart."""
        self._unfinished[self._file(intent)] = intent

    def unfinished(self) -> tuple[Intent, ...]:
        """Return the intents that were kept and not ended since."""
        return tuple(self._unfinished.values())

    def is_open(self, object_id: str) -> bool:
        """Tell whether a verb is under way on the object, or failed and is tried again."""
        return object_id in self._open

    async def end_others(self, intent: Intent) -> None:
        """Forget what failed before on the same object, which is gone now."""
        for file in self._open.get(intent.id, set()) - {self._file(intent)}:
            await self._forget(intent.id, file)

    async def load(self) -> tuple[Intent, ...]:
        """Return all intents; one that cannot be read is set aside (see ``leftovers``)."""
        intents: list[Intent] = []
        for file in await self._disk.open_folder(self._directory):
            try:
                intent = _INTENT.validate_json(await self._disk.read(file))
                if file != self._file(intent):
                    raise ValueError(f"is not of {intent.verb} of {intent.id}")  # noqa: TRY301
            except (NodeRuntimeError, ValueError) as error:
                await self._disk.set_aside(file)
                metrics.count_damaged_record("intent")
                _log.error(
                    "an intent is corrupted and was set aside",
                    extra={"file": str(file), "error": " ".join(str(error).split())},
                )
            else:
                self._open.setdefault(intent.id, set()).add(file)
                intents.append(intent)
        return tuple(intents)

    async def _forget(self, object_id: str, file: Path) -> None:
        await self._disk.forget(file)
        self._unfinished.pop(file, None)
        files = self._open.get(object_id, set())
        files.discard(file)
        if not files:
            self._open.pop(object_id, None)

    def _file(self, intent: Intent) -> Path:
        return self._directory / f"{intent.verb}-{intent.id}.json"
