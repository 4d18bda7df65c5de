"""A SPDY client on a socket, for tests of the streaming server: keeps all that it was sent."""

from __future__ import annotations

import asyncio
from collections import defaultdict
from typing import TYPE_CHECKING
from urllib.parse import urlsplit

from noderuntime.cri.streaming import events, spdy

if TYPE_CHECKING:
    from collections.abc import Callable


class SpdyClient:
    """One upgraded connection. ``keeps_rules`` makes it give credit, as a strict peer would."""

    def __init__(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self.reader, self.writer = reader, writer
        self.protocol = spdy.Connection(is_client=True)
        self.data: dict[int, bytearray] = defaultdict(bytearray)
        self.finished: set[int] = set()
        self.accepted: set[int] = set()
        self.resets: dict[int, int] = {}
        self.keeps_rules = False
        self.is_over = False
        self.head = b""

    @classmethod
    async def connect(
        cls, url: str, protocol: str, *, method: str = "POST", upgrade: str = "SPDY/3.1"
    ) -> SpdyClient:
        parts = urlsplit(url)
        reader, writer = await asyncio.open_connection(parts.hostname, parts.port)
        client = cls(reader, writer)
        writer.write(
            f"{method} {parts.path} HTTP/1.1\r\nHost: x\r\nConnection: Upgrade\r\n"
            f"Upgrade: {upgrade}\r\nX-Stream-Protocol-Version: {protocol}\r\n"
            "Content-Length: 0\r\n\r\n".encode()
        )
        try:
            client.head = await reader.readuntil(b"\r\n\r\n")
        except asyncio.IncompleteReadError as error:
            client.head = error.partial
        return client

    @property
    def status(self) -> int:
        return int(self.head.split()[1])

    async def open(self, kind: str, **headers: str) -> int:
        stream_id = self.protocol.open({"streamType": kind, **headers})
        await self.flush()
        await self.until(lambda: stream_id in self.accepted or stream_id in self.resets)
        return stream_id

    async def send(self, stream_id: int, data: bytes, *, finished: bool = False) -> None:
        self.protocol.send(stream_id, data, finished=finished)
        await self.flush()

    async def flush(self) -> None:
        self.writer.write(self.protocol.take_output())
        await self.writer.drain()

    async def until(self, condition: Callable[[], bool], timeout_s: float = 5.0) -> None:
        async with asyncio.timeout(timeout_s):
            while not condition():
                data = await self.reader.read(65536)
                if not data:
                    self.is_over = True
                    assert condition(), "the server closed the connection"
                    return
                for event in self.protocol.receive(data):
                    self.take(event)
                await self.flush()

    def take(self, event: events.Event) -> None:
        match event:
            case events.StreamAccepted(stream_id):
                self.accepted.add(stream_id)
            case events.DataReceived(stream_id, data, finished):
                self.data[stream_id] += data
                if self.keeps_rules:
                    self.protocol.consumed(stream_id, len(data))
                if finished:
                    self.finished.add(stream_id)
            case events.StreamReset(stream_id, status):
                self.resets[stream_id] = status
            case _:
                pass

    async def close(self) -> None:
        self.writer.close()
        await self.writer.wait_closed()
