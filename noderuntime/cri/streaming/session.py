"""A protocol on a socket: streams to read and write, with a brake in both directions.

What a peer sends faster than it is used stops at ``BUFFER_BYTES`` a stream: then the socket is
not read any more, and TCP slows the peer down (its other streams too; that is how the Go servers
behave). What it reads too slowly stops the writer, which waits for the socket or for SPDY's
credit. A peer that does not read may take its time, as long as its machine answers.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import socket
import struct
import time
from collections import deque
from typing import TYPE_CHECKING, Final

from noderuntime.cri.streaming import events
from noderuntime.cri.streaming.spdy import MAX_STREAMS

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Callable, Coroutine, Iterator, Mapping

    from noderuntime.cri.streaming.wire import Wire

_log = logging.getLogger(__name__)

BUFFER_BYTES: Final = 256 << 10  # unread input a stream
READ_BYTES: Final = 64 << 10
LINGER_S: Final = 5.0  # how long a peer may take to close after the last byte
DRAIN_POLL_S: Final = 0.1
WATCH_S: Final = 1.0
OVER_S: Final = 30.0  # how long output may still move once the container has ended
IDLE_S: Final = 4 * 3600.0  # as the kubelet's own servers have it
KEEP_ALIVE_S: Final = 15.0  # Go's WebSocket clients give up after a minute without a sign of life
# A peer that does not read still acknowledges window probes, which come every two minutes at the
# most. TCP_USER_TIMEOUT would not do: it ends such a connection however alive the peer is.
SILENT_MS: Final = 180_000
_TCP_ESTABLISHED: Final = 1  # tcp_states.h
_UNACKED, _PROBES, _LAST_ACK_RECV = 24, 3, 56  # offsets in struct tcp_info, linux/tcp.h


class StreamClosedError(Exception):
    """The peer takes no more on this stream."""


class Stream:
    """One stream. One reader and one writer at a time."""

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
        await self._session.finish(self)

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

    def __init__(
        self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter, wire: Wire
    ) -> None:
        """Take over a connection that has just been upgraded to what ``wire`` speaks."""
        self._reader = reader
        self._writer = writer
        self.wire: Final = wire
        self._streams: dict[int, Stream] = {}
        self._credit = asyncio.Event()
        self._last_activity = time.monotonic()
        self._waiting = 0  # writers that the peer holds up
        self.opened: asyncio.Queue[Stream] = asyncio.Queue(MAX_STREAMS)

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
            living = group.create_task(self._keep_alive())
            tasks = {reading, serving, watching}
            await asyncio.wait(tasks, return_when=asyncio.FIRST_COMPLETED)
            living.cancel()
            watching.cancel()
            if serving.done() and not serving.cancelled():
                await self._linger(reading)
            for task in tasks:
                task.cancel()

    async def write(self, stream_id: int, data: bytes) -> None:
        """Send in parts as the credit allows; raises StreamClosedError."""
        view = memoryview(data)
        while view:
            room = self.wire.sendable(stream_id)
            if room is None or self._writer.is_closing():
                raise StreamClosedError
            if room == 0:
                await self._flush()
                self._credit.clear()
                with self._waiting_for_peer():
                    await self._credit.wait()
                continue
            self.wire.send(stream_id, view[:room])
            view = view[room:]
        await self._flush()

    async def accept(self, stream: Stream) -> None:
        """Answer a stream that the peer opened."""
        self.wire.accept(stream.id)
        await self._flush()

    async def finish(self, stream: Stream) -> None:
        """Half-close; a stream that is over is success."""
        self.wire.send(stream.id, b"", finished=True)
        if not self.wire.half_closes:
            stream.feed(b"", finished=True)  # the peer cannot know, and so would never end it
        await self._flush()

    async def reset(self, stream_id: int, status: events.Reset) -> None:
        """End a stream; one that is over is success."""
        self.wire.reset(stream_id, status)
        self._streams.pop(stream_id, None)
        await self._flush()

    async def used(self, stream_id: int, count: int) -> None:
        """Give the peer credit."""
        self.wire.consumed(stream_id, count)
        await self._flush()

    async def _flush(self) -> None:
        if output := self.wire.take_output():
            self._last_activity = time.monotonic()
            try:
                self._writer.write(output)
                with self._waiting_for_peer():
                    await self._writer.drain()
            except OSError as error:
                raise StreamClosedError from error

    @contextlib.contextmanager
    def _waiting_for_peer(self) -> Iterator[None]:
        self._waiting += 1
        try:
            yield
        finally:
            self._waiting -= 1

    async def _read(self, early: bytes) -> None:
        """Feed the protocol until the peer closes or breaks it."""
        try:
            if not await self._receive(early):
                return
            while data := await self._reader.read(READ_BYTES):
                if not await self._receive(data):
                    return
        except events.ProtocolError as error:
            _log.warning("streaming peer broke the protocol", extra={"why": str(error)})
        except (OSError, StreamClosedError):
            return

    async def _receive(self, data: bytes) -> bool:
        """Take ``data``; False when it was the peer's last word."""
        self._last_activity = time.monotonic()
        is_open = True
        for event in self.wire.receive(data):
            if isinstance(event, events.Closed):
                is_open = False
            else:
                await self._on(event)
        await self._flush()
        return is_open

    async def _on(self, event: events.Event) -> None:
        match event:
            case events.StreamOpened(stream_id, headers, finished):
                stream = Stream(self, stream_id, headers)
                stream.feed(b"", finished=finished)
                self._streams[stream_id] = stream
                if self.opened.full():  # opened and reset, again and again
                    raise events.ProtocolError("streams are opened faster than they are used")
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
            case _:
                pass

    def forget(self, stream: Stream) -> None:
        """Let go of a stream whose both sides have ended."""
        self._streams.pop(stream.id, None)

    async def _linger(self, reading: asyncio.Task[None]) -> None:
        """Let the peer read all of it, in its time.

        Closing with unread input would reset the connection, so what still comes is read. What
        the kernel has by then it delivers without us.
        """
        for stream in self._streams.values():
            stream.discard()
        self.wire.close()
        if output := self.wire.take_output():
            self._writer.write(output)
        with contextlib.suppress(OSError):
            self._writer.write_eof()
        deadline = time.monotonic() + IDLE_S
        while self._writer.transport.get_write_buffer_size() and time.monotonic() < deadline:
            if reading.done() or self.is_peer_gone():
                return
            await asyncio.wait({reading}, timeout=DRAIN_POLL_S)
        await asyncio.wait({reading}, timeout=LINGER_S)

    async def _keep_alive(self) -> None:
        """Show that we are there also while a full pipe keeps us from reading the peer's pings."""
        while True:
            await asyncio.sleep(KEEP_ALIVE_S)
            self.wire.keep_alive()
            with contextlib.suppress(StreamClosedError):
                await self._flush()

    async def _watch(self, is_over: Callable[[], bool]) -> None:
        """End when the container is, or the peer is gone though its last bytes are unread, or idle.

        Told twice in a row, and once nothing moves, so that the last output still gets out.
        """
        over, since = 0, time.monotonic()
        while over < 2 and time.monotonic() - self._last_activity < IDLE_S:
            before = self._last_activity
            await asyncio.sleep(WATCH_S)
            if not is_over():
                since = time.monotonic()
            may_go_on = self._waiting or before != self._last_activity
            if may_go_on and time.monotonic() - since < OVER_S:
                ends = self.is_peer_gone()
            else:
                ends = self.is_peer_gone() or is_over()
            over = over + 1 if ends else 0

    def is_peer_gone(self) -> bool:
        """Whether the peer has closed, or its machine is silent though it owes us an answer."""
        connection: socket.socket | None = self._writer.get_extra_info("socket")
        if connection is None or connection.fileno() < 0:
            return True
        info = connection.getsockopt(socket.IPPROTO_TCP, socket.TCP_INFO, 104)
        if info[0] != _TCP_ESTABLISHED:
            return True
        unacked, silent_ms = (
            struct.unpack_from("=I", info, offset)[0] for offset in (_UNACKED, _LAST_ACK_RECV)
        )
        return bool(unacked or info[_PROBES]) and silent_ms > SILENT_MS


async def _until_closed(serve: Callable[[], Coroutine[object, object, None]]) -> None:
    with contextlib.suppress(StreamClosedError):
        await serve()
