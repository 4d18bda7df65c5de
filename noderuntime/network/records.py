"""CNI attachments on disk: ``state_dir/ID.json``, what the ADD was given and what it returned.

Written before the first plugin runs and after the last, so that a DEL gets the same configuration
and result, also after a restart and also when the network's file changed meanwhile. Beside them
``folders``: the handlers' own CNI folders that have been used, which no attachment may name any more.
"""

from __future__ import annotations

import asyncio
import json
import shutil
from collections.abc import Mapping
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Final, cast

from noderuntime.errors import InvalidArgumentError, NodeRuntimeError
from noderuntime.host import durable
from noderuntime.host.threads import in_pool
from noderuntime.network.conflist import Document, NetworkList

_LIMIT_BYTES: Final = 4 * 1024 * 1024


@dataclass(frozen=True, slots=True, kw_only=True)
class Cached:
    """One attachment as it is on disk; ``result`` is None until the ADD was through."""

    network: NetworkList
    result: Document | None
    netns: str
    arguments: str
    capabilities: Document

    @property
    def conf_dir(self) -> Path:
        """Return the folder that the network was found in."""
        return self.network.source.parent


class CorruptedError(Exception):
    """A record that cannot be read; it was copied aside and stays until it is forgotten."""

    def __init__(self, file: Path, why: Exception) -> None:
        """Keep the file's name for the log."""
        super().__init__(str(why))
        self.file = file


class Records:
    """The folder of the records."""

    def __init__(self, directory: Path) -> None:
        """``directory`` is made if it is missing."""
        self._directory = directory
        directory.mkdir(parents=True, exist_ok=True, mode=0o700)
        self._remembered: set[Path] = set()  # by this process
        self._one_writer = asyncio.Lock()

    def ids(self) -> tuple[str, ...]:
        """Return the IDs of all sandboxes that have a record."""
        return tuple(sorted(file.stem for file in self._directory.glob("*.json")))

    async def remember(self, sandbox_id: str, cached: Cached) -> None:
        """Write a record; durable when it returns. Raises HostError."""
        document = {
            "network": {
                "name": cached.network.name,
                "version": cached.network.version,
                "plugins": list(cached.network.plugins),
                "disableCheck": cached.network.disable_check,
                "disableGC": cached.network.disable_gc,
                "source": str(cached.network.source),
            },
            "result": cached.result,
            "netns": cached.netns,
            "arguments": cached.arguments,
            "capabilities": cached.capabilities,
        }
        await durable.write_async(self._file(sandbox_id), json.dumps(document).encode())

    async def forget(self, sandbox_id: str) -> None:
        """Remove a record, and what a kill left of one half written. Raises HostError.

        Not fsynced: one that a power loss brings back is another DEL, which finds nothing.
        """
        await in_pool(durable.forget, self._file(sandbox_id))

    def recall(self, sandbox_id: str) -> Cached | None:
        """Return a record, None where there is none. One that is corrupted is set aside.

        Raises CorruptedError.
        """
        try:
            return self.look(sandbox_id)
        except CorruptedError as error:
            _set_aside(error.file)
            raise

    def folders(self) -> tuple[Path, ...]:
        """Return the folders that were remembered and are there; none where the file is damaged."""
        try:
            names = cast("list[str]", json.loads(durable.read(self._folders) or b"[]"))
            return tuple(path for path in map(Path, names) if path.is_dir())
        except (NodeRuntimeError, ValueError, TypeError, OSError):
            return ()

    async def remember_folder(self, folder: Path) -> None:
        """Write a folder down, once; durable when it returns. Raises HostError."""
        async with self._one_writer:
            if folder in self._remembered:
                return
            known = {*self.folders(), folder}
            await durable.write_async(self._folders, json.dumps(sorted(map(str, known))).encode())
            self._remembered.add(folder)

    @property
    def _folders(self) -> Path:
        return self._directory / "folders"

    def look(self, sandbox_id: str) -> Cached | None:
        """Return a record as ``recall`` does, and touch nothing. Raises CorruptedError."""
        file = self._file(sandbox_id)
        try:
            if file.is_dir():
                raise ValueError("is a folder")  # noqa: TRY301
            data = durable.read(file, limit_bytes=_LIMIT_BYTES)
            return None if data is None else _parse(json.loads(data))
        except (ValueError, KeyError, TypeError) as error:
            raise CorruptedError(file, error) from error

    def _file(self, sandbox_id: str) -> Path:
        if not sandbox_id or "/" in sandbox_id or sandbox_id.startswith("."):
            raise InvalidArgumentError(f"sandbox ID {sandbox_id!r} is not one")
        return self._directory / f"{sandbox_id}.json"


def _set_aside(file: Path) -> None:
    """Keep a copy for who wants to know; the file itself stays until a DEL has succeeded."""
    aside = file.with_name(f"{file.name}.corrupt")
    with suppress(OSError):
        if file.is_dir():
            file.replace(aside)
        else:
            shutil.copyfile(file, aside)


def _parse(document: Mapping[str, object]) -> Cached:
    network = cast("dict[str, object]", document["network"])
    return Cached(
        network=NetworkList(
            name=str(network["name"]),
            version=str(network["version"]),
            plugins=tuple(cast("list[Document]", network["plugins"])),
            disable_check=bool(network["disableCheck"]),
            disable_gc=bool(network["disableGC"]),
            source=Path(str(network["source"])),
        ),
        result=cast("Document | None", document["result"]),
        netns=str(document["netns"]),
        arguments=str(document["arguments"]),
        capabilities=cast("Document", document["capabilities"]),
    )
