"""The SPDY protocol object: bytes against events, with ends of ours and hand-made frames."""

from __future__ import annotations

import struct
import zlib

import pytest

from noderuntime.cri.streaming import events, spdy
from noderuntime.cri.streaming.dictionary import HEADER_DICTIONARY
from noderuntime.cri.streaming.events import SpdyError
from noderuntime.cri.streaming.headers import MAX_HEADER_BYTES, MAX_HEADERS, HeaderCodec


class Pair:
    """A client and a server, joined."""

    def __init__(self) -> None:
        self.client = spdy.Connection(is_client=True)
        self.server = spdy.Connection()

    def up(self) -> list[events.Event]:
        return self.server.receive(self.client.take_output())

    def down(self) -> list[events.Event]:
        return self.client.receive(self.server.take_output())

    def open(self) -> int:
        stream_id = self.client.open({"streamType": "data"})
        self.up()
        self.server.accept(stream_id)
        self.down()
        return stream_id


def control(kind: int, payload: bytes, *, flags: int = 0, version: int = 3) -> bytes:
    return struct.pack(">II", (0x8000 | version) << 16 | kind, flags << 24 | len(payload)) + payload


def syn_stream(stream_id: int, block: bytes, *, flags: int = 0) -> bytes:
    return control(1, struct.pack(">IIBB", stream_id, 0, 0, 0) + block, flags=flags)


def test_the_dictionary_is_the_protocols_own() -> None:
    assert (len(HEADER_DICTIONARY), zlib.adler32(HEADER_DICTIONARY)) == (1423, 0xE3C6A7C2)


def test_a_stream_opens_talks_both_ways_and_closes() -> None:
    pair = Pair()
    stream_id = pair.client.open({"streamType": "stdin", "Port": "80"})
    assert pair.up() == [
        events.StreamOpened(stream_id, {"streamtype": "stdin", "port": "80"}, finished=False)
    ]
    pair.server.accept(stream_id)
    pair.server.send(stream_id, b"down", finished=True)
    pair.client.send(stream_id, b"up", finished=True)
    assert pair.down() == [
        events.StreamAccepted(stream_id),
        events.DataReceived(stream_id, b"down", finished=True),
    ]
    assert pair.up() == [events.DataReceived(stream_id, b"up", finished=True)]
    assert pair.server.sendable(stream_id) is None


def test_frames_may_come_a_byte_at_a_time() -> None:
    pair = Pair()
    stream_id = pair.client.open({"streamType": "stdin"})
    pair.client.send(stream_id, b"hello", finished=True)
    found = [
        event for byte in pair.client.take_output() for event in pair.server.receive(bytes([byte]))
    ]
    assert isinstance(found[0], events.StreamOpened)
    data = [event for event in found if isinstance(event, events.DataReceived)]
    assert b"".join(event.data for event in data) == b"hello"
    assert [event.finished for event in data] == [False] * 4 + [True]


def test_a_large_data_frame_is_handed_on_in_parts() -> None:
    pair = Pair()
    stream_id = pair.open()
    header = struct.pack(">II", stream_id, 0xFFFFFF)
    assert pair.server.receive(header) == []
    assert pair.server.receive(b"x" * 70000) == [
        events.DataReceived(stream_id, b"x" * 70000, finished=False)
    ]


def test_header_blocks_share_their_state_even_over_refused_streams() -> None:
    pair = Pair()
    pair.server.receive(control(7, struct.pack(">II", 0, 0)))  # the client goes away
    pair.client.open({"streamType": "a"})
    pair.client.open({"streamType": "b"})
    assert pair.up() == []
    found = pair.down()
    assert found == [events.StreamReset(1, 3), events.StreamReset(3, 3)]


def test_a_ping_of_the_peer_is_echoed_and_an_echo_is_not() -> None:
    server = spdy.Connection()
    server.receive(control(6, struct.pack(">I", 1)) + control(6, struct.pack(">I", 2)))
    assert server.take_output() == control(6, struct.pack(">I", 1))


def test_unknown_control_frames_are_skipped() -> None:
    pair = Pair()
    assert pair.server.receive(control(10, b"anything")) == []
    assert pair.open() == 1


def test_a_reset_ends_the_stream_at_both_ends() -> None:
    pair = Pair()
    stream_id = pair.open()
    pair.client.reset(stream_id, events.Reset.CANCEL)
    assert pair.up() == [events.StreamReset(stream_id, events.Reset.CANCEL)]
    pair.server.send(stream_id, b"late")
    assert pair.server.take_output() == b""
    assert pair.server.receive(struct.pack(">II", stream_id, 4) + b"late") == []


def test_a_peer_that_shows_no_flow_control_is_not_waited_for() -> None:
    pair = Pair()
    stream_id = pair.open()
    for _ in range(10):
        pair.server.send(stream_id, b"x" * spdy.MAX_DATA_BYTES)
    assert pair.server.sendable(stream_id) == spdy.MAX_DATA_BYTES


def test_a_peer_that_keeps_the_rules_binds_us_to_its_credit() -> None:
    pair = Pair()
    stream_id = pair.open()
    pair.server.receive(control(4, struct.pack(">III", 1, 7, 10000)))
    assert pair.server.sendable(stream_id) == 10000
    pair.server.send(stream_id, b"x" * 10000)
    assert pair.server.sendable(stream_id) == 0
    assert pair.server.receive(control(9, struct.pack(">II", stream_id, 500))) == [
        events.WindowOpened(stream_id)
    ]
    assert pair.server.sendable(stream_id) == 500
    pair.server.receive(control(4, struct.pack(">III", 1, 7, 0)))
    assert pair.server.sendable(stream_id) == 0


def test_the_connections_own_window_binds_once_the_peer_uses_it() -> None:
    pair = Pair()
    one, two = pair.open(), pair.open()
    pair.server.receive(control(9, struct.pack(">II", 0, 1)))
    pair.server.send(one, b"x" * 32768)
    pair.server.send(two, b"x" * 32768)
    assert pair.server.sendable(two) == 1


def test_what_is_consumed_is_given_back_as_credit() -> None:
    pair = Pair()
    stream_id = pair.open()
    pair.server.consumed(stream_id, spdy.UPDATE_AFTER - 1)
    assert pair.server.take_output() == b""
    pair.server.consumed(stream_id, 1)
    update = spdy.UPDATE_AFTER
    assert pair.server.take_output() == (
        control(9, struct.pack(">II", 0, update))
        + control(9, struct.pack(">II", stream_id, update))
    )


def test_an_overflowing_window_resets_the_stream() -> None:
    pair = Pair()
    stream_id = pair.open()
    frame = control(9, struct.pack(">II", stream_id, spdy.MAX_WINDOW))
    assert pair.server.receive(frame) == [events.StreamReset(stream_id, 7)]
    assert pair.down() == [events.StreamReset(stream_id, 7)]


def test_more_streams_than_the_bound_are_refused() -> None:
    pair = Pair()
    for _ in range(spdy.MAX_STREAMS + 1):
        pair.client.open({})
    assert len(pair.up()) == spdy.MAX_STREAMS
    assert events.StreamReset(2 * spdy.MAX_STREAMS + 1, 3) in pair.down()


BLOCK = HeaderCodec().write({"a": "b"})
BOMB = HeaderCodec().write({"a": "x" * (4 << 20)})


@pytest.mark.parametrize(
    ("data", "why"),
    [
        pytest.param(control(1, b"", version=2), "not SPDY/3", id="another version"),
        pytest.param(struct.pack(">II", 0x80030001, 0xFFFFFF), "16777215 bytes", id="huge control"),
        pytest.param(control(1, b"short"), "short SYN_STREAM", id="short SYN_STREAM"),
        pytest.param(syn_stream(1, b"no zlib"), "not zlib", id="no zlib"),
        pytest.param(syn_stream(1, BOMB), "larger than", id="decompression bomb"),
        pytest.param(syn_stream(2, BLOCK), "out of order", id="even stream from a client"),
        pytest.param(syn_stream(0, BLOCK), "out of order", id="stream 0"),
        pytest.param(control(3, b"1234"), "RST_STREAM of a wrong length", id="short RST"),
        pytest.param(control(4, struct.pack(">I", 9)), "SETTINGS", id="settings without entries"),
        pytest.param(control(4, b""), "SETTINGS", id="empty settings"),
        pytest.param(control(6, b""), "PING", id="empty ping"),
        pytest.param(control(7, b""), "GOAWAY", id="empty goaway"),
        pytest.param(control(9, struct.pack(">II", 1, 0)), "of 0", id="update of 0"),
        pytest.param(control(8, b""), "short header", id="empty HEADERS"),
        pytest.param(struct.pack(">II", 5, 3) + b"abc", "never opened", id="data on no stream"),
        pytest.param(struct.pack(">II", 0, 0), "never opened", id="data on stream 0"),
    ],
)
def test_a_broken_peer_is_told_apart(data: bytes, why: str) -> None:
    with pytest.raises(SpdyError, match=why):
        spdy.Connection().receive(data)


@pytest.mark.parametrize(
    "plain",
    [
        b"",
        struct.pack(">I", MAX_HEADERS + 1),
        struct.pack(">I", 1),
        struct.pack(">II", 1, 0xFFFFFFFF),
        struct.pack(">III", 1, 0, 0) + b"more",
    ],
)
def test_a_header_block_that_lies_is_refused(plain: bytes) -> None:
    deflate = zlib.compressobj(zdict=HEADER_DICTIONARY)
    block = deflate.compress(plain) + deflate.flush(zlib.Z_SYNC_FLUSH)
    with pytest.raises(SpdyError):
        HeaderCodec().read(block)


def test_the_largest_header_block_passes() -> None:
    one, other = HeaderCodec(), HeaderCodec()
    value = "v" * (MAX_HEADER_BYTES - 13)
    assert other.read(one.write({"a": value})) == {"a": value}
