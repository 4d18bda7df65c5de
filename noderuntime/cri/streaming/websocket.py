"""WebSocket's handshake and frames (RFC 6455), by wsproto; no sockets here.

Messages are handed on in the pieces in which they arrive, so none is ever held whole; a control
frame has at most 125 bytes. No extension is offered, so nothing is compressed.
"""

from __future__ import annotations

import base64
import binascii
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Final

from wsproto import events as ws
from wsproto.connection import Connection, ConnectionState, ConnectionType
from wsproto.frame_protocol import CloseReason
from wsproto.utilities import generate_accept_token

from noderuntime.cri.streaming.events import ProtocolError

VERSION: Final = b"13"
_KEY_BYTES: Final = 16


@dataclass(frozen=True, slots=True)
class Piece:
    """Part of a message; ``is_last`` with its end."""

    data: bytes | str
    is_last: bool


class Frames:
    """The server's end after the handshake. Output is gathered until ``take``."""

    def __init__(self) -> None:
        """Begin open."""
        self._connection = Connection(ConnectionType.SERVER)
        self._output = bytearray()

    @property
    def is_open(self) -> bool:
        """Whether messages may be sent: neither side has said goodbye."""
        return self._connection.state is ConnectionState.OPEN

    def receive(self, data: bytes) -> Iterator[Piece | None]:
        """Yield pieces, and None when the peer closes; raises ProtocolError."""
        state = self._connection.state
        if state in {ConnectionState.REMOTE_CLOSING, ConnectionState.CLOSED}:
            return  # what comes behind a goodbye is nothing
        self._connection.receive_data(data)
        for event in self._connection.events():
            match event:
                case ws.BytesMessage():
                    yield Piece(bytes(event.data), event.message_finished)
                case ws.TextMessage():
                    yield Piece(event.data, event.message_finished)
                case ws.Ping():
                    if self.is_open:
                        self._output += self._connection.send(event.response())
                case ws.CloseConnection():
                    self._on_close(event)
                    yield None
                case _:
                    pass

    def _on_close(self, event: ws.CloseConnection) -> None:
        state = self._connection.state
        if state in {ConnectionState.OPEN, ConnectionState.LOCAL_CLOSING}:
            raise ProtocolError(
                f"websocket: {event.reason}"
            )  # wsproto's way to tell of a bad frame
        if state is ConnectionState.REMOTE_CLOSING:
            self._output += self._connection.send(event.response())

    def message(self, data: bytes | str) -> None:
        """Queue one whole message; nothing after a goodbye."""
        if self.is_open:
            event = ws.TextMessage(data) if isinstance(data, str) else ws.BytesMessage(data)
            self._output += self._connection.send(event)

    def pong(self) -> None:
        """Queue a pong that nobody asked for: a one-way sign of life (section 5.5.3)."""
        if self.is_open:
            self._output += self._connection.send(ws.Pong())

    def close(self) -> None:
        """Queue a normal goodbye, once."""
        if self.is_open:
            self._output += self._connection.send(ws.CloseConnection(CloseReason.NORMAL_CLOSURE))

    def take(self) -> bytes:
        """Return what is queued."""
        output = bytes(self._output)
        self._output.clear()
        return output


def answer_of(headers: Mapping[bytes, bytes]) -> bytes | None:
    """Return Sec-WebSocket-Accept for a handshake (names in lower case); None when it is none."""
    key = headers.get(b"sec-websocket-key", b"")
    try:
        is_key = len(base64.b64decode(key, validate=True)) == _KEY_BYTES
    except (binascii.Error, ValueError):
        is_key = False
    if not is_key or headers.get(b"sec-websocket-version") != VERSION:
        return None
    return generate_accept_token(key)
