"""Which images there are: ``records/HEX.json``, one an image, replaced durably and as a whole.

A tag belongs to one image. Moving it writes the new owner before the old one is changed; a crash in
between leaves two owners, and the later naming counts. A name is kept with the time it was given.
"""

from __future__ import annotations

import json
import logging
import time
from collections.abc import Callable, Mapping
from contextlib import suppress
from dataclasses import asdict, dataclass, field, replace
from functools import partial
from pathlib import Path
from typing import Any, Final

from noderuntime.errors import StateError
from noderuntime.images.content import PRIVATE, sync_folder, write_durably
from noderuntime.images.reference import Reference, id_prefix, is_digest, parse
from noderuntime.policy.model import ImageConfig
from noderuntime.telemetry import metrics

_log = logging.getLogger(__name__)

VERSION: Final = 1


@dataclass(frozen=True, slots=True, kw_only=True)
class Record:
    """One image. ``tags`` has the time (ns since the epoch) at which each tag was last given."""

    id: str
    config: ImageConfig
    layers: tuple[str, ...]
    blobs: tuple[str, ...]
    tags: Mapping[str, int] = field(default_factory=dict[str, int])
    digests: tuple[str, ...] = ()
    pinned: bool = False


def encode(record: Record) -> bytes:
    """Return the file's bytes."""
    return json.dumps({"version": VERSION, **asdict(record)}).encode()


def decode(data: bytes, path: Path) -> Record:
    """Read the file's bytes; raises StateError."""
    try:
        document: dict[str, Any] = json.loads(data)
        if document["version"] != VERSION:
            raise StateError(f"{path} is of version {document['version']}, not {VERSION}")
        return Record(
            id=document["id"],
            config=config_of(document["config"]),
            layers=tuple(document["layers"]),
            blobs=tuple(document["blobs"]),
            tags=dict(document["tags"]),
            digests=tuple(document["digests"]),
            pinned=document["pinned"],
        )
    except (ValueError, LookupError, TypeError, AttributeError) as error:
        raise StateError(f"{path} is not an image's record: {error}") from error


def config_of(values: Mapping[str, Any]) -> ImageConfig:
    """Make the config from the worker's or a file's JSON."""
    return ImageConfig(
        user=values["user"],
        env=tuple(values["env"]),
        entrypoint=tuple(values["entrypoint"]),
        cmd=tuple(values["cmd"]),
        working_dir=values["working_dir"],
        stop_signal=values["stop_signal"],
        volumes=tuple(values["volumes"]),
        labels=dict(values["labels"]),
    )


class Records:
    """All records, in memory and on disk; one writer at a time (the store's lock)."""

    def __init__(self, root: Path) -> None:
        """Take ``root`` (the store's folder); nothing is made until ``create``."""
        self._folder = root / "records"
        self._records: dict[str, Record] = {}

    def create(self) -> None:
        """Make the folder."""
        self._folder.mkdir(mode=PRIVATE, exist_ok=True)

    def recover(self, is_whole: Callable[[Record], bool]) -> None:
        """Read all; set torn ones aside, drop those that are not whole, and double names."""
        self._records.clear()
        for path in self._folder.iterdir():
            if path.name.startswith(".new-"):  # half written
                _try(path.unlink)
                continue
            if path.suffix != ".json":  # set aside before
                continue
            record = _read(path)
            if record is None or path != self._path(record.id):
                metrics.count_damaged_record("image")
                _log.error("an image's record is corrupted and was set aside", extra=_of(path))
                _try(partial(path.replace, path.with_name(path.name + ".corrupt")))
            elif is_whole(record):
                self._records[record.id] = record
            else:
                _log.warning(
                    "an image lacks a layer and is forgotten: pull it again", extra=_of(path)
                )
                _try(path.unlink)
        for record in tuple(self._records.values()):
            tags = {t: at for t, at in record.tags.items() if at >= self._latest(t)}
            if len(tags) != len(record.tags):
                self._write(replace(record, tags=tags))
        sync_folder(self._folder)

    def all(self) -> tuple[Record, ...]:
        """Return all."""
        return tuple(self._records.values())

    def find(self, text: str) -> Record | None:
        """Find by ID, unique prefix of an ID, tag or digest; raises ImageError for no reference."""
        digits = id_prefix(text)
        if digits is not None:
            found = [r for r in self.all() if r.id.startswith(f"sha256:{digits}")]
            if len(found) == 1:
                return found[0]
            if is_digest(text) or len(digits) == 64:
                return None
        reference = parse(text)
        name = str(reference)
        for record in self.all():
            if name in record.tags or name in record.digests:
                return record
        return None

    def put(self, record: Record, reference: Reference, digest: str) -> Record:
        """Store an image under its new name, taking the tag from whoever had it."""
        held = self._records.get(record.id)
        tags = dict(held.tags) if held else {}
        digests = dict.fromkeys(held.digests if held else ())
        blobs = dict.fromkeys((*record.blobs, *(held.blobs if held else ())))
        digests[str(reference.with_digest(digest))] = None
        name = str(reference)
        if reference.tag:
            tags[name] = max(time.time_ns(), self._latest(name) + 1)
        new = replace(record, tags=tags, digests=tuple(digests), blobs=tuple(blobs))
        self._write(new)
        for other in self.all():
            if other.id != new.id and name in other.tags:
                self._write(
                    replace(other, tags={t: at for t, at in other.tags.items() if t != name})
                )
        return new

    def delete(self, image_id: str) -> None:
        """Remove an image's record."""
        self._path(image_id).unlink(missing_ok=True)
        sync_folder(self._folder)
        self._records.pop(image_id, None)

    def _latest(self, tag: str) -> int:
        return max((r.tags.get(tag, 0) for r in self.all()), default=0)

    def _write(self, record: Record) -> None:
        write_durably(self._path(record.id), encode(record))
        self._records[record.id] = record

    def _path(self, image_id: str) -> Path:
        return self._folder / f"{image_id.removeprefix('sha256:')}.json"


def _read(path: Path) -> Record | None:
    try:
        return decode(path.read_bytes(), path)
    except (StateError, OSError):
        return None


def _try(change: Callable[[], object]) -> None:
    """Change the disk where it lets us: on a read-only one the runtime still starts."""
    with suppress(OSError):
        change()


def _of(path: Path) -> dict[str, str]:
    return {"file": str(path)}
