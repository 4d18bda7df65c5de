"""What happens on a streaming connection, as values; the words are SPDY's."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from enum import IntEnum


class Reset(IntEnum):
    """Status of RST_STREAM."""

    PROTOCOL_ERROR = 1
    INVALID_STREAM = 2
    REFUSED_STREAM = 3
    CANCEL = 5
    INTERNAL_ERROR = 6
    FLOW_CONTROL_ERROR = 7
    STREAM_ALREADY_CLOSED = 9


class ProtocolError(Exception):
    """The peer broke the protocol so that the connection cannot go on."""


class SpdyError(ProtocolError):
    """It broke SPDY's."""


@dataclass(frozen=True, slots=True)
class StreamOpened:
    """SYN_STREAM, to be answered by ``accept`` or ``reset``; ``finished``: no data will come."""

    stream_id: int
    headers: Mapping[str, str]
    finished: bool


@dataclass(frozen=True, slots=True)
class StreamAccepted:
    """SYN_REPLY to a stream that we opened."""

    stream_id: int


@dataclass(frozen=True, slots=True)
class DataReceived:
    """Data of a stream; ``finished`` with the last of it, which may be empty."""

    stream_id: int
    data: bytes
    finished: bool


@dataclass(frozen=True, slots=True)
class StreamReset:
    """RST_STREAM: the stream is over in both directions."""

    stream_id: int
    status: int


@dataclass(frozen=True, slots=True)
class WindowOpened:
    """There may be credit again: for one stream, or for all of them when ``stream_id`` is 0."""

    stream_id: int


@dataclass(frozen=True, slots=True)
class GoneAway:
    """GOAWAY: the peer opens no more streams."""


@dataclass(frozen=True, slots=True)
class Closed:
    """The peer said that this is the end of the connection."""


Event = (
    StreamOpened | StreamAccepted | DataReceived | StreamReset | WindowOpened | GoneAway | Closed
)
