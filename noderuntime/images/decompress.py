"""The layer file as buffers of plain tar: decompressed, hashed, bounded in a thread of its own.

Decompression and hashing let go of Python's lock, so that they run while the parser makes files.
The format is told by the first bytes, not by the media type, since builders mix these up.
"""

from __future__ import annotations

import hashlib
import io
import threading
from queue import SimpleQueue
from typing import Final, Protocol, cast

import zstandard
from isal import igzip, isal_zlib

from noderuntime.errors import ImageError

BUFFER: Final = 1 << 20
BUFFERS: Final = 4
MAX_WINDOW: Final = 128 << 20
_ZSTD: Final = b"\x28\xb5\x2f\xfd"
_BROKEN: Final[tuple[type[Exception], ...]] = (
    EOFError,
    cast("type[Exception]", isal_zlib.error),  # the stubs take it for an instance
    igzip.BadGzipFile,
    zstandard.ZstdError,
)


class _Stream(Protocol):
    def readinto(self, buffer: memoryview, /) -> int | None: ...


def plain_stream(file: io.BufferedReader) -> _Stream:
    """Return ``file`` decompressed: gzip or zstd (of several parts too), or as it is."""
    head = file.peek(4)[:4]
    if head[:2] == b"\x1f\x8b":
        return cast("_Stream", igzip.IGzipFile(fileobj=file, mode="rb"))  # type: ignore[no-untyped-call]
    if head == _ZSTD or (head[1:] == b"\x2a\x4d\x18" and head[0] & 0xF0 == 0x50):
        decompressor = zstandard.ZstdDecompressor(max_window_size=MAX_WINDOW)
        return cast("_Stream", decompressor.stream_reader(file, read_across_frames=True))
    return file


class Decompressor:
    """A BlockSource over a layer file. One buffer is read by the parser while others are filled."""

    def __init__(self, file: io.BufferedReader, *, limit_bytes: int) -> None:
        """Start the thread; ``limit_bytes`` bounds what comes out, whatever the headers say."""
        self._file = file
        self._limit_bytes = limit_bytes
        self._hash = hashlib.sha256()
        self._free: SimpleQueue[bytearray | None] = SimpleQueue()
        self._full: SimpleQueue[tuple[bytearray, int] | BaseException | None] = SimpleQueue()
        for _ in range(BUFFERS):
            self._free.put(bytearray(BUFFER))
        self._current: bytearray | None = None
        self._is_over = False
        self._thread = threading.Thread(target=self._run, name="decompress", daemon=True)
        self._thread.start()

    @property
    def diff_id(self) -> str:
        """Return the digest of the whole plain stream, after its end."""
        return f"sha256:{self._hash.hexdigest()}"

    def next_buffer(self) -> memoryview | None:
        """Return the next buffer; raises ImageError where the stream is broken or too long."""
        if self._current is not None:
            self._free.put(self._current)
            self._current = None
        if self._is_over:
            return None
        item = self._full.get()
        if isinstance(item, tuple):
            self._current, count = item
            return memoryview(self._current)[:count]
        self._is_over = True
        self._thread.join()
        if isinstance(item, _BROKEN):
            raise ImageError(f"the layer's compressed data is broken: {item}") from item
        if item is not None:
            raise item
        return None

    def _run(self) -> None:
        try:
            self._fill()
        except BaseException as error:  # noqa: BLE001 - raised again in the parser's thread
            self._full.put(error)
        else:
            self._full.put(None)

    def _fill(self) -> None:
        stream = plain_stream(self._file)
        total = 0
        while (buffer := self._free.get()) is not None:
            view = memoryview(buffer)
            count = 0
            while count < BUFFER and (step := stream.readinto(view[count:])):
                count += step
            total += count
            if total > self._limit_bytes:
                raise ImageError(
                    f"the layer unpacks to more than {self._limit_bytes} bytes:"
                    " too much for its size"
                )
            self._hash.update(view[:count])
            if count:
                self._full.put((buffer, count))
            if count < BUFFER:
                return
