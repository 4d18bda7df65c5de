"""Blobs on disk: whole and verified, or not there.

A blob is written under ``ingest/``, hashed as it arrives, stopped at its declared size, synced,
renamed into ``blobs/sha256/`` and the folder synced. Only manifests and configs stay: a compressed
layer is kept until it is unpacked and no longer. The node never pushes, its layer folders are what
containers run on, and keeping both would cost every image's disk space once more for nothing but a
quicker repair.
"""

from __future__ import annotations

import hashlib
import os
from contextlib import suppress
from pathlib import Path
from typing import Final

from noderuntime.errors import ImageError
from noderuntime.host import durable

PRIVATE: Final = 0o700
TRAVERSABLE: Final = 0o711


def digest_of(data: bytes) -> str:
    """Return ``sha256:HEX`` of ``data``."""
    return f"sha256:{hashlib.sha256(data).hexdigest()}"


class Ingest:
    """One blob on its way in, not whole until ``verify``; a new try goes on at ``written``."""

    def __init__(self, path: Path, digest: str, size_bytes: int) -> None:
        """Make an empty file at ``path``; one writer, so an earlier one is overwritten."""
        self.path = path
        self._digest = digest
        self._size_bytes = size_bytes
        self._hash = hashlib.sha256()
        flags = os.O_WRONLY | os.O_CREAT | os.O_TRUNC | os.O_CLOEXEC
        self._fd = os.open(path, flags, 0o600)
        self.written = 0

    def restart(self) -> None:
        """Forget what there is: the host sends the blob from its beginning."""
        os.ftruncate(self._fd, 0)
        os.lseek(self._fd, 0, os.SEEK_SET)
        self._hash = hashlib.sha256()
        self.written = 0

    def write(self, chunk: bytes) -> None:
        """Append; raises ImageError as soon as more comes than was declared."""
        if self.written + len(chunk) > self._size_bytes:
            raise ImageError(
                f"blob {self._digest} is longer than the {self._size_bytes} bytes its manifest says"
            )
        self._hash.update(chunk)
        view = memoryview(chunk)
        while view:
            done = os.write(self._fd, view)
            self.written += done
            view = view[done:]

    @property
    def is_complete(self) -> bool:
        """Tell whether every declared byte is there."""
        return self.written == self._size_bytes

    def verify(self) -> None:
        """Compare length and digest; raises ImageError and forgets the data if they differ."""
        found = f"sha256:{self._hash.hexdigest()}"
        if self.is_complete and found == self._digest:
            return
        problem = (
            f"has digest {found}"
            if self.is_complete
            else f"has {self.written} of {self._size_bytes} bytes"
        )
        self.restart()
        raise ImageError(f"blob {self._digest} {problem}: the copy that came is damaged")

    def open(self) -> int:
        """Return a descriptor of its own for reading from the beginning."""
        return os.open(self.path, os.O_RDONLY | os.O_CLOEXEC)

    def close(self) -> None:
        """Let go of the file and leave it where it is."""
        if self._fd >= 0:
            os.close(self._fd)
            self._fd = -1

    def discard(self) -> None:
        """Let go of the file and remove it."""
        self.close()
        self.path.unlink(missing_ok=True)


class Content:
    """The blobs and the ingest folder of one store."""

    def __init__(self, root: Path) -> None:
        """Take ``root`` (the store's folder); nothing is made until ``create``."""
        self.blobs = root / "blobs" / "sha256"
        self.ingest = root / "ingest"

    def create(self) -> None:
        """Make the folders."""
        for folder in (self.blobs.parent, self.blobs, self.ingest):
            folder.mkdir(mode=PRIVATE, exist_ok=True)

    def recover(self) -> None:
        """Drop what was cut off half-way."""
        for path in (*self.ingest.iterdir(), *self.blobs.glob(f"*{durable.TEMPORARY_SUFFIX}")):
            with suppress(OSError):  # a read-only disk: it is not used in any case
                path.unlink(missing_ok=True)

    def get(self, digest: str) -> bytes | None:
        """Return a blob, None where it is not there; a damaged one is dropped."""
        path = self.blobs / digest.removeprefix("sha256:")
        try:
            data = path.read_bytes()
        except FileNotFoundError:
            return None
        if digest_of(data) != digest:
            path.unlink(missing_ok=True)
            return None
        return data

    def put(self, digest: str, data: bytes) -> None:
        """Store a small blob durably; raises ImageError where ``digest`` is another's."""
        if digest_of(data) != digest:
            raise ImageError(f"blob {digest} has digest {digest_of(data)}: it is damaged")
        path = self.blobs / digest.removeprefix("sha256:")
        if not path.exists():
            durable.write(path, data, writer=str(os.getpid()))

    def receive(self, name: str, digest: str, size_bytes: int) -> Ingest:
        """Begin a large blob in the file ``name``, which only one writer uses."""
        return Ingest(self.ingest / name, digest, size_bytes)

    def retain(self, digests: frozenset[str]) -> None:
        """Drop every blob that is not in ``digests``."""
        for path in self.blobs.iterdir():
            if f"sha256:{path.name}" not in digests and path.suffix != durable.TEMPORARY_SUFFIX:
                path.unlink(missing_ok=True)
