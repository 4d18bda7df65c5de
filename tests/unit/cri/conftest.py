"""The CRI server over a fake engine, on a socket of its own."""

from __future__ import annotations

from contextlib import asynccontextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import pytest
from google.protobuf import message_factory
from grpc import aio

from noderuntime.cri.image_service import ImageService
from noderuntime.cri.runtime_service import RuntimeService
from noderuntime.cri.runtime_v1 import api_pb2 as pb
from noderuntime.cri.server import AGENT_METHODS, CriServer
from noderuntime.host.ports import CgroupDriver
from tests.fakes.cri_engine import FakeEngine

if TYPE_CHECKING:
    from collections.abc import AsyncIterator
    from pathlib import Path

    from google.protobuf.descriptor import MethodDescriptor, ServiceDescriptor
    from google.protobuf.message import Message

    from noderuntime.cri.streaming.tokens import Ticket


class RecordedUrls:
    """Keeps the tickets that were asked for."""

    def __init__(self) -> None:
        self.tickets: list[Ticket] = []

    def url(self, ticket: Ticket) -> str:
        self.tickets.append(ticket)
        return f"http://127.0.0.1:1/{ticket.kind}/{len(self.tickets)}"


@dataclass
class Client:
    """Calls by name, as a CRI client would."""

    channel: aio.Channel
    engine: FakeEngine
    urls: RecordedUrls
    path: Path

    async def call(self, name: str, request: Message | None = None) -> Any:  # of many
        service, method = _method(name)
        path = f"/{service.full_name}/{name}"
        answer = message_factory.GetMessageClass(method.output_type)
        message = request or message_factory.GetMessageClass(method.input_type)()
        if method.server_streaming:
            stream = self.channel.unary_stream(
                path, type(message).SerializeToString, answer.FromString
            )
            return [each async for each in stream(message, timeout=5)]
        unary = self.channel.unary_unary(path, type(message).SerializeToString, answer.FromString)
        return await unary(message, timeout=5)

    async def raw(
        self, path: str, data: bytes, metadata: tuple[tuple[str, str], ...] = ()
    ) -> bytes:
        unary: Any = self.channel.unary_unary(path)  # pyright: ignore[reportUnknownVariableType]
        answer: bytes = await unary(data, timeout=5, metadata=metadata)
        return answer


def _method(name: str) -> tuple[ServiceDescriptor, MethodDescriptor]:
    for service in pb.DESCRIPTOR.services_by_name.values():
        if name in service.methods_by_name:
            return service, service.methods_by_name[name]
    raise KeyError(name)


@asynccontextmanager
async def serving(path: Path, only: frozenset[str] | None = None) -> AsyncIterator[Client]:
    engine, urls = FakeEngine(), RecordedUrls()
    runtime = RuntimeService(engine, urls, CgroupDriver.CGROUPFS)
    server = CriServer(path, runtime, ImageService(engine), only=only)
    await server.start()
    try:
        async with aio.insecure_channel(f"unix:{path}") as channel:
            yield Client(channel=channel, engine=engine, urls=urls, path=path)
    finally:
        await server.stop(0)


@pytest.fixture
async def cri(tmp_path: Path) -> AsyncIterator[Client]:
    async with serving(tmp_path / "cri.sock") as client:
        yield client


@pytest.fixture
async def agents_cri(tmp_path: Path) -> AsyncIterator[Client]:
    async with serving(tmp_path / "agent.sock", AGENT_METHODS) as client:
        yield client
