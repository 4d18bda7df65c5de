"""Channels of a WebSocket: the first byte of a message is the number of the stream it is for.

All streams are there from the beginning, and none of ours is closed before the connection is. In
v5 the peer half-closes a channel with a message of 255 and its number; before, it cannot. The
``base64`` protocols have text instead of bytes, the number as a digit.
Source: ``k8s.io/streaming`` v0.37.2 ``pkg/httpstream/wsstream``, KEP-4006.
"""

from __future__ import annotations

import base64
import binascii
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Final

from noderuntime.cri.streaming.events import (
    Closed,
    DataReceived,
    Event,
    ProtocolError,
    Reset,
    StreamOpened,
)
from noderuntime.cri.streaming.spdy import MAX_DATA_BYTES
from noderuntime.cri.streaming.websocket import Frames, Piece

V5: Final = "v5.channel.k8s.io"
BYTES: Final = ("v4.channel.k8s.io", "channel.k8s.io")
BASE64: Final = ("v4.base64.channel.k8s.io", "base64.channel.k8s.io")
_CLOSE: Final = 255


@dataclass(frozen=True, slots=True, kw_only=True)
class Channel:
    """One stream: the headers that SPDY would open it with, None for a number that is not used."""

    headers: Mapping[str, str] | None
    is_read: bool = False
    is_written: bool = False
    greeting: bytes | None = None  # a first message; an empty one only shows that we are there


class ChannelConnection:
    """The server's end. A stream's ID is its number."""

    def __init__(self, protocol: str, channels: Sequence[Channel]) -> None:
        """Greet, and open the streams with the first call of ``receive``."""
        self._frames = Frames()
        self._is_base64 = protocol in BASE64
        self._can_close = protocol == V5
        self._has_plain_status = not protocol.startswith(("v4.", "v5."))
        self._readable = {n for n, c in enumerate(channels) if c.headers is not None and c.is_read}
        self._writable = {
            n for n, c in enumerate(channels) if c.headers is not None and c.is_written
        }
        self._events: list[Event] = []
        self._number: int | None = None  # of the message that is arriving
        self._closing = False  # that message is a half-close
        self._text = ""  # of base64, less than a group of four
        for number, channel in enumerate(channels):
            if channel.headers is not None:
                finished = number not in self._readable
                self._events.append(StreamOpened(number, channel.headers, finished))
            if channel.greeting is not None:
                self._message(number, channel.greeting)
        self._fixed_streams = len(self._events)

    @property
    def half_closes(self) -> bool:
        """Never to the peer, which knows the end of a stream by that of the connection."""
        return False

    @property
    def fixed_streams(self) -> int | None:
        """All of them."""
        return self._fixed_streams

    @property
    def has_plain_status(self) -> bool:
        """Before v4."""
        return self._has_plain_status

    # -- what the peer sent

    def receive(self, data: bytes) -> list[Event]:
        """Read bytes; returns what happened, in order. Raises ProtocolError: close."""
        events, self._events = self._events, []
        for piece in self._frames.receive(data):
            if piece is None:
                events.append(Closed())
                continue
            if content := self._bytes_of(piece):
                self._take(content, events)
            if piece.is_last:
                self._end_message(events)
        return events

    def _bytes_of(self, piece: Piece) -> bytes:
        """Return what the piece carries, the number in front of a new message's as one byte."""
        data = piece.data
        if not self._is_base64:
            if isinstance(data, str):
                raise ProtocolError("a text message in a protocol of bytes")
            return data
        text = data if isinstance(data, str) else data.decode("latin-1")
        number = b""
        if self._number is None and text:
            number, text = bytes([(ord(text[0]) - ord("0")) % 256]), text[1:]
        text = self._text + text
        whole = len(text) // 4 * 4
        text, self._text = text[:whole], text[whole:]
        try:
            return number + base64.b64decode(text, validate=True)
        except (binascii.Error, ValueError) as error:
            raise ProtocolError("a message that is not base64") from error

    def _take(self, content: bytes, events: list[Event]) -> None:
        if self._number is None:
            if self._can_close and content[0] == _CLOSE and not self._closing:
                self._closing, content = True, content[1:]
                if not content:
                    return
            self._number, content = content[0], content[1:]
        if self._closing:
            if content:
                raise ProtocolError("a half-close with more than a channel's number")
        elif content and self._number in self._readable:
            events.append(DataReceived(self._number, content, finished=False))

    def _end_message(self, events: list[Event]) -> None:
        if self._text:
            raise ProtocolError("a message of base64 that ends early")
        if self._closing:
            if self._number is None:
                raise ProtocolError("a half-close without a channel's number")
            if self._number in self._readable:
                self._readable.discard(self._number)
                events.append(DataReceived(self._number, b"", finished=True))
        self._number, self._closing = None, False

    # -- what we send

    def take_output(self) -> bytes:
        """Return the bytes to write now."""
        return self._frames.take()

    def _message(self, number: int, data: bytes | memoryview) -> None:
        if self._is_base64:
            self._frames.message(chr(ord("0") + number) + base64.b64encode(data).decode())
        else:
            self._frames.message(b"".join((bytes((number,)), data)))

    def accept(self, stream_id: int) -> None:
        """There is nothing to answer."""

    def reset(self, stream_id: int, status: Reset) -> None:
        """Drop what comes, send no more."""
        self._readable.discard(stream_id)
        self._writable.discard(stream_id)

    def sendable(self, stream_id: int) -> int | None:
        """Return the size of a message, or None when the stream takes no more for good."""
        return MAX_DATA_BYTES if stream_id in self._writable and self._frames.is_open else None

    def send(self, stream_id: int, data: bytes | memoryview, *, finished: bool = False) -> None:
        """Send at most ``sendable`` bytes; ``finished`` is only remembered."""
        if stream_id not in self._writable:
            return
        if data:
            self._message(stream_id, data)
        if finished:
            self._writable.discard(stream_id)

    def consumed(self, stream_id: int, count: int) -> None:
        """TCP is the only brake."""

    def keep_alive(self) -> None:
        """Queue a pong."""
        self._frames.pong()

    def close(self) -> None:
        """Say goodbye: this is what ends the peer's streams."""
        self._frames.close()
