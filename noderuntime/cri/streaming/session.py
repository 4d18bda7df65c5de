"""A SPDY connection on a socket: streams to read and write, with a brake in both directions.

What a peer sends faster than it is used stops at ``BUFFER_BYTES`` a stream: then the socket is
not read any more, and TCP slows the peer down (its other streams too; that is how the Go servers
behave). What it reads too slowly stops the writer, which waits for the socket or for SPDY's
credit.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import socket
import time
from collections import deque
from typing import TYPE_CHECKING, Final

from noderuntime.cri.streaming import events, spdy

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Callable, Coroutine, Mapping

_log = logging.getLogger(__name__)

BUFFER_BYTES: Final = 256 << 10  # unread input a stream
READ_BYTES: Final = 64 << 10
LINGER_S: Final = 5.0  # how long a peer may take to close after the last byte
WATCH_S: Final = 1.0
IDLE_S: Final = 4 * 3600.0  # as the kubelet's own servers have it
_TCP_ESTABLISHED: Final = 1  # tcp_states.h


class StreamClosedError(Exception):
    """The peer takes no more on this stream."""


class Stream:
    """One SPDY stream. One reader and one writer at a time."""

    def __init__(self, session: Session, stream_id: int, headers: Mapping[str, str]) -> None:
        """Belongs to ``session``; made by it."""
        self.id = stream_id
        self.headers = headers
        self._session = session
        self._chunks: deque[bytes] = deque()
        self._buffered = 0
        self._ended = False
        self._discarding = False
        self._changed = asyncio.Event()
        self.room = asyncio.Event()
        self.room.set()

    async def __aiter__(self) -> AsyncIterator[bytes]:
        """Yield what the peer sends, until it half-closes or resets the stream."""
        while True:
            while self._chunks:
                chunk = self._chunks.popleft()
                self._buffered -= len(chunk)
                if self._buffered < BUFFER_BYTES:
                    self.room.set()
                yield chunk
                await self._session.used(self.id, len(chunk))
            if self._ended:
                return
            self._changed.clear()
            await self._changed.wait()

    async def write(self, data: bytes) -> None:
        """Send all of ``data``, waiting for the peer; raises StreamClosedError."""
        await self._session.write(self.id, data)

    async def finish(self) -> None:
        """Half-close: the peer reads end-of-file."""
        await self._session.finish(self.id)

    async def reset(self, status: events.Reset = events.Reset.CANCEL) -> None:
        """End both directions."""
        self.discard()
        await self._session.reset(self.id, status)

    def discard(self) -> None:
        """Drop what is there and what comes."""
        self._discarding = True
        self._chunks.clear()
        self._buffered = 0
        self.room.set()

    def feed(self, data: bytes, *, finished: bool) -> None:
        """Take input; called by the session."""
        if data and not self._discarding:
            self._chunks.append(data)
            self._buffered += len(data)
            if self._buffered >= BUFFER_BYTES:
                self.room.clear()
        if finished:
            self._ended = True
        self._changed.set()


class Session:
    """Owns the socket from the upgrade to its end. Use ``run`` once."""

    def __init__(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        """Take over a connection that has just been upgraded."""
        self._reader = reader
        self._writer = writer
        self._spdy = spdy.Connection()
        self._streams: dict[int, Stream] = {}
        self._credit = asyncio.Event()
        self._last_activity = time.monotonic()
        self.opened: asyncio.Queue[Stream] = asyncio.Queue(spdy.MAX_STREAMS)

    async def run(
        self,
        early: bytes,
        serve: Callable[[], Coroutine[object, object, None]],
        is_over: Callable[[], bool],
    ) -> None:
        """Run ``serve`` until it ends, the peer is gone or ``is_over`` says so; ``early`` was read.

        ``serve`` is cancelled when the peer goes first, and has to clean up as it ends.
        """
        async with asyncio.TaskGroup() as group:
            reading = group.create_task(self._read(early))
            serving = group.create_task(_until_closed(serve))
            watching = group.create_task(self._watch(is_over))
            tasks = {reading, serving, watching}
            await asyncio.wait(tasks, return_when=asyncio.FIRST_COMPLETED)
            watching.cancel()
            if serving.done() and not serving.cancelled():
                await self._linger(reading)
            for task in tasks:
                task.cancel()

    async def write(self, stream_id: int, data: bytes) -> None:
        """Send in parts as the credit allows; raises StreamClosedError."""
        view = memoryview(data)
        while view:
            room = self._spdy.sendable(stream_id)
            if room is None or self._writer.is_closing():
                raise StreamClosedError
            if room == 0:
                self._credit.clear()
                await self._credit.wait()
                continue
            self._spdy.send(stream_id, bytes(view[:room]))
            view = view[room:]
            await self._flush()

    async def accept(self, stream: Stream) -> None:
        """Answer a stream that the peer opened."""
        self._spdy.accept(stream.id)
        await self._flush()

    async def finish(self, stream_id: int) -> None:
        """Half-close; a stream that is over is success."""
        self._spdy.send(stream_id, b"", finished=True)
        await self._flush()

    async def reset(self, stream_id: int, status: events.Reset) -> None:
        """End a stream; one that is over is success."""
        self._spdy.reset(stream_id, status)
        self._streams.pop(stream_id, None)
        await self._flush()

    async def used(self, stream_id: int, count: int) -> None:
        """Give the peer credit."""
        self._spdy.consumed(stream_id, count)
        await self._flush()

    async def _flush(self) -> None:
        if output := self._spdy.take_output():
            self._last_activity = time.monotonic()
            try:
                self._writer.write(output)
                await self._writer.drain()
            except OSError as error:
                raise StreamClosedError from error

    async def _read(self, early: bytes) -> None:
        """Feed the protocol until the peer closes or breaks it."""
        try:
            data = early or await self._reader.read(READ_BYTES)
            while data:
                self._last_activity = time.monotonic()
                for event in self._spdy.receive(data):
                    await self._on(event)
                await self._flush()
                data = await self._reader.read(READ_BYTES)
        except events.SpdyError as error:
            _log.warning("streaming peer broke the protocol", extra={"why": str(error)})
        except (OSError, StreamClosedError):
            return

    async def _on(self, event: events.Event) -> None:
        match event:
            case events.StreamOpened(stream_id, headers, finished):
                stream = Stream(self, stream_id, headers)
                stream.feed(b"", finished=finished)
                self._streams[stream_id] = stream
                if self.opened.full():  # opened and reset, again and again
                    raise events.SpdyError("streams are opened faster than they are used")
                self.opened.put_nowait(stream)
            case events.DataReceived(stream_id, data, finished):
                if target := self._streams.get(stream_id):
                    await target.room.wait()
                    target.feed(data, finished=finished)
            case events.StreamReset(stream_id, _):
                if ended := self._streams.pop(stream_id, None):
                    ended.feed(b"", finished=True)
                self._credit.set()
            case events.WindowOpened():
                self._credit.set()
            case events.StreamAccepted() | events.GoneAway():
                pass

    def forget(self, stream: Stream) -> None:
        """Let go of a stream whose both sides have ended."""
        self._streams.pop(stream.id, None)

    async def _linger(self, reading: asyncio.Task[None]) -> None:
        """Let the peer read all of it: closing with unread input would reset the connection."""
        for stream in self._streams.values():
            stream.discard()
        try:
            self._writer.write_eof()
        except OSError:
            return
        await asyncio.wait({reading}, timeout=LINGER_S)

    async def _watch(self, is_over: Callable[[], bool]) -> None:
        """End when the container is, or the peer is gone though its last bytes are unread, or idle.

        Told twice in a row, so that the last output of a container still gets out.
        """
        over = 0
        while over < 2 and time.monotonic() - self._last_activity < IDLE_S:
            await asyncio.sleep(WATCH_S)
            over = over + 1 if self._is_peer_gone() or is_over() else 0

    def _is_peer_gone(self) -> bool:
        connection: socket.socket | None = self._writer.get_extra_info("socket")
        if connection is None or connection.fileno() < 0:
            return True
        info = connection.getsockopt(socket.IPPROTO_TCP, socket.TCP_INFO, 1)
        return info[0] != _TCP_ESTABLISHED


async def _until_closed(serve: Callable[[], Coroutine[object, object, None]]) -> None:
    with contextlib.suppress(StreamClosedError):
        await serve()
