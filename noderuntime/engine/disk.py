"""The engine's way to the disk: blocking calls in a bounded pool, never torn by a cancel."""

from __future__ import annotations

import asyncio
import errno
import os
import shutil
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from functools import partial
from pathlib import Path
from typing import Final, ParamSpec, TypeVar

from noderuntime.engine.jobs import to_the_end
from noderuntime.errors import HostError, StateError
from noderuntime.host import durable
from noderuntime.host.syscalls import host_error

P = ParamSpec("P")
T = TypeVar("T")

THREADS = 8  # they wait for the disk, which makes durable in one go what many ask for at once
# A disk that is full (or over its quota), read-only or broken.
NO_ROOM: Final = frozenset({errno.ENOSPC, errno.EDQUOT, errno.EROFS, errno.EIO})


class Disk:
    """Runs file operations in threads and waits for their end, also when it is cancelled."""

    def __init__(self) -> None:
        """Start no thread yet."""
        self._pool = ThreadPoolExecutor(THREADS, thread_name_prefix="engine-disk")

    async def run(self, function: Callable[P, T], *args: P.args, **kwargs: P.kwargs) -> T:
        """Run a blocking function in the pool. Raises HostError for what the disk refuses."""
        call = partial(function, *args, **kwargs)
        try:
            return await to_the_end(asyncio.get_running_loop().run_in_executor(self._pool, call))
        except OSError as error:
            where = error.filename2 or error.filename or "the node's disk"
            raise host_error(f"cannot change {where}", error.errno or 0) from error

    async def write(self, path: Path, data: bytes, *, copy: Path | None = None) -> None:
        """Replace the file atomically and durably, readable by its owner only.

        ``copy`` is written after it, neither atomically nor durably, where its folder is there.
        """
        await self.run(_write, path, data, copy)

    async def remove(self, path: Path) -> None:
        """Remove the file durably; none is success."""
        await self.run(durable.remove, path)

    async def forget(self, path: Path) -> None:
        """Remove a file that does no harm when a power loss brings it back."""
        await self.run(path.unlink, missing_ok=True)

    async def read(self, path: Path) -> bytes:
        """Read a file of ours. Raises StateError, HostError."""
        data = await self.run(durable.read, path)
        if data is None:
            raise StateError(f"{path} is not there")
        return data

    async def remove_tree(self, path: Path) -> None:
        """Remove a folder with all in it; none is success. Raises HostError for mounts below it."""
        await self.run(_remove_tree, path)

    async def open_folder(self, directory: Path) -> tuple[Path, ...]:
        """Make the folder if missing; return its JSON files. What a kill left half written goes."""
        return await self.run(_open_folder, directory)

    async def set_aside(self, path: Path) -> None:
        """Rename a file that cannot be read to ``NAME.corrupt``, where the disk lets us."""
        with suppress(HostError):
            await self.run(path.rename, path.with_name(path.name + ".corrupt"))

    def close(self) -> None:
        """End the threads."""
        self._pool.shutdown(wait=True)


def _write(path: Path, data: bytes, copy: Path | None) -> None:
    durable.write(path, data)
    if copy is None:
        return
    flags = os.O_WRONLY | os.O_CREAT | os.O_TRUNC | os.O_NOFOLLOW | os.O_CLOEXEC
    with suppress(OSError):  # an object that has no folder (any more) needs no copy
        descriptor = os.open(copy, flags, 0o600)
        try:
            os.write(descriptor, data)
        finally:
            os.close(descriptor)


def _open_folder(directory: Path) -> tuple[Path, ...]:
    directory.mkdir(mode=0o700, parents=True, exist_ok=True)
    for torn in directory.glob("*" + durable.TEMPORARY_SUFFIX):
        with suppress(OSError):  # a read-only disk keeps it; it is not read in any case
            torn.unlink()
    return tuple(sorted(directory.glob("*.json")))


def _remove_tree(path: Path) -> None:
    # An unmount that failed must not end in the removal of what is mounted.
    if f" {path}/" in Path("/proc/self/mountinfo").read_text():
        raise HostError(f"cannot remove {path}: something is still mounted below it")
    try:
        shutil.rmtree(path)
    except FileNotFoundError:
        return
    except OSError as error:
        raise HostError(
            f"cannot remove {path}: {error.strerror}", errno=error.errno or 0
        ) from error
