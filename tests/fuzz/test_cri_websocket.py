"""Whatever a WebSocket peer sends: events or ProtocolError; and two honest ends understand each other."""

from __future__ import annotations

import base64
import contextlib
import struct
from collections import defaultdict

import h11
from hypothesis import given, settings
from hypothesis import strategies as st
from wsproto import ConnectionType
from wsproto import events as ws
from wsproto.connection import Connection

from noderuntime.cri.streaming import channels, events, port_forward, remote_command, upgrade
from noderuntime.cri.streaming.channels import Channel, ChannelConnection
from noderuntime.cri.streaming.events import ProtocolError
from noderuntime.cri.streaming.tokens import Forward, RemoteCommand
from noderuntime.cri.streaming.tunnel import Tunnel
from noderuntime.cri.streaming.upgrade import Refused

PROTOCOLS = st.sampled_from((channels.V5, *channels.BYTES, *channels.BASE64))
COMMAND = RemoteCommand(
    container_id="c", argv=("a",), stdin=True, stdout=True, stderr=True, tty=False
)
FORWARD = Forward(sandbox_id="s", ports=(80, 90))


@st.composite
def frames(draw: st.DrawFn) -> bytes:
    """A frame that is nearly right: masked, with a true length, of any opcode."""
    payload = draw(
        st.one_of(
            st.binary(max_size=40),
            st.builds(lambda n, d: bytes([n]) + d, st.sampled_from([0, 1, 4, 255]), st.binary()),
            st.builds(lambda d: b"0" + base64.b64encode(d), st.binary(max_size=20)),
        )
    )[:120]
    opcode = draw(st.sampled_from([0, 1, 2, 8, 9, 10, 3]))
    fin = draw(st.sampled_from([0x80, 0]))
    return bytes([fin | opcode, 0x80 | len(payload)]) + b"\0\0\0\0" + payload


@given(st.sampled_from(["channels", "tunnel"]), PROTOCOLS, st.binary(max_size=2048))
def test_any_bytes_give_events_or_an_error(kind: str, protocol: str, data: bytes) -> None:
    wire = Tunnel() if kind == "tunnel" else ChannelConnection(protocol, ())
    with contextlib.suppress(ProtocolError):
        wire.receive(data)
    wire.close()
    wire.keep_alive()
    assert len(wire.take_output()) < 64 << 10


@settings(max_examples=300)
@given(st.data(), PROTOCOLS)
def test_any_frames_in_any_pieces_keep_the_state_sound(data: st.DataObject, protocol: str) -> None:
    wire = ChannelConnection(protocol, remote_command.channels(COMMAND))
    stream = b"".join(data.draw(st.lists(frames(), max_size=12)))
    size = data.draw(st.integers(1, 64))
    opened: set[int] = set()
    ended: set[int] = set()
    closed = False
    with contextlib.suppress(ProtocolError):
        for start in range(-size, len(stream), size):  # nothing, first
            for event in wire.receive(stream[max(start, 0) : start + size]):
                assert not closed
                match event:
                    case events.StreamOpened(stream_id, _, finished):
                        assert stream_id not in opened
                        opened.add(stream_id)
                        if finished:
                            ended.add(stream_id)
                    case events.DataReceived(stream_id, _, finished):
                        assert stream_id == 0  # only stdin is read
                        assert stream_id not in ended
                        if finished:
                            ended.add(stream_id)
                    case events.Closed():
                        closed = True
                    case other:
                        raise AssertionError(other)
    assert opened == {0, 1, 2, 3}
    assert len(wire.take_output()) < 64 << 10


@settings(max_examples=200)
@given(
    PROTOCOLS,
    st.lists(st.tuples(st.sampled_from([0, 1]), st.binary(max_size=5000)), max_size=12),
    st.integers(1, 9000),
    st.integers(1, 3),
)
def test_what_one_end_sends_the_other_gets_in_order(
    protocol: str, parts: list[tuple[int, bytes]], piece: int, splits: int
) -> None:
    two = (Channel(headers={}, is_read=True, is_written=True),) * 2
    server = ChannelConnection(protocol, two)
    client = Connection(ConnectionType.CLIENT)
    is_text = protocol in channels.BASE64
    wire, output = b"", b""
    sent: dict[int, bytes] = defaultdict(bytes)
    for number, data in parts:
        sent[number] += data
        message = b"%d" % number + base64.b64encode(data) if is_text else bytes([number]) + data
        step = len(message) // splits + 1
        for start in range(0, len(message), step):
            part, last = message[start : start + step], start + step >= len(message)
            event = (
                ws.TextMessage(part.decode(), message_finished=last)
                if is_text
                else ws.BytesMessage(part, message_finished=last)
            )
            wire += client.send(event)
    got: dict[int, bytes] = defaultdict(bytes)
    for start in range(0, len(wire), piece):
        for received in server.receive(wire[start : start + piece]):
            if isinstance(received, events.DataReceived):
                got[received.stream_id] += received.data
                assert server.sendable(received.stream_id)
                server.send(received.stream_id, received.data)
        output += server.take_output()
    assert {n: d for n, d in got.items() if d} == {n: d for n, d in sent.items() if d}
    back: dict[int, bytes] = defaultdict(bytes)
    client.receive_data(output)
    for answer in client.events():
        if isinstance(answer, ws.TextMessage):
            back[int(answer.data[0])] += base64.b64decode(answer.data[1:])
        elif isinstance(answer, ws.BytesMessage):
            back[answer.data[0]] += bytes(answer.data[1:])
    assert dict(back) == {n: d for n, d in got.items() if d}


HEADERS = st.sampled_from(
    [
        (b"Upgrade", b"websocket"),
        (b"Upgrade", b"SPDY/3.1"),
        (b"Connection", b"Upgrade"),
        (b"Sec-WebSocket-Version", b"13"),
        (b"Sec-WebSocket-Key", base64.b64encode(b"0123456789abcdef")),
        (b"Sec-WebSocket-Protocol", b"v5.channel.k8s.io"),
        (b"Sec-WebSocket-Protocol", b"SPDY/3.1+portforward.k8s.io"),
        (b"X-Stream-Protocol-Version", b"v4.channel.k8s.io"),
        (b"X-Stream-Protocol-Version", b"portforward.k8s.io"),
    ]
)
JUNK = st.tuples(
    st.sampled_from([b"upgrade", b"sec-websocket-key", b"sec-websocket-protocol", b"x-y"]),
    st.binary(max_size=30).map(lambda data: b"".join(data.translate(None, b"\0").split())),
)


@settings(max_examples=300)
@given(
    st.sampled_from(["GET", "POST", "PUT"]),
    st.sampled_from(["/exec/a", "/attach/a", "/portforward/a?x=y", "/", "/exec"]),
    st.lists(st.one_of(HEADERS, JUNK), max_size=8),
)
def test_any_request_gets_an_upgrade_or_a_refusal(
    method: str, target: str, headers: list[tuple[bytes, bytes]]
) -> None:
    request = h11.Request(method=method, target=target, headers=[(b"Host", b"x"), *headers])
    try:
        kind, token = upgrade.kind_and_token(request)
        agreed = upgrade.negotiate(request, kind)
    except Refused as refusal:
        assert refusal.status in {400, 403, 404, 405}
        return
    assert token in {"a", ""}
    wire = agreed.wire(FORWARD if kind == "portforward" else COMMAND)
    assert wire.sendable(1234) is None
    h11.InformationalResponse(status_code=101, headers=list(agreed.headers))


def test_there_are_two_channels_a_port_and_no_more_than_the_digits_reach() -> None:
    assert port_forward.channels(FORWARD)[3].greeting == struct.pack("<H", 90)
    last = 2 * port_forward.MAX_CHANNEL_PORTS - 1
    assert chr(ord("0") + last).isascii()
