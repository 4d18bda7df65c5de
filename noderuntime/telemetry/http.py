"""``/metrics``, ``/healthz`` and ``/readyz`` on a small HTTP/1.1 server.

Callers are not trusted: the number of connections, the size of a request and the time for it are
bounded, only GET and HEAD are answered, and every answer closes its connection.
Source: RFC 9112; the answers of /readyz are those of kube-apiserver's (200 ``ok``, 503 and why).
"""

from __future__ import annotations

import asyncio
import logging
from contextlib import asynccontextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING, Final

import h11

from noderuntime.errors import ConfigError

if TYPE_CHECKING:
    from collections.abc import AsyncGenerator, Callable

MAX_CONNECTIONS: Final = 32
MAX_REQUEST_BYTES: Final = 16 * 1024
REQUEST_TIMEOUT_S: Final = 10.0
ANSWER_TIMEOUT_S: Final = 10.0
_TEXT: Final = "text/plain; charset=utf-8"

_log = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True, kw_only=True)
class Probes:
    """Where the answers come from. ``not_ready_because`` returns "" when Pods can be run."""

    not_ready_because: Callable[[], str]
    metrics: Callable[[], bytes]
    metrics_type: str = "text/plain; version=0.0.4; charset=utf-8"


@dataclass(frozen=True, slots=True)
class _Answer:
    status: int
    body: bytes
    content_type: str = _TEXT


@asynccontextmanager
async def serving(address: str, probes: Probes) -> AsyncGenerator[str]:
    """Serve within; yields ``HOST:PORT`` as bound. Raises ConfigError when it cannot listen."""
    server = _Server(probes)
    host, port = split_address(address)
    try:
        listener = await asyncio.start_server(server.connected, host, port)
    except OSError as error:
        raise ConfigError(f"cannot listen on {address} for metrics: {error.strerror}") from error
    try:
        name = listener.sockets[0].getsockname()
        yield f"{name[0]}:{name[1]}"
    finally:
        listener.close()
        await server.close()


def split_address(address: str) -> tuple[str, int]:
    """Return host and port of ``HOST:PORT`` or ``[HOST]:PORT``; raises ConfigError."""
    host, separator, port = address.rpartition(":")
    if not separator or not port.isascii() or not port.isdigit() or int(port) > 65535:
        raise ConfigError(f"address {address!r} must be HOST:PORT")
    return host.removeprefix("[").removesuffix("]"), int(port)


class _Server:
    def __init__(self, probes: Probes) -> None:
        self._probes = probes
        self._writers: set[asyncio.StreamWriter] = set()
        self._idle = asyncio.Event()
        self._idle.set()

    async def connected(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        """Answer one request. Called by asyncio, which owns the task."""
        if len(self._writers) >= MAX_CONNECTIONS:
            writer.transport.abort()
            return
        self._writers.add(writer)
        self._idle.clear()
        try:
            await self._exchange(reader, writer)
        except (OSError, TimeoutError):
            writer.transport.abort()  # a caller that went away, or that is too slow
        finally:
            writer.close()
            self._writers.discard(writer)
            if not self._writers:
                self._idle.set()

    async def close(self) -> None:
        """Drop every connection and wait until its task has ended."""
        for writer in tuple(self._writers):
            writer.transport.abort()
        await self._idle.wait()

    async def _exchange(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        connection = h11.Connection(h11.SERVER, max_incomplete_event_size=MAX_REQUEST_BYTES)
        try:
            async with asyncio.timeout(REQUEST_TIMEOUT_S):
                request = await _read_request(connection, reader)
            if request is None:
                return
            answer = self._answer(request)
        except h11.RemoteProtocolError as error:
            request, answer = None, _Answer(error.error_status_hint, b"bad request\n")
        head_only = request is not None and request.method == b"HEAD"
        for event in _events(answer, head_only=head_only):
            writer.write(connection.send(event) or b"")
        async with asyncio.timeout(ANSWER_TIMEOUT_S):
            await writer.drain()

    def _answer(self, request: h11.Request) -> _Answer:
        if request.method not in {b"GET", b"HEAD"}:
            return _Answer(405, b"only GET and HEAD\n")
        match request.target.partition(b"?")[0]:
            case b"/metrics":
                return _Answer(200, self._probes.metrics(), self._probes.metrics_type)
            case b"/healthz":
                return _Answer(200, b"ok\n")
            case b"/readyz":
                reason = self._probes.not_ready_because()
                return _Answer(503, f"{reason}\n".encode()) if reason else _Answer(200, b"ok\n")
            case _:
                return _Answer(404, b"there are /metrics, /healthz and /readyz\n")


async def _read_request(
    connection: h11.Connection, reader: asyncio.StreamReader
) -> h11.Request | None:
    while True:
        event = connection.next_event()
        if event is h11.NEED_DATA:
            connection.receive_data(await reader.read(4096))
        elif isinstance(event, h11.Request):
            return event
        else:
            return None  # closed before it asked


def _events(answer: _Answer, *, head_only: bool) -> tuple[h11.Event, ...]:
    headers = [
        ("content-type", answer.content_type),
        ("content-length", str(len(answer.body))),
        ("cache-control", "no-store"),
        ("x-content-type-options", "nosniff"),
        ("connection", "close"),
    ]
    head = h11.Response(status_code=answer.status, headers=headers)
    body = () if head_only else (h11.Data(data=answer.body),)
    return (head, *body, h11.EndOfMessage())
