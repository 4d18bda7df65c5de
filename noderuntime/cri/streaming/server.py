"""The streaming server: a TCP socket, one HTTP/1.1 request a connection, then SPDY or WebSocket.

Who connects proves itself by the token in the path and nothing else, so the address should be the
loopback's: the kubelet is the client and comes from this machine. h11 reads the request; everything
before the token is checked has a bound in size, time and number.
"""

from __future__ import annotations

import asyncio
import contextlib
import ipaddress
import logging
import socket
from functools import partial
from typing import TYPE_CHECKING, Final

import h11

from noderuntime.cri import boundary
from noderuntime.cri.streaming import port_forward, remote_command
from noderuntime.cri.streaming.session import Session, StreamClosedError
from noderuntime.cri.streaming.tokens import Forward, Ticket, Tokens
from noderuntime.cri.streaming.upgrade import Refused, Upgrade, kind_and_token, negotiate
from noderuntime.engine.state import ContainerState, SandboxState
from noderuntime.errors import ConfigError, NotFoundError
from noderuntime.telemetry import log

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping

    from noderuntime.engine.engine import Engine

_log = logging.getLogger(__name__)

MAX_CONNECTIONS: Final = 512
REQUEST_S: Final = 10.0
INPUT_BYTES: Final = 128 << 10  # the socket is not read while there is twice as much
STOP_S: Final = 5.0


class StreamingServer:
    """Hands out URLs and serves them. ``start`` before the first URL."""

    def __init__(self, engine: Engine, address: str, tokens: Tokens | None = None) -> None:
        """Serve ``engine`` on ``address`` (``IP:PORT``, port 0 is any); raises ConfigError."""
        self._engine = engine
        self._host, self._port = _parse(address)
        self._tokens = tokens or Tokens()
        self._server: asyncio.Server | None = None
        self._tasks: set[asyncio.Task[object]] = set()

    async def start(self) -> None:
        """Listen. Raises ConfigError when the address cannot be had."""
        try:
            self._server = await asyncio.start_server(
                self._serve, self._host, self._port, limit=INPUT_BYTES
            )
        except OSError as error:
            raise ConfigError(
                f"streaming.address {self._host}:{self._port} cannot be had: {error.strerror}"
            ) from error
        self._port = self._server.sockets[0].getsockname()[1]

    async def stop(self) -> None:
        """Take no new connections and end every session; their execs are killed."""
        if self._server is not None:
            self._server.close()
        for task in self._tasks:
            task.cancel()
        if self._tasks:
            await asyncio.wait(self._tasks, timeout=STOP_S)

    def url(self, ticket: Ticket) -> str:
        """Return the URL that stands for the ticket, for one use within a minute."""
        host = f"[{self._host}]" if ":" in self._host else self._host
        return f"http://{host}:{self._port}/{ticket.kind}/{self._tokens.issue(ticket)}"

    async def _serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        task = asyncio.current_task()
        assert task is not None  # noqa: S101  # a callback of start_server runs in a task
        self._tasks.add(task)
        try:
            if len(self._tasks) <= MAX_CONNECTIONS:
                await boundary.contained("streaming session", self._connection(reader, writer))
        except asyncio.CancelledError:
            pass  # by stop(); asyncio would log a cancelled callback as an error
        finally:
            self._tasks.discard(task)
            writer.transport.abort()

    async def _connection(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        """Serve one connection; a peer that goes, or never was one of ours, is no error."""
        with contextlib.suppress(OSError, StreamClosedError, TimeoutError, h11.RemoteProtocolError):
            _keep_alive(writer)
            await self._upgrade(reader, writer)

    async def _upgrade(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        http = h11.Connection(h11.SERVER)
        try:
            async with asyncio.timeout(REQUEST_S):
                request = await _read_request(http, reader)
            ticket, agreed = self._admit(request)
            wire = agreed.wire(ticket)
        except Refused as refusal:
            await _refuse(http, writer, refusal)
            return
        answer = h11.InformationalResponse(
            status_code=101, headers=list(agreed.headers), reason=b"Switching Protocols"
        )
        writer.write(http.send(answer) or b"")
        await writer.drain()
        early, _ = http.trailing_data
        await self._session(Session(reader, writer, wire), early, ticket)

    def _admit(self, request: h11.Request) -> tuple[Ticket, Upgrade]:
        kind, token = kind_and_token(request)
        agreed = negotiate(request, kind)
        ticket = self._tokens.redeem(kind, token)
        if ticket is None:
            raise Refused(404, "the URL is unknown, used already or older than a minute")
        return ticket, agreed

    async def _session(self, session: Session, early: bytes, ticket: Ticket) -> None:
        if isinstance(ticket, Forward):
            serve = partial(port_forward.serve, session, ticket, self._engine)
            ids = {"sandbox_id": ticket.sandbox_id}
        else:
            serve = partial(remote_command.serve, session, ticket, self._engine)
            ids = {"container_id": ticket.container_id}
        with log.fields(rpc=f"stream.{ticket.kind}", **ids):
            _log.info("streaming session began")
            await session.run(early, serve, self._is_over(ticket))
            _log.info("streaming session ended")

    def _is_over(self, ticket: Ticket) -> Callable[[], bool]:
        """Return the question whether what the session is for has ended."""

        def is_over() -> bool:
            try:
                if isinstance(ticket, Forward):
                    return self._engine.sandbox(ticket.sandbox_id).state is not SandboxState.READY
                record = self._engine.container(ticket.container_id)
            except NotFoundError:
                return True
            return record.state is not ContainerState.RUNNING

        return is_over


async def _read_request(http: h11.Connection, reader: asyncio.StreamReader) -> h11.Request:
    request: h11.Request | None = None
    while True:
        event = http.next_event()
        if event is h11.NEED_DATA:
            http.receive_data(await reader.read(16384))
        elif isinstance(event, h11.Request):
            request = event
        elif isinstance(event, h11.Data):
            raise Refused(400, "the request has a body")
        elif isinstance(event, h11.EndOfMessage) and request is not None:
            return request
        else:
            raise TimeoutError  # closed before there was a request


async def _refuse(http: h11.Connection, writer: asyncio.StreamWriter, refusal: Refused) -> None:
    body = f"{refusal}\n".encode()
    headers = [
        *refusal.headers,
        (b"Content-Type", b"text/plain; charset=utf-8"),
        (b"Content-Length", str(len(body)).encode()),
        (b"Connection", b"close"),
    ]
    parts = (
        h11.Response(status_code=refusal.status, headers=headers),
        h11.Data(data=body),
        h11.EndOfMessage(),
    )
    with contextlib.suppress(h11.LocalProtocolError):
        writer.write(b"".join(http.send(part) or b"" for part in parts))
    async with asyncio.timeout(REQUEST_S):
        await writer.drain()
        writer.close()
        await writer.wait_closed()


def _keep_alive(writer: asyncio.StreamWriter) -> None:
    """Notice within about a minute that a peer's machine is gone. tcp(7)."""
    connection: socket.socket = writer.get_extra_info("socket")
    options: Mapping[tuple[int, int], int] = {
        (socket.SOL_SOCKET, socket.SO_KEEPALIVE): 1,
        (socket.IPPROTO_TCP, socket.TCP_KEEPIDLE): 30,
        (socket.IPPROTO_TCP, socket.TCP_KEEPINTVL): 10,
        (socket.IPPROTO_TCP, socket.TCP_KEEPCNT): 3,
        (socket.IPPROTO_TCP, socket.TCP_NODELAY): 1,
    }
    for (level, option), value in options.items():
        connection.setsockopt(level, option, value)


def _parse(address: str) -> tuple[str, int]:
    host, _, port = address.rpartition(":")
    try:
        ip = ipaddress.ip_address(host.strip("[]"))
    except ValueError as error:
        raise ConfigError(f"streaming.address {address!r}: is not IP:PORT") from error
    if not (port.isascii() and port.isdigit() and int(port) <= 65535):
        raise ConfigError(f"streaming.address {address!r}: is not IP:PORT")
    return str(ip), int(port)
