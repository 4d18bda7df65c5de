"""A WebSocket client on a socket, for tests of the streaming server: channels, or SPDY in a tunnel."""

from __future__ import annotations

import asyncio
import base64
from collections import defaultdict
from typing import TYPE_CHECKING
from urllib.parse import urlsplit

from wsproto import ConnectionType
from wsproto import events as ws
from wsproto.connection import Connection

from noderuntime.cri.streaming import events, spdy
from tests.fakes.spdy_client import SpdyClient

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping

KEY = base64.b64encode(b"0123456789abcdef").decode()


async def handshake(
    url: str, protocol: str, *, method: str = "GET", headers: Mapping[str, str] | None = None
) -> tuple[asyncio.StreamReader, asyncio.StreamWriter, bytes]:
    """Ask for a WebSocket; returns the connection and the head of the answer."""
    parts = urlsplit(url)
    reader, writer = await asyncio.open_connection(parts.hostname, parts.port)
    asked = {
        "Host": "x",
        "Connection": "keep-alive, Upgrade",
        "Upgrade": "websocket",
        "Sec-WebSocket-Key": KEY,
        "Sec-WebSocket-Version": "13",
        **({"Sec-WebSocket-Protocol": protocol} if protocol else {}),
        **(headers or {}),
    }
    lines = "".join(f"{name}: {value}\r\n" for name, value in asked.items() if value)
    writer.write(f"{method} {parts.path}?a=b HTTP/1.1\r\n{lines}\r\n".encode())
    try:
        head = await reader.readuntil(b"\r\n\r\n")
    except asyncio.IncompleteReadError as error:
        head = error.partial
    return reader, writer, head


class WebSocketClient:
    """One upgraded connection; keeps what came on each channel."""

    def __init__(
        self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter, head: bytes
    ) -> None:
        self.reader, self.writer, self.head = reader, writer, head
        self.protocol = Connection(ConnectionType.CLIENT)
        self.data: dict[int, bytearray] = defaultdict(bytearray)
        self.messages: list[bytes | str] = []
        self.pongs = 0
        self.close_code: int | None = None
        self._message: list[bytes | str] = []

    @classmethod
    async def connect(cls, url: str, protocol: str) -> WebSocketClient:
        client = cls(*await handshake(url, protocol))
        assert client.status == 101, client.head
        return client

    @property
    def status(self) -> int:
        return int(self.head.split()[1])

    async def send(self, channel: int, data: bytes) -> None:
        await self.event(ws.BytesMessage(bytes([channel]) + data))

    async def half_close(self, channel: int) -> None:
        await self.event(ws.BytesMessage(bytes([255, channel])))

    async def event(self, event: ws.Event) -> None:
        self.writer.write(self.protocol.send(event))
        await self.writer.drain()

    async def until(self, condition: Callable[[], bool], timeout_s: float = 5.0) -> None:
        async with asyncio.timeout(timeout_s):
            while not condition():
                data = await self.reader.read(65536)
                if not data:
                    assert condition(), "the server closed the connection"
                    return
                self.protocol.receive_data(data)
                for event in self.protocol.events():
                    self._take(event)

    async def until_closed(self, timeout_s: float = 5.0) -> None:
        await self.until(lambda: self.close_code is not None, timeout_s)

    def _take(self, event: ws.Event) -> None:
        match event:
            case ws.BytesMessage() | ws.TextMessage():
                piece = event.data
                self._message.append(piece if isinstance(piece, str) else bytes(piece))
                if event.message_finished:
                    self._finish()
            case ws.Pong():
                self.pongs += 1
            case ws.CloseConnection():
                self.close_code = event.code
            case _:
                pass

    def _finish(self) -> None:
        parts, self._message = self._message, []
        if all(isinstance(part, str) for part in parts):
            text = "".join(part for part in parts if isinstance(part, str))
            self.messages.append(text)
            self.data[ord(text[0]) - ord("0")] += base64.b64decode(text[1:])
        else:
            data = b"".join(part for part in parts if isinstance(part, bytes))
            self.messages.append(data)
            self.data[data[0]] += data[1:]

    async def close(self) -> None:
        self.writer.close()
        await self.writer.wait_closed()


class _ClientTunnel(spdy.Connection):
    """The client's end of SPDY in a WebSocket."""

    def __init__(self) -> None:
        super().__init__(is_client=True)
        self.frames = Connection(ConnectionType.CLIENT)

    def receive(self, data: bytes) -> list[events.Event]:
        self.frames.receive_data(data)
        found: list[events.Event] = []
        for event in self.frames.events():
            if isinstance(event, ws.BytesMessage):
                found += super().receive(bytes(event.data))
        return found

    def take_output(self) -> bytes:
        output = super().take_output()
        middle = len(output) // 2  # a message may end anywhere
        parts = (output[:middle], output[middle:])
        return b"".join(self.frames.send(ws.BytesMessage(part)) for part in parts if part)


class TunnelClient(SpdyClient):
    """SPDY through a WebSocket."""

    @classmethod
    async def dial(cls, url: str, protocol: str) -> TunnelClient:
        reader, writer, head = await handshake(url, protocol)
        client = cls(reader, writer)
        client.protocol = _ClientTunnel()
        client.head = head
        assert client.status == 101, head
        return client
