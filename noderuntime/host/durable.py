"""Files that are whole or absent after a crash: written beside, fsync, rename, fsync of the folder.

One writer a path: the temporary name is fixed (``NAME.tmp``), so that a crash leaves at most one
file, which the next write replaces. The calls block; ``*_async`` runs them in the pool.
"""

from __future__ import annotations

import os
from contextlib import suppress
from pathlib import Path
from typing import Final

from noderuntime.errors import StateError
from noderuntime.host.syscalls import host_error
from noderuntime.host.threads import in_pool

TEMPORARY_SUFFIX: Final = ".tmp"
LIMIT_BYTES: Final = 16 * 1024 * 1024


def sync_directory(directory: Path) -> None:
    """Make the names in ``directory`` durable."""
    descriptor = os.open(directory, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def write(path: Path, data: bytes, *, mode: int = 0o600) -> None:
    """Replace the file at ``path`` by ``data``; durable when it returns. Raises HostError."""
    temporary = path.with_name(path.name + TEMPORARY_SUFFIX)
    flags = os.O_WRONLY | os.O_CREAT | os.O_TRUNC | os.O_NOFOLLOW | os.O_CLOEXEC
    try:
        descriptor = os.open(temporary, flags, mode)
        try:
            rest = memoryview(data)
            while rest:
                rest = rest[os.write(descriptor, rest) :]
            os.fchmod(descriptor, mode)
            os.fsync(descriptor)
        finally:
            os.close(descriptor)
        temporary.replace(path)
        sync_directory(path.parent)
    except OSError as error:
        with suppress(OSError):
            temporary.unlink(missing_ok=True)
        raise host_error(f"cannot write {path}", error.errno or 0) from error


def remove(path: Path) -> None:
    """Remove the file durably; nothing there is success. Raises HostError."""
    _remove(path, is_durable=True)


def forget(path: Path) -> None:
    """Remove a file that does no harm when a power loss brings it back. Raises HostError."""
    _remove(path, is_durable=False)


def _remove(path: Path, *, is_durable: bool) -> None:
    try:
        path.with_name(path.name + TEMPORARY_SUFFIX).unlink(missing_ok=True)
        path.unlink(missing_ok=True)
        if is_durable:
            sync_directory(path.parent)
    except FileNotFoundError:
        return
    except OSError as error:
        raise host_error(f"cannot remove {path}", error.errno or 0) from error


def read(path: Path, *, limit_bytes: int = LIMIT_BYTES) -> bytes | None:
    """Return the whole file, None where there is none. Raises StateError past the bound."""
    try:
        with path.open("rb") as file:
            data = file.read(limit_bytes + 1)
    except FileNotFoundError:
        return None
    except OSError as error:
        raise host_error(f"cannot read {path}", error.errno or 0) from error
    if len(data) > limit_bytes:
        raise StateError(f"{path} is larger than {limit_bytes} bytes: it is not a file of ours")
    return data


async def write_async(path: Path, data: bytes, *, mode: int = 0o600) -> None:
    """``write`` in the pool."""
    await in_pool(write, path, data, mode=mode)
