"""SPDY/3.1 framing as a pure protocol: bytes in, events out; no sockets, no clock.

kubectl, the API server and the kubelet speak it to the runtime for exec, attach and port-forward.
One ``Connection`` is one end. Everything that a peer can make large has a bound: control frames,
header blocks after decompression, streams. DATA is handed on as it arrives, never gathered to a
whole frame.

Flow control has a quirk: ``moby/spdystream`` v0.5.1, which every Go client uses, neither sends
WINDOW_UPDATE nor looks at one. A sender that waits for credit would stop after 64 KiB for ever.
So credit binds us only once the peer has shown that it keeps the rules (SETTINGS with an initial
window, or a WINDOW_UPDATE); until then TCP is the only brake, and the layer above stops reading
to use it.
Source: SPDY Protocol Draft 3.1, sections 2.2 to 2.6.
"""

from __future__ import annotations

import struct
from dataclasses import dataclass, field
from enum import IntEnum
from typing import TYPE_CHECKING, Final

from noderuntime.cri.streaming.events import (
    DataReceived,
    Event,
    GoneAway,
    Reset,
    SpdyError,
    StreamAccepted,
    StreamOpened,
    StreamReset,
    WindowOpened,
)
from noderuntime.cri.streaming.headers import HeaderCodec

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping

VERSION: Final = 3
MAX_CONTROL_BYTES: Final = 64 << 10
MAX_STREAMS: Final = 1024
MAX_DATA_BYTES: Final = 32 << 10  # of one DATA frame that we send
INITIAL_WINDOW: Final = 64 << 10
MAX_WINDOW: Final = 2**31 - 1
UPDATE_AFTER: Final = INITIAL_WINDOW // 2  # credit is given back in steps of this
_SETTINGS_INITIAL_WINDOW: Final = 7
_FIN: Final = 0x01
_UNIDIRECTIONAL: Final = 0x02


class Control(IntEnum):
    """Types of control frames."""

    SYN_STREAM = 1
    SYN_REPLY = 2
    RST_STREAM = 3
    SETTINGS = 4
    PING = 6
    GOAWAY = 7
    HEADERS = 8
    WINDOW_UPDATE = 9


@dataclass(slots=True)
class _Stream:
    """The state of one stream at this end."""

    remote_open: bool
    local_open: bool = True
    sent: int = 0
    credit: int = INITIAL_WINDOW  # all that the peer has let us send so far
    unacknowledged: int = 0  # consumed here, not yet given back


@dataclass(slots=True)
class _Frame:
    """A DATA frame whose payload is still arriving."""

    stream_id: int
    left: int
    finished: bool


@dataclass(slots=True)
class _Credit:
    """The connection's own window, stream 0 of SPDY/3.1."""

    sent: int = 0
    credit: int = INITIAL_WINDOW
    unacknowledged: int = 0


@dataclass
class Connection:
    """One end of a SPDY connection. Methods queue bytes; ``take_output`` hands them over."""

    is_client: bool = False
    _input: bytearray = field(default_factory=bytearray)
    _output: bytearray = field(default_factory=bytearray)
    _events: list[Event] = field(default_factory=list[Event])
    _streams: dict[int, _Stream] = field(default_factory=dict[int, _Stream])
    _data: _Frame | None = None
    _codec: HeaderCodec = field(default_factory=HeaderCodec)
    _session: _Credit = field(default_factory=_Credit)
    _initial_credit: int = INITIAL_WINDOW
    _last_received: int = 0
    _last_opened: int = 0
    _stream_credit_binds: bool = False
    _session_credit_binds: bool = False
    _gone_away: bool = False

    def __post_init__(self) -> None:
        """Say who reads which frame; other kinds are skipped."""
        self._handlers: dict[int, Callable[[int, bytes], None]] = {
            Control.SYN_STREAM: self._on_syn_stream,
            Control.SYN_REPLY: self._on_syn_reply,
            Control.RST_STREAM: self._on_rst_stream,
            Control.SETTINGS: self._on_settings,
            Control.PING: self._on_ping,
            Control.GOAWAY: self._on_goaway,
            Control.HEADERS: self._on_headers,
            Control.WINDOW_UPDATE: self._on_window_update,
        }

    @property
    def half_closes(self) -> bool:
        """Always."""
        return True

    @property
    def fixed_streams(self) -> int | None:
        """None: the peer opens them."""
        return None

    @property
    def has_plain_status(self) -> bool:
        """Never: only v4 and v5 are served."""
        return False

    # -- what the peer sent

    def receive(self, data: bytes) -> list[Event]:
        """Read bytes; returns what happened, in order. Raises SpdyError: close the connection."""
        self._input += data
        while self._step():
            pass
        events, self._events = self._events, []
        return events

    def _step(self) -> bool:
        """Take one frame, or what is there of a DATA frame; False when more bytes are needed."""
        if self._data is not None:
            return self._continue_data(self._data)
        if len(self._input) < 8:
            return False
        first, second = struct.unpack_from(">II", self._input)
        flags, length = second >> 24, second & 0xFFFFFF
        if not first & 0x80000000:
            del self._input[:8]
            self._data = _Frame(stream_id=first, left=length, finished=bool(flags & _FIN))
            return True
        if first >> 16 != 0x8000 | VERSION:
            raise SpdyError(f"version {first >> 16 & 0x7FFF} is not SPDY/3")
        if length > MAX_CONTROL_BYTES:
            raise SpdyError(f"control frame of {length} bytes")
        if len(self._input) < 8 + length:
            return False
        payload = bytes(self._input[8 : 8 + length])
        del self._input[: 8 + length]
        if handler := self._handlers.get(first & 0xFFFF):
            handler(flags, payload)
        return True

    def _continue_data(self, frame: _Frame) -> bool:
        if frame.left and not self._input:
            return False
        data = bytes(self._input[: frame.left])
        del self._input[: len(data)]
        frame.left -= len(data)
        finished = frame.finished and not frame.left
        if not frame.left:
            self._data = None
        self._on_data(frame.stream_id, data, finished=finished)
        return True

    def _on_data(self, stream_id: int, data: bytes, *, finished: bool) -> None:
        stream = self._streams.get(stream_id)
        if stream is None or not stream.remote_open:
            self._consumed_by_session(len(data))  # dropped is as good as consumed
            if stream_id == 0 or stream_id > max(self._last_received, self._last_opened):
                raise SpdyError(f"data for stream {stream_id}, which was never opened")
            return
        if data or finished:
            self._events.append(DataReceived(stream_id, data, finished))
        if finished:
            stream.remote_open = False
            self._forget_if_over(stream_id)

    def _on_syn_stream(self, flags: int, payload: bytes) -> None:
        if len(payload) < 10:
            raise SpdyError("short SYN_STREAM")
        stream_id = _id_at(payload, 0)
        headers = self._codec.read(payload[10:])  # always: the codec's state must not skip a block
        if stream_id % 2 == (0 if not self.is_client else 1) or stream_id <= self._last_received:
            raise SpdyError(f"stream {stream_id} is out of order")
        self._last_received = stream_id
        if self._gone_away or len(self._streams) >= MAX_STREAMS:
            self._control(Control.RST_STREAM, 0, _pair(stream_id, Reset.REFUSED_STREAM))
            return
        finished = bool(flags & _FIN)
        self._streams[stream_id] = _Stream(
            remote_open=not finished,
            local_open=not flags & _UNIDIRECTIONAL,
            credit=self._initial_credit,
        )
        self._events.append(StreamOpened(stream_id, headers, finished))

    def _on_syn_reply(self, flags: int, payload: bytes) -> None:
        stream_id = self._with_headers(payload)
        stream = self._streams.get(stream_id)
        if stream is not None:
            self._events.append(StreamAccepted(stream_id))
            self._finish_remote(stream_id, stream, flags)

    def _on_headers(self, flags: int, payload: bytes) -> None:
        stream_id = self._with_headers(payload)
        stream = self._streams.get(stream_id)
        if stream is not None:
            self._finish_remote(stream_id, stream, flags)

    def _on_rst_stream(self, _: int, payload: bytes) -> None:
        stream_id, status = _read_pair(payload, "RST_STREAM")
        if self._streams.pop(stream_id, None) is not None:
            self._events.append(StreamReset(stream_id, status))

    def _on_settings(self, _: int, payload: bytes) -> None:
        if len(payload) < 4 or len(payload) != 4 + 8 * int.from_bytes(payload[:4], "big"):
            raise SpdyError("SETTINGS of a wrong length")
        for offset in range(4, len(payload), 8):
            number, value = struct.unpack_from(">II", payload, offset)
            if number & 0xFFFFFF == _SETTINGS_INITIAL_WINDOW:
                self._set_initial_window(value)

    def _on_ping(self, flags: int, payload: bytes) -> None:
        if len(payload) != 4:
            raise SpdyError("PING of a wrong length")
        if payload[3] % 2 == (0 if self.is_client else 1):  # the peer's own, not an echo
            self._control(Control.PING, flags, payload)

    def _on_goaway(self, _: int, payload: bytes) -> None:
        _read_pair(payload, "GOAWAY")
        self._gone_away = True
        self._events.append(GoneAway())

    def _on_window_update(self, _: int, payload: bytes) -> None:
        stream_id, delta = _read_pair(payload, "WINDOW_UPDATE")
        delta &= 0x7FFFFFFF
        if delta == 0:
            raise SpdyError("WINDOW_UPDATE of 0")
        if stream_id == 0:
            self._session_credit_binds = self._stream_credit_binds = True
            self._session.credit += delta
            if self._session.credit - self._session.sent > MAX_WINDOW:
                raise SpdyError("the connection's window overflows")
        else:
            self._stream_credit_binds = True
            stream = self._streams.get(stream_id)
            if stream is None:
                return
            stream.credit += delta
            if stream.credit - stream.sent > MAX_WINDOW:
                self.reset(stream_id, Reset.FLOW_CONTROL_ERROR)
                self._events.append(StreamReset(stream_id, Reset.FLOW_CONTROL_ERROR))
                return
        self._events.append(WindowOpened(stream_id))

    def _set_initial_window(self, value: int) -> None:
        if value > MAX_WINDOW:
            raise SpdyError("an initial window that is too large")
        self._stream_credit_binds = True
        for stream in self._streams.values():
            stream.credit += value - self._initial_credit
        self._initial_credit = value
        self._events.append(WindowOpened(0))

    def _with_headers(self, payload: bytes) -> int:
        """Read the block for the codec's sake; nothing here needs what it says."""
        if len(payload) < 4:
            raise SpdyError("short header frame")
        self._codec.read(payload[4:])
        return _id_at(payload, 0)

    def _finish_remote(self, stream_id: int, stream: _Stream, flags: int) -> None:
        if flags & _FIN and stream.remote_open:
            stream.remote_open = False
            self._events.append(DataReceived(stream_id, b"", finished=True))
            self._forget_if_over(stream_id)

    def _forget_if_over(self, stream_id: int) -> None:
        stream = self._streams[stream_id]
        if not stream.remote_open and not stream.local_open:
            del self._streams[stream_id]

    # -- what we send

    def take_output(self) -> bytes:
        """Return the bytes to write now."""
        output = bytes(self._output)
        self._output.clear()
        return output

    def open(self, headers: Mapping[str, str], *, finished: bool = False) -> int:
        """Open a stream; returns its ID."""
        step = 1 if self.is_client else 2
        self._last_opened = self._last_opened + 2 if self._last_opened else step
        payload = struct.pack(">IIBB", self._last_opened, 0, 0, 0) + self._codec.write(headers)
        self._streams[self._last_opened] = _Stream(
            remote_open=True, local_open=not finished, credit=self._initial_credit
        )
        self._control(Control.SYN_STREAM, _FIN if finished else 0, payload)
        return self._last_opened

    def accept(self, stream_id: int) -> None:
        """Answer a StreamOpened with SYN_REPLY."""
        if stream_id in self._streams:
            self._control(
                Control.SYN_REPLY, 0, struct.pack(">I", stream_id) + self._codec.write({})
            )

    def reset(self, stream_id: int, status: Reset) -> None:
        """End a stream in both directions; unknown is success."""
        if self._streams.pop(stream_id, None) is not None:
            self._control(Control.RST_STREAM, 0, _pair(stream_id, status))

    def sendable(self, stream_id: int) -> int | None:
        """Return how many bytes may be sent now, or None when the stream takes no more for good."""
        stream = self._streams.get(stream_id)
        if stream is None or not stream.local_open:
            return None
        room = MAX_DATA_BYTES
        if self._stream_credit_binds:
            room = min(room, stream.credit - stream.sent)
        if self._session_credit_binds:
            room = min(room, self._session.credit - self._session.sent)
        return max(room, 0)

    def send(self, stream_id: int, data: bytes | memoryview, *, finished: bool = False) -> None:
        """Send at most ``sendable`` bytes; ``finished`` half-closes; nothing on an ended stream."""
        stream = self._streams.get(stream_id)
        if stream is None or not stream.local_open:
            return
        stream.sent += len(data)
        self._session.sent += len(data)
        self._output += struct.pack(">II", stream_id, (_FIN if finished else 0) << 24 | len(data))
        self._output += data
        if finished:
            stream.local_open = False
            self._forget_if_over(stream_id)

    def consumed(self, stream_id: int, count: int) -> None:
        """Tell that ``count`` received bytes were used up: gives the peer credit for as many."""
        self._consumed_by_session(count)
        stream = self._streams.get(stream_id)
        if stream is not None and stream.remote_open:
            stream.unacknowledged += count
            if stream.unacknowledged >= UPDATE_AFTER:
                self._control(Control.WINDOW_UPDATE, 0, _pair(stream_id, stream.unacknowledged))
                stream.unacknowledged = 0

    def keep_alive(self) -> None:
        """SPDY has PING alone, which wants an answer: TCP's own has to do."""

    def close(self) -> None:
        """Nothing: ended streams say it all."""

    def _consumed_by_session(self, count: int) -> None:
        self._session.unacknowledged += count
        if self._session.unacknowledged >= UPDATE_AFTER:
            self._control(Control.WINDOW_UPDATE, 0, _pair(0, self._session.unacknowledged))
            self._session.unacknowledged = 0

    def _control(self, kind: Control, flags: int, payload: bytes) -> None:
        first = (0x8000 | VERSION) << 16 | kind
        self._output += struct.pack(">II", first, flags << 24 | len(payload)) + payload


def _pair(stream_id: int, value: int) -> bytes:
    return struct.pack(">II", stream_id, value)


def _read_pair(payload: bytes, kind: str) -> tuple[int, int]:
    if len(payload) != 8:
        raise SpdyError(f"{kind} of a wrong length")
    stream_id, value = struct.unpack(">II", payload)
    return stream_id & 0x7FFFFFFF, value


def _id_at(payload: bytes, offset: int) -> int:
    return int.from_bytes(payload[offset : offset + 4], "big") & 0x7FFFFFFF
