from __future__ import annotations

import asyncio
from contextlib import AsyncExitStack

import pytest

from noderuntime.errors import ConfigError
from noderuntime.telemetry import http


def probes(reason: str = "") -> http.Probes:
    return http.Probes(not_ready_because=lambda: reason, metrics=lambda: b"a 1\n")


async def ask(address: str, raw: bytes, *, eof: bool = False) -> bytes:
    host, port = http.split_address(address)
    reader, writer = await asyncio.open_connection(host, port)
    try:
        writer.write(raw)
        if eof:
            writer.write_eof()
        return await reader.read()
    finally:
        writer.close()
        await writer.wait_closed()


def get(path: str) -> bytes:
    return f"GET {path} HTTP/1.1\r\nHost: x\r\n\r\n".encode()


@pytest.mark.parametrize(
    ("raw", "status", "body"),
    [
        pytest.param(get("/metrics"), 200, b"a 1\n", id="metrics"),
        pytest.param(get("/metrics?x=1"), 200, b"a 1\n", id="metrics with a query"),
        pytest.param(get("/healthz"), 200, b"ok\n", id="health"),
        pytest.param(get("/readyz"), 200, b"ok\n", id="ready"),
        pytest.param(get("/debug"), 404, None, id="unknown path"),
        pytest.param(b"POST /metrics HTTP/1.1\r\nHost: x\r\n\r\n", 405, None, id="post"),
        pytest.param(b"HEAD /healthz HTTP/1.1\r\nHost: x\r\n\r\n", 200, b"", id="head"),
        pytest.param(b"\x16\x03\x01\x00\r\n\r\n", 400, None, id="TLS"),
        pytest.param(b"GET / HTTP/1.1\r\nA: " + b"x" * 70_000, 431, None, id="endless header"),
    ],
)
async def test_the_server_answers(raw: bytes, status: int, body: bytes | None) -> None:
    async with http.serving("127.0.0.1:0", probes()) as address:
        answer = await ask(address, raw)
    assert answer.startswith(f"HTTP/1.1 {status} ".encode())
    if body is not None:
        assert answer.partition(b"\r\n\r\n")[2] == body


async def test_readyz_says_why_when_not_ready() -> None:
    async with http.serving("127.0.0.1:0", probes("the network is not usable")) as address:
        answer = await ask(address, get("/readyz"))
    assert answer.startswith(b"HTTP/1.1 503 ")
    assert answer.endswith(b"the network is not usable\n")


async def test_a_connection_is_dropped_when_too_many_are_open() -> None:
    async with http.serving("127.0.0.1:0", probes()) as address, AsyncExitStack() as stack:
        host, port = http.split_address(address)
        for _ in range(http.MAX_CONNECTIONS):
            _, writer = await asyncio.open_connection(host, port)
            stack.callback(writer.close)
        reader, writer = await asyncio.open_connection(host, port)
        stack.callback(writer.close)
        assert await reader.read() == b""


async def test_a_caller_is_dropped_when_it_sends_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(http, "REQUEST_TIMEOUT_S", 0.01)
    async with http.serving("127.0.0.1:0", probes()) as address:
        assert await ask(address, b"GET /he") == b""


async def test_a_caller_that_closes_at_once_is_not_an_error() -> None:
    async with http.serving("127.0.0.1:0", probes()) as address:
        assert await ask(address, b"", eof=True) == b""


async def test_serving_says_so_when_the_port_is_taken() -> None:
    async with http.serving("127.0.0.1:0", probes()) as address:
        with pytest.raises(ConfigError, match="cannot listen on"):
            async with http.serving(address, probes()):
                pass


@pytest.mark.parametrize("address", ["", "9475", "host:", "host:-1", "host:65536", "host:http"])
def test_split_address_refuses(address: str) -> None:
    with pytest.raises(ConfigError, match="must be HOST:PORT"):
        http.split_address(address)


def test_split_address_reads_ipv6() -> None:
    assert http.split_address("[::1]:80") == ("::1", 80)
