"""Reading and writing non-blocking descriptors under asyncio, without transports.

One waiter a descriptor and direction. ``Owned`` closes a descriptor only when nothing waits for it:
the event loop would else watch a number that already belongs to another file.
"""

from __future__ import annotations

import asyncio
import errno
import os
from collections.abc import Callable, Collection, Generator
from contextlib import ExitStack, contextmanager
from typing import Final

CHUNK_BYTES: Final = 64 * 1024


class Owned:
    """A descriptor that is closed when ``close`` was called and all its users have let go."""

    def __init__(self, descriptor: int, close: Callable[[], None] | None = None) -> None:
        """Own ``descriptor``; must be made in the event loop. ``close`` replaces os.close."""
        self._descriptor = descriptor
        self._close = close or (lambda: os.close(descriptor))
        self._users = 0
        self.closed: Final[asyncio.Future[None]] = asyncio.get_running_loop().create_future()

    @property
    def is_open(self) -> bool:
        """Whether ``close`` has not been called yet."""
        return not self.closed.done()

    @contextmanager
    def use(self) -> Generator[int, None, None]:
        """Hold the descriptor for one wait."""
        self._users += 1
        try:
            yield self._descriptor
        finally:
            self._users -= 1
            if not self._users and self.closed.done():
                self._close()

    def close(self) -> None:
        """Wake every waiter and close; again is nothing."""
        if not self.closed.done():
            self.closed.set_result(None)
            if not self._users:
                self._close()


async def wait_ready(
    *,
    readable: Collection[int] = (),
    writable: Collection[int] = (),
    until: Collection[asyncio.Future[None]] = (),
) -> None:
    """Wait until a descriptor is ready, or one of ``until`` is done."""
    loop = asyncio.get_running_loop()
    woken: asyncio.Future[None] = loop.create_future()

    def wake(_: object = None) -> None:
        if not woken.done():
            woken.set_result(None)

    with ExitStack() as cleanup:
        for descriptor in readable:
            loop.add_reader(descriptor, wake)
            cleanup.callback(loop.remove_reader, descriptor)
        for descriptor in writable:
            loop.add_writer(descriptor, wake)
            cleanup.callback(loop.remove_writer, descriptor)
        for future in until:
            future.add_done_callback(wake)
            cleanup.callback(future.remove_done_callback, wake)
        await woken


def read_now(descriptor: int, size: int = CHUNK_BYTES) -> bytes | None:
    """Read what is there; None when nothing is yet, empty at the end."""
    try:
        return os.read(descriptor, size)
    except BlockingIOError:
        return None
    except ConnectionResetError:
        return b""
    except OSError as error:
        if error.errno == errno.EIO:  # a terminal's last user has closed it
            return b""
        raise


async def read(descriptor: int) -> bytes:
    """Read the next bytes; empty at the end."""
    while True:
        data = read_now(descriptor)
        if data is not None:
            return data
        await wait_ready(readable=(descriptor,))


async def write(descriptor: int, data: bytes, until: Collection[asyncio.Future[None]] = ()) -> None:
    """Write all, waiting while the other end does not read; BrokenPipeError at its or our end."""
    rest = memoryview(data)
    while rest:
        try:
            rest = rest[os.write(descriptor, rest) :]
        except BlockingIOError:
            await wait_ready(writable=(descriptor,), until=until)
        if any(future.done() for future in until):
            raise BrokenPipeError(errno.EPIPE, os.strerror(errno.EPIPE))
