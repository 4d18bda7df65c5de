"""A client's deadline that is shorter than a step, on a real socket over the engine on fakes.

The call ends for the client with DEADLINE_EXCEEDED, the verb goes on, and who asks again joins it.
"""

from __future__ import annotations

import asyncio
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Final

import grpc
import pytest
from grpc import aio

from noderuntime.cri.image_service import ImageService
from noderuntime.cri.runtime_service import RuntimeService
from noderuntime.cri.runtime_v1 import api_pb2 as pb
from noderuntime.cri.server import CriServer
from noderuntime.host.ports import CgroupDriver
from tests.fakes.engine import IMAGE_ID, World, new_engine, new_world
from tests.fakes.kubelet_requests import kubelets_container, kubelets_sandbox
from tests.unit.cri.conftest import RecordedUrls

if TYPE_CHECKING:
    from collections.abc import AsyncIterator
    from pathlib import Path

    from google.protobuf.message import Message

    from noderuntime.engine.engine import Engine

# The first is short; on a busy machine it may pass before the server has even read the call.
DEADLINES_S: Final = (0.05, 1.0, 10.0)
ENOUGH_S: Final = 30.0
# A verb, and a step in its middle that hangs.
SLOW: Final = {
    "RunPodSandbox": "run_sandbox/network:before",
    "CreateContainer": "create_container/record:before",
    "StartContainer": "start_container/start:before",
    "StopContainer": "stop_container/wait:before",
    "RemoveContainer": "remove_container/record:before",
    "StopPodSandbox": "stop_sandbox/record:before",
    "RemovePodSandbox": "remove_sandbox/record:before",
}


@dataclass
class Served:
    """A runtime whose verbs hang at ``place``, until they are let go."""

    world: World
    engine: Engine = field(init=False)
    channel: aio.Channel = field(init=False)
    place: str = ""
    reached: asyncio.Event = field(default_factory=asyncio.Event)
    let_go: asyncio.Event = field(default_factory=asyncio.Event)
    sandbox: str = ""
    container: str = ""

    async def hang(self, verb: str, step: str) -> None:
        if f"{verb}/{step}" == self.place:
            self.reached.set()
            await self.let_go.wait()

    async def call(self, name: str, timeout_s: float = ENOUGH_S) -> Any:
        call: Any = self.channel.unary_unary(
            f"/runtime.v1.RuntimeService/{name}",
            request_serializer=_bytes_of,
            response_deserializer=getattr(pb, f"{name}Response").FromString,
        )
        return await call(self._request(name), timeout=timeout_s)

    def _request(self, name: str) -> Message:
        if name == "RunPodSandbox":
            sandbox = kubelets_sandbox()
            sandbox.log_directory = str(self.world.root / "logs")
            return pb.RunPodSandboxRequest(config=sandbox)
        if name == "CreateContainer":
            config = kubelets_container()
            del config.mounts[:]
            del config.devices[:]
            config.image.image = IMAGE_ID
            config.linux.security_context.ClearField("seccomp")
            return pb.CreateContainerRequest(pod_sandbox_id=self.sandbox, config=config)
        request: Any = getattr(pb, f"{name}Request")
        if name.endswith("PodSandbox"):
            made: Message = request(pod_sandbox_id=self.sandbox)
        else:
            made = request(container_id=self.container)
        return made

    async def up_to(self, name: str) -> None:
        """Bring a Pod to where the verb can be called."""
        for earlier in tuple(SLOW)[: min(tuple(SLOW).index(name), 3)]:
            self._remember(await self.call(earlier))

    def _remember(self, answer: Any) -> None:
        self.sandbox = getattr(answer, "pod_sandbox_id", self.sandbox)
        self.container = getattr(answer, "container_id", self.container)


def _bytes_of(message: Message) -> bytes:
    return message.SerializeToString()


@asynccontextmanager
async def served(root: Path) -> AsyncIterator[Served]:
    made = Served(new_world(root))
    made.engine = new_engine(made.world, faults=made.hang)
    await made.engine.recover()
    runtime = RuntimeService(made.engine, RecordedUrls(), CgroupDriver.CGROUPFS)
    server = CriServer(root / "cri.sock", runtime, ImageService(made.engine))
    await server.start()
    try:
        async with aio.insecure_channel(f"unix:{root / 'cri.sock'}") as channel:
            made.channel = channel
            yield made
    finally:
        await server.stop(0)
        await made.engine.close()


async def ends_by_its_deadline(node: Served, name: str) -> None:
    """Call with a deadline that ends while the verb hangs."""
    for timeout_s in DEADLINES_S:
        with pytest.raises(aio.AioRpcError) as caught:
            await node.call(name, timeout_s)
        assert caught.value.code() is grpc.StatusCode.DEADLINE_EXCEEDED
        if node.reached.is_set():
            return
    raise AssertionError(f"{name} did not reach {node.place}")


async def calls_of(root: Path, name: str) -> list[str]:
    """Return what the verb asks of the node when nothing is in its way."""
    root.mkdir()
    async with served(root) as node:
        await node.up_to(name)
        node.world.calls.clear()
        await node.call(name)
        return node.world.calls


@pytest.mark.parametrize("name", SLOW)
async def test_a_verb_goes_on_after_its_clients_deadline_and_the_retry_joins_it(
    tmp_path: Path, name: str
) -> None:
    (tmp_path / "cut").mkdir()
    once = await calls_of(tmp_path / "once", name)
    async with served(tmp_path / "cut") as node:
        empty = node.world.census()
        await node.up_to(name)
        node.place = SLOW[name]
        node.world.calls.clear()
        await ends_by_its_deadline(node, name)
        under_way = tuple(node.engine._node.jobs._running)
        assert under_way  # nobody waits for it, and it is there

        retries = [asyncio.Task(node.call(name)) for _ in range(2)]
        await asyncio.sleep(0.05)  # they would begin a second one now, if they did
        assert tuple(node.engine._node.jobs._running) == under_way
        assert not any(retry.done() for retry in retries)
        node.let_go.set()
        first, second = await asyncio.gather(*retries)
        assert first == second
        assert node.world.calls == once

        node.place = ""
        for record in node.engine.sandboxes():
            await node.engine.remove_sandbox(record.id)
        assert node.world.census() == empty


async def test_a_verb_goes_on_after_its_client_has_hung_up(tmp_path: Path) -> None:
    async with served(tmp_path) as node:
        empty = node.world.census()
        node.place = SLOW["RunPodSandbox"]
        given_up = asyncio.Task(node.call("RunPodSandbox"))
        async with asyncio.timeout(ENOUGH_S):
            await node.reached.wait()
        given_up.cancel()
        await asyncio.wait([given_up])
        retry = asyncio.Task(node.call("RunPodSandbox"))
        node.let_go.set()
        sandbox_id = (await retry).pod_sandbox_id
        assert [record.id for record in node.engine.sandboxes()] == [sandbox_id]
        await node.engine.remove_sandbox(sandbox_id)
        assert node.world.census() == empty
