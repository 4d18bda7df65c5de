"""Exec, attach and port-forward over WebSocket, on real sockets, with clients of our own."""

from __future__ import annotations

import asyncio
import json
from typing import TYPE_CHECKING

import pytest
from wsproto import events as ws

from noderuntime.cri.streaming import session as session_module
from tests.fakes.streaming_node import StreamingNode, eventually, serve_upper, streaming_node
from tests.fakes.websocket_client import TunnelClient, WebSocketClient, handshake

if TYPE_CHECKING:
    from collections.abc import AsyncIterator

V5, V4 = "v5.channel.k8s.io", "v4.channel.k8s.io"
TUNNEL = "SPDY/3.1+portforward.k8s.io"
STDIN, STDOUT, STDERR, ERROR, RESIZE = range(5)


@pytest.fixture
async def node() -> AsyncIterator[StreamingNode]:
    async with streaming_node() as one:
        yield one


@pytest.mark.parametrize("protocol", [V5, V4, f"nonsense, {V4}"])
async def test_exec_tells_outputs_and_exit_code(node: StreamingNode, protocol: str) -> None:
    url = node.command("sh", "-c", "echo out; echo err >&2; exit 7")
    client = await WebSocketClient.connect(url, protocol)
    assert b"sec-websocket-accept: " in client.head.lower()
    await client.until_closed()
    assert client.close_code == 1000
    assert client.messages[0] == bytes([STDOUT])
    assert client.data[STDOUT] == b"out\n"
    assert client.data[STDERR] == b"err\n"
    status = json.loads(client.data[ERROR])
    assert status["details"]["causes"] == [{"reason": "ExitCode", "message": "7"}]
    await client.close()


async def test_a_half_closed_stdin_is_end_of_file(node: StreamingNode) -> None:
    client = await WebSocketClient.connect(node.command("cat", stdin=True), V5)
    await client.send(STDIN, b"hello")
    await client.half_close(STDIN)
    await client.until_closed()
    assert client.data[STDOUT] == b"hello"
    assert json.loads(client.data[ERROR])["status"] == "Success"
    await client.close()


async def test_a_half_close_is_data_before_v5(node: StreamingNode) -> None:
    client = await WebSocketClient.connect(node.command("head", "-c", "5", stdin=True), V4)
    await client.half_close(STDIN)  # a channel that is not there
    await client.send(STDIN, b"hello")
    await client.until_closed()
    assert client.data[STDOUT] == b"hello"
    await client.close()


@pytest.mark.parametrize("protocol", ["base64.channel.k8s.io", "v4.base64.channel.k8s.io"])
async def test_the_protocols_of_text_carry_base64(node: StreamingNode, protocol: str) -> None:
    url = node.command("sh", "-c", "head -c 5; exit 3", stdin=True)
    client = await WebSocketClient.connect(url, protocol)
    await client.event(ws.TextMessage("0aGVs", message_finished=False))
    await client.event(ws.TextMessage("bG8="))
    await client.until_closed()
    assert all(isinstance(message, str) for message in client.messages)
    assert client.data[STDOUT] == b"hello"
    assert b"exit status 3" in client.data[ERROR]
    assert client.data[ERROR].startswith(b"{") == protocol.startswith("v4")
    await client.close()


async def test_a_client_that_names_no_protocol_gets_text_of_a_failure(node: StreamingNode) -> None:
    client = await WebSocketClient.connect(node.command("sh", "-c", "exit 3"), "")
    assert b"sec-websocket-protocol" not in client.head.lower()
    await client.until_closed()
    assert client.data[ERROR] == b"command terminated with non-zero exit code: exit status 3"
    await client.close()


async def test_a_terminal_is_resized(node: StreamingNode) -> None:
    url = node.command("sh", "-c", "read x; stty size", tty=True, stdin=True)
    client = await WebSocketClient.connect(url, V5)
    await client.send(RESIZE, b'{"Width":132,"Height":43}')
    await asyncio.sleep(0.05)
    await client.send(STDIN, b"\n")
    await client.until_closed()
    assert b"43 132" in client.data[STDOUT]
    await client.close()


async def test_attach_talks_to_the_containers_process(node: StreamingNode) -> None:
    node.engine.attach_argv = ("sh", "-c", "read x; echo got $x")
    client = await WebSocketClient.connect(node.command(stdin=True), V5)
    await client.send(STDIN, b"it\n")
    await client.until_closed()
    assert client.data[STDOUT] == b"got it\n"
    await client.close()


async def test_megabytes_come_whole_in_messages_of_any_size(node: StreamingNode) -> None:
    client = await WebSocketClient.connect(node.command("cat", stdin=True), V5)
    data = bytes(range(256)) * 8192

    async def send() -> None:
        await client.send(STDIN, data[:1_000_000])
        await client.event(ws.BytesMessage(b"\0", message_finished=False))
        await client.event(ws.BytesMessage(data[1_000_000:]))
        await client.half_close(STDIN)

    async with asyncio.TaskGroup() as group:
        group.create_task(send())
        await client.until_closed()
    assert client.data[STDOUT] == data
    await client.close()


async def test_a_ping_gets_its_pong(node: StreamingNode) -> None:
    client = await WebSocketClient.connect(node.command("sleep", "600"), V5)
    await client.event(ws.Ping(b"x"))
    await client.until(lambda: client.pongs == 1)
    await client.close()


async def test_a_client_whose_input_waits_still_hears_that_we_are_there(
    node: StreamingNode, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(session_module, "KEEP_ALIVE_S", 0.02)
    client = await WebSocketClient.connect(node.command("sleep", "600", stdin=True), V5)
    with pytest.raises(TimeoutError):
        async with asyncio.timeout(0.1):
            while True:
                await client.send(STDIN, b"x" * 32768)
    await client.until(lambda: client.pongs > 1)
    client.writer.transport.abort()


@pytest.mark.parametrize("goodbye", [True, False], ids=["goodbye", "gone"])
async def test_a_client_that_goes_ends_its_exec(node: StreamingNode, goodbye: bool) -> None:
    client = await WebSocketClient.connect(node.command("sleep", "600"), V5)
    await eventually(lambda: len(node.engine.streams) == 1)
    if goodbye:
        await client.event(ws.CloseConnection(1000))
        await client.until_closed()
    else:
        client.writer.transport.abort()
    await eventually(lambda: node.engine.streams[0].closed)
    await client.close()


@pytest.mark.parametrize(
    "frame",
    [
        pytest.param(b"\x82\x01a", id="unmasked"),
        pytest.param(b"\x83\x80aaaa", id="unknown opcode"),
        pytest.param(b"\x81\x81\0\0\0\x000", id="text in a protocol of bytes"),
        pytest.param(b"\x82\x81\0\0\0\0\xff", id="half-close of nothing"),
        pytest.param(b"\x82\x83\0\0\0\0\xff\0\0", id="half-close with data"),
    ],
)
async def test_a_client_that_breaks_the_protocol_ends_its_exec(
    node: StreamingNode, frame: bytes
) -> None:
    client = await WebSocketClient.connect(node.command("sleep", "600"), V5)
    await eventually(lambda: len(node.engine.streams) == 1)
    client.writer.write(frame)
    await eventually(lambda: node.engine.streams[0].closed)
    await client.close()


@pytest.mark.parametrize(
    ("protocol", "headers", "status"),
    [
        ("v9.channel.k8s.io", {}, 403),
        (TUNNEL, {}, 403),
        (V5, {"Sec-WebSocket-Version": "8"}, 400),
        (V5, {"Sec-WebSocket-Key": "short"}, 400),
        (V5, {"Sec-WebSocket-Key": ""}, 400),
        (V5, {"Connection": "keep-alive"}, 400),
    ],
)
async def test_a_wrong_handshake_gets_its_status_and_leaves_the_url(
    node: StreamingNode, protocol: str, headers: dict[str, str], status: int
) -> None:
    url = node.command("true")
    _, writer, head = await handshake(url, protocol, headers=headers)
    assert int(head.split()[1]) == status
    writer.close()
    client = await WebSocketClient.connect(url, V5)
    await client.until_closed()
    _, again, head = await handshake(url, V5)
    assert int(head.split()[1]) == 404
    again.close()
    await client.close()


async def test_a_post_is_no_websocket(node: StreamingNode) -> None:
    _, writer, head = await handshake(node.command("true"), V5, method="POST")
    assert int(head.split()[1]) == 400
    writer.close()


async def test_port_forward_tunnels_spdy(node: StreamingNode) -> None:
    server, port = await serve_upper()
    client = await TunnelClient.dial(node.forward(), TUNNEL)
    pairs: list[list[int]] = []
    for number in range(3):
        headers = {"port": str(port), "requestID": str(number)}
        pairs.append([await client.open(kind, **headers) for kind in ("error", "data")])
    for number, (_, data) in enumerate(pairs):
        await client.send(data, f"hello {number}".encode(), finished=True)
    await client.until(lambda: {i for pair in pairs for i in pair} <= client.finished)
    assert [bytes(client.data[data]) for _, data in pairs] == [b"HELLO 0", b"HELLO 1", b"HELLO 2"]
    await client.close()
    server.close()


async def test_a_text_message_ends_a_tunnel(node: StreamingNode) -> None:
    client = await WebSocketClient.connect(node.forward(), TUNNEL)
    await client.event(ws.TextMessage("x"))
    assert await client.reader.read() == b""
    await client.close()


@pytest.mark.parametrize("ports", [(), tuple(range(1, 34))], ids=["none", "many"])
async def test_channels_are_for_a_few_named_ports(
    node: StreamingNode, ports: tuple[int, ...]
) -> None:
    _, writer, head = await handshake(node.forward(*ports), V4)
    assert int(head.split()[1]) == 400
    writer.close()


@pytest.mark.parametrize("protocol", [V4, "v4.base64.channel.k8s.io", ""])
async def test_port_forward_over_channels_has_two_a_port(
    node: StreamingNode, protocol: str
) -> None:
    async def echo_line(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        writer.write((await reader.readline()).upper())
        writer.close()

    server = await asyncio.start_server(echo_line, "127.0.0.1", 0)
    port = server.sockets[0].getsockname()[1]
    client = await WebSocketClient.connect(node.forward(port, 1), protocol)
    if "base64" in protocol:
        await client.event(ws.TextMessage("0aGkK"))
    else:
        await client.send(0, b"hi\n")
    await client.until_closed()
    assert client.data[0] == port.to_bytes(2, "little") + b"HI\n"
    assert client.data[1] == port.to_bytes(2, "little")
    assert client.data[2] == b"\x01\0"
    assert b"error forwarding port 1" in client.data[3]
    await client.close()
    server.close()
