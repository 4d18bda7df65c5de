"""A streaming server over a fake engine with one running container."""

from __future__ import annotations

import asyncio
import contextlib
from typing import TYPE_CHECKING

from noderuntime.cri.streaming.server import StreamingServer
from noderuntime.cri.streaming.tokens import Forward, RemoteCommand
from noderuntime.policy.model import ContainerConfig, PodIdentity, SandboxConfig
from tests.fakes.cri_engine import FakeEngine

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Callable


class StreamingNode:
    """A streaming server with one running container."""

    def __init__(self, engine: FakeEngine, server: StreamingServer, ids: tuple[str, str]) -> None:
        self.engine, self.server = engine, server
        self.sandbox_id, self.container_id = ids

    def command(self, *argv: str, tty: bool = False, stdin: bool = False) -> str:
        return self.server.url(
            RemoteCommand(
                container_id=self.container_id,
                argv=argv or None,
                stdin=stdin,
                stdout=True,
                stderr=not tty,
                tty=tty,
            )
        )

    def forward(self, *ports: int) -> str:
        return self.server.url(Forward(sandbox_id=self.sandbox_id, ports=tuple(ports)))


@contextlib.asynccontextmanager
async def streaming_node() -> AsyncIterator[StreamingNode]:
    """Serve, and see at the end that no exec is left."""
    engine = FakeEngine()
    sandbox_id = await engine.run_sandbox(
        SandboxConfig(pod=PodIdentity(name="a", namespace="b", uid="c")), ""
    )
    container_id = await engine.create_container(
        sandbox_id, ContainerConfig(name="app", image="app:1")
    )
    await engine.start_container(container_id)
    server = StreamingServer(engine, "127.0.0.1:0")
    await server.start()
    try:
        yield StreamingNode(engine, server, (sandbox_id, container_id))
    finally:
        await server.stop()
        await eventually(lambda: all(stream.closed for stream in engine.streams))


async def serve_upper() -> tuple[asyncio.Server, int]:
    async def upper(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        writer.write((await reader.read()).upper())
        writer.close()

    server = await asyncio.start_server(upper, "127.0.0.1", 0)
    return server, server.sockets[0].getsockname()[1]


async def eventually(condition: Callable[[], bool]) -> None:
    async with asyncio.timeout(5):
        while not condition():  # what is waited for has no event
            await asyncio.sleep(0.005)
