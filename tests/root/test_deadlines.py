"""A client whose deadline is shorter than a step of the real runtime: a CNI plugin that hangs."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager

import grpc
import pytest
from grpc import aio

from e2e.performance.cri import Client
from noderuntime.cri.runtime_v1 import api_pb2 as pb
from tests.root.engine_scene import made_node_of
from tests.root.faults_kit import FaultyNode
from tests.root.soak import Soak
from tests.waiting import until

DEADLINE_S = 2.0


@pytest.fixture(scope="module")
def node(tmp_path_factory: pytest.TempPathFactory) -> Iterator[FaultyNode]:
    with made_node_of(FaultyNode, tmp_path_factory.mktemp("nr-deadlines")) as real:
        yield real


@asynccontextmanager
async def served(node: FaultyNode) -> AsyncIterator[tuple[Soak, Client]]:
    """Serve, and leave nothing."""
    soak, client = Soak(node, 0), Client(node.config.socket)
    soak.start()
    try:
        await soak.wait_ready(client)
        yield soak, client
        await client.close()
    finally:
        soak.stop()


async def sandboxes(client: Client) -> list[str]:
    listed = await client._call(
        "ListPodSandbox", pb.ListPodSandboxRequest(), pb.ListPodSandboxResponse
    )
    return [each.id for each in listed.items]


async def test_a_pod_goes_on_after_its_clients_deadline_and_the_retry_gets_the_same(
    node: FaultyNode,
) -> None:
    async with served(node):
        pass  # what the first start makes, stays
    empty = node.census()
    async with served(node) as (soak, client):
        pod = soak.pod(1)
        request = pb.RunPodSandboxRequest(config=pod.sandbox_config)
        node.fail("bridge.ADD", "hang")
        plugin = str(node.programs / "bridge")
        with pytest.raises(aio.AioRpcError) as caught:
            await client._call("RunPodSandbox", request, pb.RunPodSandboxResponse, DEADLINE_S)
        assert caught.value.code() is grpc.StatusCode.DEADLINE_EXCEEDED
        # The plugin hangs on, or is started only now: the work has not ended with the call.
        await until(lambda: [line for line in node.processes() if plugin in line] != [])
        assert await sandboxes(client) == []

        retries = [
            asyncio.Task(client._call("RunPodSandbox", request, pb.RunPodSandboxResponse))
            for _ in range(2)
        ]
        await asyncio.sleep(0.2)  # if they did not join, each would start a plugin of its own now
        assert len([line for line in node.processes() if plugin in line]) == 1
        node.fail("bridge.ADD", "")
        await asyncio.to_thread((node.programs / "fifo").write_text, "go on\n")
        ids = {answer.pod_sandbox_id for answer in await asyncio.gather(*retries)}
        assert await sandboxes(client) == list(ids)
        pod.sandbox = ids.pop()
        await client.remove(pod)
    assert node.leftovers(empty) == []
