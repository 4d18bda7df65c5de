"""Whatever a peer sends: events or SpdyError; and two honest ends understand each other."""

from __future__ import annotations

import contextlib
import struct

from hypothesis import given, settings
from hypothesis import strategies as st

from noderuntime.cri.streaming import events, spdy
from noderuntime.cri.streaming.events import SpdyError
from noderuntime.cri.streaming.headers import HeaderCodec

IDS = st.integers(0, 9)
FLAGS = st.integers(0, 255)


def control(kind: int, flags: int, payload: bytes) -> bytes:
    return struct.pack(">II", 0x80030000 | kind, flags << 24 | len(payload)) + payload


@st.composite
def frames(draw: st.DrawFn, codec: HeaderCodec) -> bytes:
    kind = draw(st.sampled_from(["data", "syn", "reply", "pair", "settings", "raw"]))
    number, flags = draw(IDS), draw(FLAGS)
    if kind == "data":
        data = draw(st.binary(max_size=64))
        return struct.pack(">II", number, flags << 24 | len(data)) + data
    if kind in {"syn", "reply"}:
        block = codec.write(
            draw(st.dictionaries(st.text(max_size=9), st.text(max_size=9), max_size=4))
        )
        if kind == "syn":
            return control(1, flags, struct.pack(">IIBB", number, 0, 0, 0) + block)
        return control(draw(st.sampled_from([2, 8])), flags, struct.pack(">I", number) + block)
    if kind == "pair":
        value = draw(st.integers(0, 2**32 - 1))
        return control(draw(st.sampled_from([3, 7, 9])), flags, struct.pack(">II", number, value))
    if kind == "settings":
        value = draw(st.integers(0, 2**32 - 1))
        return control(4, flags, struct.pack(">III", 1, draw(IDS), value))
    return control(draw(st.integers(0, 20)), flags, draw(st.binary(max_size=32)))


@given(st.binary(max_size=2048))
def test_any_bytes_give_events_or_an_error(data: bytes) -> None:
    connection = spdy.Connection()
    with contextlib.suppress(SpdyError):
        connection.receive(data)


@settings(max_examples=300)
@given(st.data())
def test_any_frames_in_any_pieces_keep_the_state_sound(data: st.DataObject) -> None:
    codec, connection = HeaderCodec(), spdy.Connection()
    stream = b"".join(data.draw(st.lists(frames(codec), max_size=12)))
    opened: set[int] = set()
    ended: set[int] = set()
    received = 0
    with contextlib.suppress(SpdyError):
        while stream:
            size = data.draw(st.integers(1, len(stream)))
            part, stream = stream[:size], stream[size:]
            for event in connection.receive(part):
                match event:
                    case events.StreamOpened(stream_id, _, finished):
                        assert stream_id % 2 == 1
                        assert stream_id not in opened
                        opened.add(stream_id)
                        if finished:
                            ended.add(stream_id)
                        connection.accept(stream_id)
                    case events.DataReceived(stream_id, chunk, finished):
                        assert stream_id in opened
                        assert stream_id not in ended
                        received += len(chunk)
                        connection.consumed(stream_id, len(chunk))
                        if finished:
                            ended.add(stream_id)
                    case events.StreamReset(stream_id, _):
                        assert stream_id in opened
                        assert connection.sendable(stream_id) is None
                        ended.add(stream_id)
                    case _:
                        pass
                for stream_id in opened:
                    room = connection.sendable(stream_id)
                    assert room is None or 0 <= room <= spdy.MAX_DATA_BYTES
    assert received <= 12 * 64
    assert len(connection.take_output()) < 64 << 10


@settings(max_examples=200)
@given(
    st.lists(st.tuples(st.booleans(), st.binary(min_size=1, max_size=5000)), max_size=20),
    st.integers(1, 9000),
    st.booleans(),
)
def test_what_one_end_sends_the_other_gets_in_order(
    parts: list[tuple[bool, bytes]], piece: int, keeps_rules: bool
) -> None:
    ends = (spdy.Connection(is_client=True), spdy.Connection())
    stream_id = ends[0].open({"streamType": "data"})
    got, sent = [bytearray(), bytearray()], [bytearray(), bytearray()]

    def move() -> None:
        for here, there in ((0, 1), (1, 0)):
            output = ends[here].take_output()
            for start in range(0, len(output), piece):
                for event in ends[there].receive(output[start : start + piece]):
                    if isinstance(event, events.DataReceived):
                        got[there] += event.data
                        ends[there].consumed(stream_id, len(event.data))

    move()
    ends[1].accept(stream_id)
    if keeps_rules:
        for end in ends:
            end.receive(control(4, 0, struct.pack(">III", 1, 7, spdy.INITIAL_WINDOW)))
    for from_client, data in parts:
        here = 0 if from_client else 1
        room = ends[here].sendable(stream_id)
        assert room is not None
        if room < len(data):
            move()
            move()
            room = ends[here].sendable(stream_id) or 0
        ends[here].send(stream_id, data[:room])
        sent[1 - here] += data[:room]
    move()
    move()
    assert got == sent
