"""A node full of Pods whose runtime is killed: all are known again, and calls are joined."""

from __future__ import annotations

import asyncio
import os
import signal
import time
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest

from e2e.performance.cri import Client
from noderuntime.cri.runtime_v1 import api_pb2 as pb
from tests.root.engine_scene import made_node_of
from tests.root.faults_kit import FaultyNode
from tests.root.soak import Soak
from tests.root.soak_report import say

if TYPE_CHECKING:
    from e2e.performance.cri import Pod

PODS = 110  # the kubelet's default for a node
AT_ONCE = 8
MOST_PROGRAMS = 4  # in all, as the network's STATUS
MOST_READS = 60  # a Pod with its container


async def for_each(pods: list[Pod], call: Any) -> None:
    gate = asyncio.Semaphore(AT_ONCE)

    async def one(pod: Pod) -> None:
        async with gate:
            await call(pod)

    await asyncio.gather(*(one(pod) for pod in pods))


def reads(soak: Soak) -> int:
    """Return how often the runtime has called read(2) or one of its kin. proc_pid_io(5)."""
    words = Path(f"/proc/{soak.pid}/io").read_text().split()
    return int(words[words.index("syscr:") + 1])


def cpu_s(soak: Soak) -> float:
    """Return the CPU time that the runtime has used. proc_pid_stat(5), utime and stime."""
    fields = Path(f"/proc/{soak.pid}/stat").read_text().rpartition(")")[2].split()
    return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")


async def fill_kill_and_look(node: FaultyNode, port: int) -> None:
    soak = Soak(node, port)
    client = Client(node.config.socket)
    soak.start()
    await soak.wait_ready(client)
    soak.stop()
    empty = node.census()
    soak.start()
    await soak.wait_ready(client)
    reads_of_none = reads(soak)
    pods = [soak.pod(number) for number in range(PODS)]
    await for_each(pods, client.start)
    full = node.census()

    soak.stop(signal.SIGKILL)
    await client.close()
    node.count_calls()
    begun = time.monotonic()
    soak.start()
    await soak.wait_ready(client)
    seconds, reads_a_pod = time.monotonic() - begun, (reads(soak) - reads_of_none) / PODS
    say(
        f"{PODS} Pods: ready {seconds:.2f} s after the start of the process, of which "
        f"{cpu_s(soak):.2f} s on a CPU; {reads_a_pod:.1f} reads a Pod"
    )
    # How long depends on the machine. It does little: some files of each Pod are read, no program runs.
    assert len(node.calls()) <= MOST_PROGRAMS, node.calls()
    assert reads_a_pod <= MOST_READS
    listed = await client._call(
        "ListContainers", pb.ListContainersRequest(), pb.ListContainersResponse
    )
    running = {c.id for c in listed.containers if c.state == pb.CONTAINER_RUNNING}
    assert running == {pod.container for pod in pods}
    sandboxes = await client._call(
        "ListPodSandbox", pb.ListPodSandboxRequest(), pb.ListPodSandboxResponse
    )
    ready = {s.id for s in sandboxes.items if s.state == pb.SANDBOX_READY}
    assert ready == {pod.sandbox for pod in pods}
    assert [x for x in node.leftovers(full) if " processes " not in x] == []

    await one_of_many(client, soak.pod(PODS))
    await for_each(pods, client.remove)
    await client.close()
    soak.stop()
    assert node.leftovers(empty) == []


async def one_of_many(client: Client, pod: Pod) -> None:
    """A call that its caller gives up goes on, and whoever asks again joins it."""
    request = pb.RunPodSandboxRequest(config=pod.sandbox_config)
    given_up = asyncio.Task(client._call("RunPodSandbox", request, pb.RunPodSandboxResponse))
    await asyncio.sleep(0.01)
    given_up.cancel()
    answers = await asyncio.gather(
        *(client._call("RunPodSandbox", request, pb.RunPodSandboxResponse) for _ in range(3))
    )
    ids = {answer.pod_sandbox_id for answer in answers}
    assert len(ids) == 1
    pod.sandbox = ids.pop()
    await client.remove(pod)


@pytest.mark.slow
@pytest.mark.timeout(400)
def test_a_node_full_of_pods_is_known_again_after_its_runtime_was_killed(
    tmp_path_factory: pytest.TempPathFactory, unused_tcp_port: int
) -> None:
    with made_node_of(FaultyNode, tmp_path_factory.mktemp("nr-many")) as node:
        asyncio.run(fill_kill_and_look(node, unused_tcp_port))
