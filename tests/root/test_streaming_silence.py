"""A peer whose machine falls silent, on a network of its own: no FIN, no RST, nothing."""

from __future__ import annotations

import asyncio
import secrets
import subprocess
import sys
from typing import TYPE_CHECKING

import pytest

from noderuntime.cri.streaming import session
from noderuntime.cri.streaming.server import StreamingServer
from noderuntime.cri.streaming.tokens import RemoteCommand
from noderuntime.policy.model import ContainerConfig, PodIdentity, SandboxConfig
from tests.fakes.cri_engine import FakeEngine
from tests.waiting import until

if TYPE_CHECKING:
    from collections.abc import Generator

# Connects, reads a little of what it is sent, then, at a word, all of it.
CLIENT = """
import socket, sys
host, port, path = sys.argv[1:]
peer = socket.create_connection((host, int(port)))
peer.sendall(f"GET {path} HTTP/1.1\\r\\nHost: x\\r\\nUpgrade: websocket\\r\\nConnection: Upgrade\\r\\n"
    "Sec-WebSocket-Version: 13\\r\\nSec-WebSocket-Key: MDEyMzQ1Njc4OWFiY2RlZg==\\r\\n\\r\\n".encode())
peer.recv(4096)
print("here", flush=True)
sys.stdin.readline()
while peer.recv(65536):
    pass
"""


class Line:
    """A network namespace that a process holds, and a veth pair to it."""

    def __init__(self) -> None:
        self.name = f"nrs{secrets.token_hex(4)}"
        third = secrets.randbelow(250)
        self.host, self.peer = f"10.201.{third}.1", f"10.201.{third}.2"
        self.holder = subprocess.Popen(
            ["unshare", "--net", "sh", "-c", "echo up; exec sleep 600"], stdout=subprocess.PIPE
        )
        assert self.holder.stdout is not None
        self.holder.stdout.readline()
        self.inside = ("nsenter", f"--target={self.holder.pid}", "--net")
        pair = f"ip link add {self.name} type veth peer name eth0 netns {self.holder.pid}"
        self.run(*pair.split())
        self.run("ip", "address", "add", f"{self.host}/30", "dev", self.name)
        self.run("ip", "link", "set", self.name, "up")
        self.run(*self.inside, "ip", "address", "add", f"{self.peer}/30", "dev", "eth0")
        self.run(*self.inside, "ip", "link", "set", "eth0", "up")

    def run(self, *argv: str) -> None:
        subprocess.run(argv, check=True)

    def cut(self) -> None:
        self.run(*self.inside, "ip", "link", "set", "eth0", "down")

    def remove(self) -> None:
        self.holder.kill()
        self.holder.communicate()
        subprocess.run(["ip", "link", "delete", self.name], check=False, capture_output=True)


@pytest.fixture
def line() -> Generator[Line]:
    made = Line()
    yield made
    made.remove()


async def test_an_exec_ends_with_the_silence_and_not_with_the_slowness_of_its_peer(
    line: Line, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(session, "SILENT_MS", 2000)
    monkeypatch.setattr(session, "WATCH_S", 0.1)
    engine = FakeEngine()
    pod = SandboxConfig(pod=PodIdentity(name="a", namespace="b", uid="c"))
    sandbox_id = await engine.run_sandbox(pod, "")
    config = ContainerConfig(name="app", image="app:1")
    container_id = await engine.create_container(sandbox_id, config)
    await engine.start_container(container_id)
    server = StreamingServer(engine, f"{line.host}:0")
    await server.start()
    argv = ("cat", "/dev/zero")
    ticket = RemoteCommand(
        container_id=container_id, argv=argv, stdin=False, stdout=True, stderr=True, tty=False
    )
    _, _, rest = server.url(ticket).partition("://")
    address, _, path = rest.partition("/")
    client = await asyncio.create_subprocess_exec(
        *(*line.inside, sys.executable, "-c", CLIENT, *address.split(":"), f"/{path}"),
        stdin=asyncio.subprocess.PIPE,
        stdout=asyncio.subprocess.PIPE,
    )
    assert client.stdout is not None
    assert client.stdin is not None
    async with asyncio.timeout(60):
        assert await client.stdout.readline() == b"here\n"
    await asyncio.sleep(1.5)  # nothing is read; the window is closed
    stream = engine.streams[0]
    assert not stream.closed
    client.stdin.write(b"\n")
    await asyncio.sleep(0.3)
    assert not stream.closed
    line.cut()
    await until(lambda: stream.closed)
    client.kill()
    await client.communicate()
    await server.stop()
