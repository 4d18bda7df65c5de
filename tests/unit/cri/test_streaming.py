"""Exec, attach and port-forward over real sockets, with a SPDY client of our own."""

from __future__ import annotations

import asyncio
import contextlib
import json
import re
import socket
import struct
from typing import TYPE_CHECKING, cast

import pytest

from noderuntime.cri.streaming import session as session_module
from noderuntime.cri.streaming.server import StreamingServer
from noderuntime.cri.streaming.spdy import Connection
from noderuntime.errors import ConfigError, HostError
from tests.fakes.cri_engine import FakeEngine
from tests.fakes.spdy_client import SpdyClient
from tests.fakes.streaming_node import StreamingNode, eventually, serve_upper, streaming_node

if TYPE_CHECKING:
    from collections.abc import AsyncIterator

V4 = "v4.channel.k8s.io"
FORWARDING = "portforward.k8s.io"


@pytest.fixture
async def node() -> AsyncIterator[StreamingNode]:
    async with streaming_node() as one:
        yield one


async def run(url: str, *kinds: str, protocol: str = V4) -> tuple[SpdyClient, dict[str, int]]:
    client = await SpdyClient.connect(url, protocol)
    assert client.status == 101, client.head
    return client, {kind: await client.open(kind) for kind in ("error", *kinds)}


async def test_exec_tells_outputs_and_exit_code(node: StreamingNode) -> None:
    url = node.command("sh", "-c", "echo out; echo err >&2; exit 7")
    client, ids = await run(url, "stdout", "stderr")
    await client.until(lambda: set(ids.values()) <= client.finished)
    assert client.data[ids["stdout"]] == b"out\n"
    assert client.data[ids["stderr"]] == b"err\n"
    status = json.loads(client.data[ids["error"]])
    assert status["status"] == "Failure"
    assert status["reason"] == "NonZeroExitCode"
    assert status["details"]["causes"] == [{"reason": "ExitCode", "message": "7"}]
    await client.close()


@pytest.mark.parametrize("protocol", [V4, f"v5.channel.k8s.io, {V4}"])
async def test_a_half_closed_stdin_is_end_of_file(node: StreamingNode, protocol: str) -> None:
    url = node.command("cat", stdin=True)
    client, ids = await run(url, "stdin", "stdout", "stderr", protocol=protocol)
    assert protocol.partition(",")[0].encode() in client.head
    await client.send(ids["stdin"], b"hello", finished=True)
    await client.until(lambda: ids["error"] in client.finished)
    assert client.data[ids["stdout"]] == b"hello"
    assert json.loads(client.data[ids["error"]])["status"] == "Success"
    await client.close()


async def test_a_peer_with_real_flow_control_gets_all_of_it(node: StreamingNode) -> None:
    url = node.command("head", "-c", "300000", "/dev/zero")
    client, ids = await run(url, "stdout", "stderr")
    client.keeps_rules = True
    await client.until(lambda: ids["error"] in client.finished)
    assert len(client.data[ids["stdout"]]) == 300000
    await client.close()


async def test_a_peer_that_vanishes_with_its_input_unread_is_noticed(
    node: StreamingNode, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(session_module, "WATCH_S", 0.02)
    url = node.command("sleep", "600", stdin=True)
    client, ids = await run(url, "stdin", "stdout", "stderr")
    sent = 0
    with contextlib.suppress(TimeoutError):
        async with asyncio.timeout(0.1):
            while True:
                await client.send(ids["stdin"], b"x" * 32768)
                sent += 32768
    assert sent < 64 << 20  # the sockets' buffers, ours and a pipe's
    assert node.engine.streams[0].written < 1 << 20
    connection = client.writer.get_extra_info("socket")
    connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
    client.writer.transport.abort()
    await eventually(lambda: node.engine.streams[0].closed)


async def test_a_terminal_is_resized_by_json_in_any_pieces(node: StreamingNode) -> None:
    url = node.command("sh", "-c", "read x; stty size", tty=True, stdin=True)
    client, ids = await run(url, "stdin", "stdout", "resize")
    await client.send(ids["resize"], b'{"Width":99999,"Height":1}[]{"Width":80,"He')
    await client.send(ids["resize"], b'ight":24}\n{"Width":132,"Height":43}')
    await asyncio.sleep(0.05)
    await client.send(ids["stdin"], b"\n")
    await client.until(lambda: ids["error"] in client.finished)
    assert b"43 132" in client.data[ids["stdout"]]
    await client.close()


async def test_a_resize_that_never_ends_is_reset(node: StreamingNode) -> None:
    url = node.command("sleep", "600", tty=True)
    client, ids = await run(url, "stdout", "resize")
    await client.send(ids["resize"], b'{"a": "' + b"x" * 2000)
    await client.until(lambda: ids["resize"] in client.resets)
    await client.close()


async def test_a_peer_that_reads_late_gets_all_that_was_said(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(session_module, "LINGER_S", 0.02)
    monkeypatch.setattr(session_module, "DRAIN_POLL_S", 0.01)
    data = bytes(12 << 20)  # more than the kernel holds of a connection

    async def nothing() -> None:
        pass

    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        writer.write(data)
        await session_module.Session(reader, writer, Connection()).run(b"", nothing, lambda: False)
        writer.close()
        with contextlib.suppress(OSError):
            await writer.wait_closed()
        served.set()

    served = asyncio.Event()
    server = await asyncio.start_server(serve, "127.0.0.1", 0)
    reader, writer = await asyncio.open_connection(*server.sockets[0].getsockname())
    await asyncio.sleep(0.1)
    assert await reader.read() == data
    writer.close()
    await writer.wait_closed()
    await served.wait()
    server.close()


async def test_a_cancelled_session_closes_its_exec_before_it_ends(
    node: StreamingNode, monkeypatch: pytest.MonkeyPatch
) -> None:
    client, _ = await run(node.command("sleep", "600"), "stdout", "stderr")
    await eventually(lambda: len(node.engine.streams) == 1)
    stream = node.engine.streams[0]
    close, closing, may_close = stream.close, asyncio.Event(), asyncio.Event()

    async def slow_close() -> None:
        closing.set()
        await may_close.wait()
        await close()

    monkeypatch.setattr(stream, "close", slow_close)
    client.writer.transport.abort()
    await closing.wait()
    stopping = asyncio.Task(node.server.stop())  # cancels what is being cancelled
    await asyncio.sleep(0.02)
    assert not stopping.done()
    may_close.set()
    await stopping
    assert stream.closed


async def test_a_silent_machine_is_gone_when_it_owes_an_answer() -> None:
    info = bytearray(104)
    info[0] = 1  # established
    session = session_module.Session(
        asyncio.StreamReader(), cast("asyncio.StreamWriter", FakeWriter(info)), Connection()
    )
    struct.pack_into("=I", info, 56, session_module.SILENT_MS + 1)
    assert not session.is_peer_gone()  # idle: keep-alive sees to it
    struct.pack_into("=I", info, 24, 1)  # unacknowledged
    assert session.is_peer_gone()
    struct.pack_into("=I", info, 56, session_module.SILENT_MS - 1)
    assert not session.is_peer_gone()  # slow, but there
    info[0] = 8  # the peer has closed
    assert session.is_peer_gone()


class FakeWriter:
    """Has a socket that says this of its connection."""

    def __init__(self, info: bytearray) -> None:
        self._info = info

    def get_extra_info(self, name: str) -> FakeWriter:
        assert name == "socket"
        return self

    def fileno(self) -> int:
        return 1

    def getsockopt(self, *_: int) -> bytes:
        return bytes(self._info)


async def test_a_vanished_peer_ends_the_exec(node: StreamingNode) -> None:
    client, _ = await run(node.command("sleep", "600"), "stdout", "stderr")
    await eventually(lambda: len(node.engine.streams) == 1)
    await client.close()
    await eventually(lambda: node.engine.streams[0].closed)


async def test_a_peer_that_breaks_the_protocol_ends_the_exec(node: StreamingNode) -> None:
    client, _ = await run(node.command("sleep", "600"), "stdout", "stderr")
    await eventually(lambda: len(node.engine.streams) == 1)
    client.writer.write(b"\x80\x02\x00\x01\x00\x00\x00\x00")
    await eventually(lambda: node.engine.streams[0].closed)
    await client.close()


async def test_a_session_ends_with_its_container(
    node: StreamingNode, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(session_module, "WATCH_S", 0.02)
    client, _ = await run(node.command("sleep", "600"), "stdout", "stderr")
    await eventually(lambda: len(node.engine.streams) == 1)
    node.engine.container_records.clear()
    await eventually(lambda: node.engine.streams[0].closed)
    await client.close()


async def test_stop_ends_every_session(node: StreamingNode) -> None:
    client, _ = await run(node.command("sleep", "600"), "stdout", "stderr")
    await eventually(lambda: len(node.engine.streams) == 1)
    await node.server.stop()
    assert node.engine.streams[0].closed
    await client.close()


async def test_a_failing_exec_says_why_on_the_error_stream(
    node: StreamingNode, monkeypatch: pytest.MonkeyPatch
) -> None:
    async def fail(*_: object, **__: object) -> None:
        raise HostError("crun exec: no such file")

    monkeypatch.setattr(node.engine, "exec", fail)
    client, ids = await run(node.command("nope"), "stdout", "stderr")
    await client.until(lambda: ids["error"] in client.finished)
    status = json.loads(client.data[ids["error"]])
    assert status["code"] == 500
    assert status["message"] == (
        "Internal error occurred: error executing command in container: crun exec: no such file"
    )
    await client.close()


async def test_streams_that_were_not_asked_for_are_refused(node: StreamingNode) -> None:
    client = await SpdyClient.connect(node.command("true"), V4)
    assert await client.open("stdin") in client.resets
    error = await client.open("error")
    assert await client.open("error") in client.resets
    assert error in client.accepted
    await client.close()


async def test_attach_talks_to_the_containers_process(node: StreamingNode) -> None:
    node.engine.attach_argv = ("sh", "-c", "read x; echo got $x")
    client, ids = await run(node.command(stdin=True), "stdin", "stdout", "stderr")
    await client.send(ids["stdin"], b"it\n")
    await client.until(lambda: ids["error"] in client.finished)
    assert client.data[ids["stdout"]] == b"got it\n"
    await client.close()


async def test_a_url_works_once(node: StreamingNode) -> None:
    url = node.command("true")
    first, _ = await run(url, "stdout", "stderr")
    again = await SpdyClient.connect(url, V4)
    assert again.status == 404
    await first.close()
    await again.close()


@pytest.mark.parametrize(
    ("change", "status"),
    [
        ({"protocol": "channel.k8s.io"}, 403),
        ({"upgrade": "h2c"}, 400),
        ({"method": "DELETE"}, 405),
        ({"path": "/exec/wrong"}, 404),
        ({"path": "/metrics"}, 404),
        ({"path": "/portforward"}, 403),
    ],
)
async def test_a_wrong_request_gets_its_status(
    node: StreamingNode, change: dict[str, str], status: int
) -> None:
    url = node.command("true")
    if path := change.get("path"):
        url = re.sub(r"/exec/.*", path, url)
    client = await SpdyClient.connect(
        url,
        change.get("protocol", V4),
        method=change.get("method", "GET"),
        upgrade=change.get("upgrade", "SPDY/3.1"),
    )
    assert client.status == status
    if status == 403:
        assert b"x-accepted-stream-protocol-versions" in client.head.lower()
    await client.close()


@pytest.mark.parametrize("data", [b"\x00\x01\x02\r\n\r\n", b"GET " + b"a" * 70000, b""])
async def test_a_peer_that_speaks_no_http_is_dropped(node: StreamingNode, data: bytes) -> None:
    port = int(node.command("true").split(":")[2].split("/")[0])
    reader, writer = await asyncio.open_connection("127.0.0.1", port)
    writer.write(data)
    writer.write_eof()
    with contextlib.suppress(ConnectionError):
        assert not (await reader.read()).startswith(b"HTTP/1.1 101")
    writer.close()


@pytest.mark.parametrize("address", ["localhost:1", "127.0.0.1", "127.0.0.1:99999", ":0", "1:x"])
def test_an_address_that_is_none_is_refused(address: str) -> None:
    with pytest.raises(ConfigError, match=r"streaming\.address"):
        StreamingServer(FakeEngine(), address)


async def test_an_address_in_use_is_a_configuration_error(node: StreamingNode) -> None:
    port = node.command("true").split(":")[2].split("/")[0]
    with pytest.raises(ConfigError, match="cannot be had"):
        await StreamingServer(FakeEngine(), f"127.0.0.1:{port}").start()


async def test_port_forward_carries_several_pairs(node: StreamingNode) -> None:
    server, port = await serve_upper()
    client = await SpdyClient.connect(node.forward(), FORWARDING)
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


async def test_port_forward_of_a_client_without_request_ids_pairs_by_stream(
    node: StreamingNode,
) -> None:
    server, port = await serve_upper()
    client = await SpdyClient.connect(node.forward(port), FORWARDING)
    await client.open("error", port=str(port))
    data = await client.open("data", port=str(port))
    await client.send(data, b"old", finished=True)
    await client.until(lambda: data in client.finished)
    assert client.data[data] == b"OLD"
    await client.close()
    server.close()


async def test_port_forward_to_nothing_tells_why_on_the_error_stream(node: StreamingNode) -> None:
    client = await SpdyClient.connect(node.forward(), FORWARDING)
    error = await client.open("error", port="1", requestID="0")
    data = await client.open("data", port="1", requestID="0")
    await client.until(lambda: error in client.finished and data in client.resets)
    assert b"error forwarding port 1" in client.data[error]
    await client.close()


@pytest.mark.parametrize(
    "headers",
    [
        {"port": "0"},
        {"port": "65536"},
        {"port": "x"},
        {},
        {"port": "8080"},  # not the one that was asked for
        {"port": "80", "requestID": "x" * 100},
    ],
)
async def test_port_forward_refuses_wrong_streams(
    node: StreamingNode, headers: dict[str, str]
) -> None:
    client = await SpdyClient.connect(node.forward(80), FORWARDING)
    assert await client.open("error", **headers) in client.resets
    await client.close()


async def test_a_second_stream_of_the_same_kind_is_refused(node: StreamingNode) -> None:
    client = await SpdyClient.connect(node.forward(80), FORWARDING)
    await client.open("error", port="80", requestID="1")
    assert await client.open("error", port="80", requestID="1") in client.resets
    await client.close()
