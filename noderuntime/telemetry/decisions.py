"""The decision log: one line of JSON for each decision of a profile, in files that are rotated.

What always holds: writing a line neither waits nor fails for who decides. Lines go through a
bounded queue to one thread, in order. What does not fit there or on the disk is lost: counted, and
told once until lines are written again. A line is ASCII, however hostile what it tells of, and has
a longest length; what was cut from it is marked by ``"cut": true``.

Lines are given to the kernel and not synced: a crash of the runtime takes those of the queue, a
power loss those that the kernel had not written yet. A line that such an end has cut in half is
closed before the next one is written, so that a reader loses that line alone.
"""

from __future__ import annotations

import errno
import json
import logging
import os
import stat
import sys
import threading
import time
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from itertools import islice
from typing import TYPE_CHECKING, Final, Protocol, TypeAlias

from noderuntime.telemetry import log, metrics

if TYPE_CHECKING:
    from pathlib import Path

_log = logging.getLogger(__name__)

Value: TypeAlias = "str | int | bool | Sequence[Value] | Mapping[str, Value]"

MAX_LINE_BYTES: Final = 16 * 1024
MAX_QUEUE_BYTES: Final = 4 << 20
_CHUNK_BYTES: Final = 64 * 1024  # less than the smallest file that config.toml allows
# (characters a string, items a list): what is tried until the line is short enough.
_SIZES: Final = ((512, 32), (256, 8), (64, 4), (24, 1))
_FLAGS: Final = os.O_RDWR | os.O_APPEND | os.O_CREAT | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC


class Appends(Protocol):
    """Where lines go."""

    def append(self, data: bytes) -> None:
        """Write whole lines, all of them or none. Blocking. Raises OSError."""


class RotatedFiles:
    """``path`` and, older, ``path.1``, ``path.2``, ...: at most ``files`` in all."""

    def __init__(
        self,
        path: Path,
        *,
        max_bytes: int,
        files: int,
        write: Callable[[int, bytes], int] = os.write,
    ) -> None:
        """Make nothing yet: a node without profiles has no such files. ``write`` is for tests."""
        self._path = path
        self._max_bytes = max_bytes
        self._files = files
        self._write = write

    def append(self, data: bytes) -> None:
        """Write whole lines, all of them or none; the file is opened anew, so it may be taken away.

        Only its owner may read a new file. One that is there keeps its mode. Raises OSError.
        """
        self._path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
        self._make_room(len(data))
        descriptor = os.open(self._path, _FLAGS, 0o600)
        try:
            found = os.fstat(descriptor)
            if not stat.S_ISREG(found.st_mode):
                raise OSError(errno.EINVAL, "not a regular file", str(self._path))
            size = found.st_size
            if size and os.pread(descriptor, 1, size - 1) != b"\n":
                data = b"\n" + data
            self._write_all(descriptor, data, size)
        finally:
            os.close(descriptor)

    def _write_all(self, descriptor: int, data: bytes, size: int) -> None:
        left = memoryview(data)
        try:
            while left:
                left = left[self._write(descriptor, bytes(left)) :]
        except OSError:
            with suppress(OSError):  # else the half line is closed by the next one
                os.ftruncate(descriptor, size)
            raise

    def _make_room(self, more: int) -> None:
        try:
            size = self._path.lstat().st_size
        except FileNotFoundError:
            return
        if not size or size + more <= self._max_bytes:
            return
        if self._files == 1:
            self._path.unlink()
        for number in range(self._files - 1, 0, -1):
            with suppress(FileNotFoundError):
                self._named(number - 1).rename(self._named(number))

    def _named(self, number: int) -> Path:
        return self._path.with_name(f"{self._path.name}.{number}") if number else self._path


class DecisionLog:
    """The queue and its thread. One an engine."""

    def __init__(self, files: Appends, *, clock: Callable[[], float] = time.time) -> None:
        """Start no thread yet. ``clock`` gives seconds of the epoch."""
        self._files = files
        self._clock = clock
        self._pool = ThreadPoolExecutor(1, thread_name_prefix="decisions")
        self._lock = threading.Lock()
        self._waiting: list[bytes] = []
        self._waiting_bytes = 0
        self._is_draining = self._is_closed = self._is_failing = False

    def write(self, decision: Mapping[str, Value]) -> None:
        """Write it down, soon; its time is now."""
        line = encode({"time": log.timestamp(self._clock()), **decision})
        with self._lock:
            fits = not self._is_closed and self._waiting_bytes + len(line) <= MAX_QUEUE_BYTES
            starts = fits and not self._is_draining
            if fits:
                self._waiting.append(line)
                self._waiting_bytes += len(line)
                self._is_draining = True
        if not fits:
            self._lose(1, "the disk does not keep up, or the runtime is ending")
        elif starts:
            self._pool.submit(self._drain)

    def close(self) -> None:
        """Write what waits, and end the thread. Blocking."""
        with self._lock:
            self._is_closed = True
        self._pool.shutdown(wait=True)

    def _drain(self) -> None:
        while lines := self._take():
            for chunk in _chunks(lines):
                try:
                    self._files.append(b"".join(chunk))
                except OSError as error:
                    self._lose(len(chunk), str(error))
                else:
                    self._works()

    def _take(self) -> list[bytes]:
        with self._lock:
            lines, self._waiting, self._waiting_bytes = self._waiting, [], 0
            self._is_draining = bool(lines)
        return lines

    def _lose(self, lines: int, why: str) -> None:
        metrics.count_lost_decisions(lines)
        if not self._is_failing:
            self._is_failing = True
            _log.error(
                "decisions are lost: they hold, but are not written down", extra={"why": why}
            )

    def _works(self) -> None:
        if self._is_failing:
            self._is_failing = False
            _log.info("decisions are written down again")


def encode(decision: Mapping[str, Value]) -> bytes:
    """Return the line with its newline, at most MAX_LINE_BYTES of ASCII."""
    line, whole = b"", _cut(decision, sys.maxsize, sys.maxsize)
    for chars, items in _SIZES:
        cut = _cut(whole, chars, items)
        marked = cut if cut == whole else {**cut, "cut": True}
        line = json.dumps(marked, default=str, separators=(",", ":")).encode() + b"\n"
        if len(line) <= MAX_LINE_BYTES:
            break
    return line


def _cut(values: Mapping[str, Value], chars: int, items: int) -> dict[str, Value]:
    return {key: _cut_value(value, chars, items) for key, value in values.items()}


def _cut_value(value: Value, chars: int, items: int) -> Value:
    if isinstance(value, str):
        return value if len(value) <= chars else value[:chars]
    if isinstance(value, Mapping):
        return _cut(value, chars, items)
    if isinstance(value, Sequence):
        return [_cut_value(each, chars, items) for each in islice(value, items)]
    return value


def _chunks(lines: list[bytes]) -> list[list[bytes]]:
    chunks: list[list[bytes]] = []
    size = 0
    for line in lines:
        if not chunks or size + len(line) > _CHUNK_BYTES:
            chunks.append([])
            size = 0
        chunks[-1].append(line)
        size += len(line)
    return chunks
