"""Port-forward: a pair of streams, data and error, for each TCP connection.

Pairs find each other by ``requestid``; several are open at once. Each direction ends by itself:
what the Pod closes is half-closed for the peer, and the other way round. The channels of a
WebSocket are one pair a port, there from the beginning; clients of today tunnel SPDY instead.
Source: ``k8s.io/cri-streaming`` v0.37.2 ``portforward``, client-go ``tools/portforward``.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
from dataclasses import dataclass
from typing import TYPE_CHECKING, Final

from noderuntime.cri.streaming.channels import BASE64, BYTES, Channel
from noderuntime.cri.streaming.events import Reset
from noderuntime.cri.streaming.session import READ_BYTES, Session, Stream, StreamClosedError
from noderuntime.errors import NodeRuntimeError

if TYPE_CHECKING:
    from noderuntime.cri.streaming.tokens import Forward
    from noderuntime.engine.engine import Engine

_log = logging.getLogger(__name__)

PROTOCOLS: Final = ("portforward.k8s.io",)
TUNNEL_PROTOCOLS: Final = ("SPDY/3.1+portforward.k8s.io",)
CHANNEL_PROTOCOLS: Final = (BYTES[0], BASE64[0])
MAX_CHANNEL_PORTS: Final = 32  # base64 has the number as one ASCII character from "0" on
MAX_PAIRS: Final = 256
PAIR_S: Final = 30.0  # for the second stream of a pair to come
MAX_REQUEST_ID: Final = 64


@dataclass(slots=True)
class _Pair:
    """What has come of a pair; ``complete`` is set with the second stream."""

    port: int
    complete: asyncio.Event
    data: Stream | None = None
    error: Stream | None = None


async def serve(session: Session, ticket: Forward, engine: Engine) -> None:
    """Serve pairs until the session is cancelled, or the pairs of its channels have ended."""
    async with asyncio.TaskGroup() as group:
        await _Forwarder(session, ticket, engine, group).run()


def channels(ticket: Forward) -> tuple[Channel, ...]:
    """Return the channels of a WebSocket: data and error a port, each greeting with the port."""
    return tuple(
        Channel(
            headers={"streamtype": kind, "port": str(port), "requestid": str(number)},
            is_read=kind == "data",
            is_written=True,
            greeting=port.to_bytes(2, "little"),
        )
        for number, port in enumerate(ticket.ports)
        for kind in ("data", "error")
    )


class _Forwarder:
    def __init__(
        self, session: Session, ticket: Forward, engine: Engine, group: asyncio.TaskGroup
    ) -> None:
        self._session = session
        self._ticket = ticket
        self._engine = engine
        self._group = group
        self._pairs: dict[str, _Pair] = {}
        self._running = 0

    async def run(self) -> None:
        left = self._session.wire.fixed_streams
        while left is None or left > 0:
            stream = await self._session.opened.get()
            left = None if left is None else left - 1
            with contextlib.suppress(StreamClosedError):
                await self._take(stream)

    async def _take(self, stream: Stream) -> None:
        port = _port_of(stream, self._ticket)
        kind = stream.headers.get("streamtype", "")
        request = stream.headers.get("requestid") or _implied_request(stream, kind)
        if port is None or kind not in {"data", "error"} or len(request) > MAX_REQUEST_ID:
            await stream.reset(Reset.REFUSED_STREAM)
            return
        pair = self._pairs.get(request)
        if pair is None:
            if self._running >= MAX_PAIRS:
                await stream.reset(Reset.REFUSED_STREAM)
                return
            pair = self._pairs[request] = _Pair(port=port, complete=asyncio.Event())
            self._running += 1
            self._group.create_task(self._pair(request, pair))
        elif pair.port != port or getattr(pair, kind) is not None:
            await stream.reset(Reset.PROTOCOL_ERROR)
            return
        setattr(pair, kind, stream)
        await self._session.accept(stream)
        if pair.data is not None and pair.error is not None:
            pair.complete.set()

    async def _pair(self, request: str, pair: _Pair) -> None:
        try:
            async with asyncio.timeout(PAIR_S):
                await pair.complete.wait()
        except TimeoutError:
            for stream in (pair.data, pair.error):
                if stream is not None:
                    await _end(stream)
        finally:
            del self._pairs[request]
        try:
            if pair.data is not None and pair.error is not None:
                await self._forward(pair.port, pair.data, pair.error)
        finally:
            self._running -= 1

    async def _forward(self, port: int, data: Stream, error: Stream) -> None:
        try:
            reader, writer = await self._engine.port_forward(self._ticket.sandbox_id, port)
        except (NodeRuntimeError, OSError) as problem:
            text = f"error forwarding port {port} to pod {self._ticket.sandbox_id}: {problem}"
            _log.info("port forward failed", extra={"port": port, "why": str(problem)})
            with contextlib.suppress(StreamClosedError):
                await error.write(text.encode())
                await error.finish()
            await _end(data)
            return
        try:
            async with asyncio.TaskGroup() as group:
                group.create_task(_to_pod(data, writer))
                group.create_task(_from_pod(reader, data, error))
        finally:
            writer.close()
            with contextlib.suppress(OSError):
                await writer.wait_closed()
            self._session.forget(data)
            self._session.forget(error)


async def _to_pod(data: Stream, writer: asyncio.StreamWriter) -> None:
    """Copy until the peer half-closes; a Pod that takes no more makes the rest drop."""
    try:
        async for chunk in data:
            writer.write(chunk)
            await writer.drain()
        if writer.can_write_eof():
            writer.write_eof()
    except (OSError, StreamClosedError):
        data.discard()


async def _from_pod(reader: asyncio.StreamReader, data: Stream, error: Stream) -> None:
    """Copy until the Pod closes; then both streams end, which is what the peer waits for."""
    try:
        while chunk := await reader.read(READ_BYTES):
            await data.write(chunk)
    except (OSError, StreamClosedError):
        await _end(data)
    with contextlib.suppress(StreamClosedError):
        await data.finish()
        await error.finish()


async def _end(stream: Stream) -> None:
    stream.feed(b"", finished=True)  # wakes who reads it
    with contextlib.suppress(StreamClosedError):
        await stream.reset(Reset.CANCEL)


def _port_of(stream: Stream, ticket: Forward) -> int | None:
    text = stream.headers.get("port", "")
    if not (text.isascii() and text.isdigit() and len(text) <= 5):
        return None
    port = int(text)
    if not 1 <= port <= 65535 or (ticket.ports and port not in ticket.ports):
        return None
    return port


def _implied_request(stream: Stream, kind: str) -> str:
    """Guess for old clients without request ID: error comes first, data right behind."""
    return f"implied-{stream.id - (2 if kind == 'data' else 0)}"
