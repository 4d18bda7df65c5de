"""An ExecStream over a process of this machine, for tests of the CRI server alone."""

from __future__ import annotations

import asyncio
import contextlib
import fcntl
import os
import pty
import select
import signal
import struct
import subprocess
import termios
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import AsyncIterator


class LocalProcess:
    """An ExecStream over a process of this machine. Output is read only as fast as it is taken."""

    def __init__(self, argv: tuple[str, ...], *, tty: bool, stdin: bool) -> None:
        """Start it in a session of its own."""
        self._tty = tty
        self._stdin = -1
        self.closed = False
        self.written = 0
        if tty:
            self._outputs, child = pty.openpty()
            self._stdin = os.dup(self._outputs)
            self.process = subprocess.Popen(
                argv, stdin=child, stdout=child, stderr=child, start_new_session=True
            )
            os.close(child)
            self._readers = {self._outputs: 2}
        else:
            self.process = subprocess.Popen(
                argv,
                stdin=subprocess.PIPE if stdin else subprocess.DEVNULL,
                stdout=subprocess.PIPE,
                stderr=subprocess.PIPE,
                start_new_session=True,
            )
            assert self.process.stdout is not None
            assert self.process.stderr is not None
            if self.process.stdin is not None:
                self._stdin = os.dup(self.process.stdin.fileno())
                self.process.stdin.close()
            self._readers = {
                os.dup(self.process.stdout.fileno()): 2,
                os.dup(self.process.stderr.fileno()): 3,
            }
            self.process.stdout.close()
            self.process.stderr.close()

    async def __aiter__(self) -> AsyncIterator[tuple[int, bytes]]:
        """Yield output; one read is under way at a time."""
        while self._readers:
            for descriptor in await _readable(list(self._readers)):
                try:
                    data = os.read(descriptor, 65536)
                except OSError:
                    data = b""
                if data:
                    yield self._readers[descriptor], data
                else:
                    del self._readers[descriptor]
                    os.close(descriptor)

    async def write(self, data: bytes) -> None:
        """Write all of it."""
        os.set_blocking(self._stdin, False)
        view = memoryview(data)
        while view:
            try:
                count = os.write(self._stdin, view)
            except BlockingIOError:
                await asyncio.sleep(0.005)
                continue
            self.written += count
            view = view[count:]

    async def close_stdin(self) -> None:
        """End its input; a terminal's by ^D."""
        if self._stdin >= 0 and self._tty:
            os.write(self._stdin, b"\x04")
        elif self._stdin >= 0:
            os.close(self._stdin)
            self._stdin = -1

    async def resize(self, width: int, height: int) -> None:
        """Set the terminal's size."""
        if self._tty and self._readers:
            fcntl.ioctl(self._outputs, termios.TIOCSWINSZ, struct.pack("HHHH", height, width, 0, 0))

    async def close(self) -> None:
        """Kill the process and let go of everything."""
        with contextlib.suppress(ProcessLookupError):
            os.killpg(self.process.pid, signal.SIGKILL)
        await asyncio.to_thread(self.process.wait)
        self.closed = True
        for descriptor in (*self._readers, self._stdin):
            if descriptor >= 0:
                os.close(descriptor)
        self._readers, self._stdin = {}, -1

    async def wait(self) -> int:
        """Wait for its end."""
        while self.process.poll() is None:  # a child watcher would be more to fake
            await asyncio.sleep(0.005)
        code = self.process.returncode
        return 128 - code if code < 0 else code


async def _readable(descriptors: list[int]) -> list[int]:
    loop = asyncio.get_running_loop()
    ready: asyncio.Future[None] = loop.create_future()

    def wake() -> None:
        if not ready.done():
            ready.set_result(None)

    for descriptor in descriptors:
        loop.add_reader(descriptor, wake)
    try:
        await ready
    finally:
        for descriptor in descriptors:
            loop.remove_reader(descriptor)
    return select.select(descriptors, [], [], 0)[0]
