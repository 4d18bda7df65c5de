"""Following a container's log file: CRI's lines in, what the container wrote out.

A line is ``TIME STREAM TAGS TEXT``; the tag P is a part of a line, whose end comes later. The file
does not grow without end: when it is long, the monitor is made to begin another one.
Source: kubelet ``pkg/kubelet/kuberuntime/logs``; CRI's logging, KEP "cri: container log format".
"""

from __future__ import annotations

import asyncio
import sys
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import BinaryIO, Final, Protocol

from noderuntime.cli.output import let_go
from noderuntime.errors import NodeRuntimeError

CHUNK: Final = 256 << 10
LONGEST: Final = 64 << 20  # bytes of one file
_PAUSES_S: Final = (0.02, 0.2)  # first, and after a while of silence


class Output(Protocol):
    """Where what a container writes goes: ``stream`` is stdout or stderr."""

    async def write(self, container: str, stream: str, text: bytes) -> None:
        """Take whole lines, or the last part of one. Raises BrokenPipeError when nobody reads."""
        ...


class Terminal:
    """This command's own stdout and stderr; with several containers each line tells whose it is."""

    def __init__(
        self, *, prefix: bool, stdout: BinaryIO | None = None, stderr: BinaryIO | None = None
    ) -> None:
        """Write to the process's own streams where none are given."""
        self._prefix = prefix
        self._files = {
            "stdout": stdout or sys.stdout.buffer,
            "stderr": stderr or sys.stderr.buffer,
        }

    async def write(self, container: str, stream: str, text: bytes) -> None:
        """Write in a thread: a reader that is slow must not hold up a Ctrl-C."""
        if self._prefix:
            start = f"[{container}] ".encode()
            text = start + text.removesuffix(b"\n").replace(b"\n", b"\n" + start) + b"\n"
        await asyncio.get_running_loop().run_in_executor(None, self._put, stream, text)

    def _put(self, stream: str, text: bytes) -> None:
        file = self._files[stream]
        try:
            file.write(text)
            file.flush()
        except BrokenPipeError:
            let_go(file)
            raise


class Lines:
    """Puts the parts of a log together; pure."""

    def __init__(self) -> None:
        """Begin with nothing."""
        self._rest = b""
        self._parts: dict[str, bytes] = {}

    def feed(self, data: bytes) -> list[tuple[str, bytes]]:
        """Return what is complete now, as (stream, text) in order."""
        *lines, self._rest = (self._rest + data).split(b"\n")
        found: list[tuple[str, bytes]] = []
        for line in lines:
            fields = line.split(b" ", 3)
            if len(fields) < 3 or fields[1] not in (b"stdout", b"stderr"):
                continue  # torn by a monitor that was killed
            stream, tags = fields[1].decode(), fields[2].split(b":")
            text = self._parts.pop(stream, b"") + (fields[3] if len(fields) > 3 else b"")
            if b"P" in tags and len(text) < CHUNK:
                self._parts[stream] = text
            else:
                _add(found, stream, text if b"P" in tags else text + b"\n")
        return found

    def end(self) -> list[tuple[str, bytes]]:
        """Return what never got its end of line."""
        left, self._parts = [*self._parts.items()], {}
        return left


def _add(found: list[tuple[str, bytes]], stream: str, text: bytes) -> None:
    if found and found[-1][0] == stream:
        found[-1] = stream, found[-1][1] + text
    else:
        found.append((stream, text))


class Follower:
    """Follows one container's file, from its beginning to the end of the container."""

    def __init__(
        self, name: str, path: Path, output: Output, reopen: Callable[[], Awaitable[None]]
    ) -> None:
        """``reopen`` makes the monitor write to a new file at ``path``."""
        self._name, self._path, self._output, self._reopen = name, path, output, reopen
        self._lines = Lines()
        self._ended = asyncio.Event()

    def end(self) -> None:
        """Tell that the container has ended: what is written now is all."""
        self._ended.set()

    async def run(self) -> None:
        """Write what comes, until the container has ended and all is written."""
        pause, longest = _PAUSES_S
        while not self._ended.is_set() and not self._path.exists():
            await self._wait(pause)
        if not self._path.exists():
            return
        file: BinaryIO = self._path.open("rb")
        try:
            quiet = 0
            while True:
                was_ended = self._ended.is_set()
                data = file.read(CHUNK)
                await self._write(self._lines.feed(data))
                quiet = 0 if data else quiet + 1
                if not data and was_ended:
                    break
                if not data:
                    await self._wait(min(pause * (1 + quiet / 10), longest))
                elif file.tell() > LONGEST:
                    file = await self._begin_anew(file)
            await self._write(self._lines.end())
        finally:
            file.close()

    async def _wait(self, pause_s: float) -> None:
        try:
            async with asyncio.timeout(pause_s):
                await self._ended.wait()
        except TimeoutError:
            return

    async def _write(self, found: list[tuple[str, bytes]]) -> None:
        for stream, text in found:
            await self._output.write(self._name, stream, text)

    async def _begin_anew(self, file: BinaryIO) -> BinaryIO:
        """Rename the file, let a new one begin, read the old one to its end."""
        self._path.rename(self._path.with_suffix(".old"))
        try:
            await self._reopen()
        except NodeRuntimeError:  # it has just ended: then this is all there is
            self._path.with_suffix(".old").rename(self._path)
            return file
        while data := file.read(CHUNK):
            await self._write(self._lines.feed(data))
        file.close()
        self._path.with_suffix(".old").unlink()
        return self._path.open("rb")
