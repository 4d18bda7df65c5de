"""Pod cycles under random faults: ``python -m tests.root.soak SECONDS`` (``make soak``: an hour).

The real ``noderuntime serve`` is killed again and again, so are monitors, and the network fails at times;
callers behave as the kubelet does: they look what is there, and try again. After a third of the time the
runtime itself is left alone, so that what it holds can be compared (``soak_report``).
"""

from __future__ import annotations

import asyncio
import json
import os
import random
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from contextlib import suppress
from pathlib import Path
from typing import TYPE_CHECKING, Any

import grpc

from e2e.cluster import unit
from e2e.performance.cri import Client, Pod
from noderuntime.cri.runtime_v1 import api_pb2 as pb
from tests.root.engine_kit import IMAGE
from tests.root.engine_scene import made_node_of
from tests.root.faults_kit import FaultyNode
from tests.root.mounts_kit import unmount_below
from tests.root.probed_serve import Counts
from tests.root.soak_report import HEADER, Report, problems, row, say

if TYPE_CHECKING:
    from collections.abc import Iterator

    from google.protobuf.message import Message

WORKERS = 4
CALM_S = 4.0  # between two kills of the runtime
START_S = 30.0
QUIET_S = 6.0  # watchers have looked by then
FEWEST_LOOKS, MOST_LOOKS = 3, 15  # at what the runtime holds, when it is left alone
ENOUGH = 60.0  # a Pod that cannot be removed for so long is lost
CONFIG = """
socket = "{root}/run/noderuntime.sock"
state_dir = "{root}/state"
run_dir = "{root}/run"
revision = "{root}/current"
[handlers.crun]
oci_runtime = "{programs}/crun"
[cni]
conf_dir = "{root}/cni"
bin_dirs = ["{programs}"]
[metrics]
address = "127.0.0.1:{port}"
"""


class Soak:
    """One node with its runtime, and those who call it."""

    def __init__(self, node: FaultyNode, port: int) -> None:
        self._node = node
        self._config = node.root / "config.toml"
        self._config.write_text(CONFIG.format(root=node.root, programs=node.programs, port=port))
        self._counts = node.root / "counts.json"
        self._process: subprocess.Popen[bytes] | None = None
        self._random = random.Random(1)
        self._number = 0
        self.report = Report()

    @property
    def pid(self) -> int:
        """The runtime of now."""
        assert self._process is not None
        return self._process.pid

    def start(self) -> None:
        repository = Path(__file__).resolve().parents[2]
        path = f"{self._node.programs}:{os.environ['PATH']}"
        with (self._node.root / "log").open("ab") as log:
            self._process = subprocess.Popen(
                (
                    *(sys.executable, "-m", "tests.root.probed_serve", self._counts),
                    *("serve", "--config", self._config),
                ),
                cwd=repository,
                env={
                    **os.environ,
                    **unit.environment(),
                    "PATH": path,
                    "PYTHONPATH": str(repository),
                },
                stderr=log,
            )

    def stop(self, number: int = signal.SIGTERM) -> None:
        assert self._process is not None
        self._process.send_signal(number)
        self._process.wait(60)

    def pod(self, number: int) -> Pod:
        """Return a Pod that ends at once on SIGTERM, and whose command line names the node."""
        pod = Pod(number, self._node.cgroup_parent, IMAGE, seccomp=False)
        pod.sandbox_config.log_directory = str(self._node.root / "logs" / f"pod-{number}")
        del pod.container_config.command[:]
        pod.container_config.command.extend(self._node.container().command)
        return pod

    async def wait_ready(self, client: Client) -> None:
        until = time.monotonic() + START_S
        while True:
            try:
                await client._call("Version", pb.VersionRequest(), pb.VersionResponse)
            except grpc.RpcError:
                assert time.monotonic() < until, (self._node.root / "log").read_text()[-2000:]
                await client.close()
                await asyncio.sleep(0.1)
            else:
                return

    async def run(self, seconds: float) -> Report:
        """Run for so long, a third of it with kills of the runtime; end with an empty node."""
        self.start()
        client = Client(self._node.config.socket)
        await self.wait_ready(client)
        self.stop()
        empty = self._node.census()
        self.start()
        await self.wait_ready(client)
        until = time.monotonic() + seconds / 3
        killing = asyncio.Task(self._kill_runtimes())
        await self._cycles(until)
        killing.cancel()
        await asyncio.wait([killing])
        await client.close()
        await self.wait_ready(client)
        say(
            f"{self.report.cycles} Pods, {self.report.runtime_kills} kills; now left alone\n{HEADER}"
        )
        until = time.monotonic() + seconds * 2 / 3
        looks = min(max(int(seconds / 60), FEWEST_LOOKS), MOST_LOOKS)
        for left in range(looks, 0, -1):
            await self._cycles(time.monotonic() + (until - time.monotonic()) / left)
            await self._look()
        await client.close()
        self.stop()
        self.report.leftovers = self._node.leftovers(empty)
        log = (self._node.root / "log").read_text()
        self.report.internal += [x for x in log.splitlines() if "unexpectedly" in x][:5]
        return self.report

    async def _cycles(self, until: float) -> None:
        async with asyncio.TaskGroup() as group:
            for _ in range(WORKERS):
                group.create_task(self._worker(until))

    async def _look(self) -> None:
        """Let the runtime count itself, when what a failed call has left is released."""
        await asyncio.sleep(QUIET_S)
        self._counts.unlink(missing_ok=True)
        os.kill(self.pid, signal.SIGUSR1)
        async with asyncio.timeout(START_S):
            while not self._counts.exists():  # a file tells nobody
                await asyncio.sleep(0.05)
        counts = Counts(**json.loads(self._counts.read_text()))
        self.report.series.append((self.report.cycles, counts))
        say(row(self.report.cycles, counts))

    async def _kill_runtimes(self) -> None:
        while True:
            await asyncio.sleep(self._random.uniform(0.5, 2) * CALM_S)
            await asyncio.to_thread(self.stop, signal.SIGKILL)
            self.report.runtime_kills += 1
            self.start()

    async def _worker(self, until: float) -> None:
        while time.monotonic() < until:
            self._number += 1
            await self._cycle(self._number)

    async def _cycle(self, number: int) -> None:
        client = Client(self._node.config.socket)
        pod = self.pod(number)
        fails_network = self._random.random() < 0.1
        if fails_network:
            self._node.fail("bridge.ADD", "fail")
            self.report.network_failures += 1
        try:
            await client.start(pod)
            self.report.started += 1
            await self._disturb(client, pod)
        except (grpc.RpcError, RuntimeError) as error:
            self._note(error)
        if fails_network:
            with suppress(FileNotFoundError):
                self._node.fail("bridge.ADD", "")
        await self._remove(client, number)
        await client.close()
        shutil.rmtree(self._node.root / "logs" / f"pod-{number}", ignore_errors=True)
        self.report.cycles += 1

    async def _disturb(self, client: Client, pod: Pod) -> None:
        choice = self._random.random()
        if choice < 0.2:
            bundle = self._node.config.run_dir / "containers" / pod.container
            with suppress(FileNotFoundError, ProcessLookupError, ValueError):
                os.kill(int((bundle / "conmon.pid").read_text()), signal.SIGKILL)
                self.report.monitor_kills += 1
        for name, message in requests_about(pod):
            if self._random.random() < 0.5:
                answer: Any = getattr(pb, f"{name}Response")
                await client._call(name, message, answer)

    async def _remove(self, client: Client, number: int) -> None:
        """Look what is there of the Pod and take it away, until nothing is."""
        until = time.monotonic() + ENOUGH
        while True:
            try:
                request = pb.ListPodSandboxRequest()
                listed: Any = await client._call(
                    "ListPodSandbox", request, pb.ListPodSandboxResponse
                )
                mine = [s for s in listed.items if s.metadata.uid == f"uid-{number}"]
                if not mine:
                    return
                for sandbox in mine:
                    pod = Pod(number, "", "", seccomp=False)
                    pod.sandbox = sandbox.id
                    await client.remove(pod)
            except grpc.RpcError as error:
                self._note(error)
                if time.monotonic() > until:
                    raise
                await asyncio.sleep(0.2)

    def _note(self, error: Exception) -> None:
        self.report.refused += 1
        code: Any = getattr(error, "code", lambda: None)()
        if code is grpc.StatusCode.INTERNAL:
            self.report.internal.append(str(error))


def requests_about(pod: Pod) -> Iterator[tuple[str, Message]]:
    """Yield what is asked of a running Pod, by its method."""
    container, sandbox = pod.container, pod.sandbox
    command = ["/bin/busybox", "true"]
    yield "ExecSync", pb.ExecSyncRequest(container_id=container, cmd=command, timeout=10)
    yield "Exec", pb.ExecRequest(container_id=container, cmd=command, stdout=True)
    yield "ReopenContainerLog", pb.ReopenContainerLogRequest(container_id=container)
    yield "ContainerStats", pb.ContainerStatsRequest(container_id=container)
    yield "ListPodSandboxStats", pb.ListPodSandboxStatsRequest()
    yield "ListPodSandboxMetrics", pb.ListPodSandboxMetricsRequest()
    yield "ListContainers", pb.ListContainersRequest()
    yield "Status", pb.StatusRequest(verbose=True)
    yield "PodSandboxStatus", pb.PodSandboxStatusRequest(pod_sandbox_id=sandbox, verbose=True)
    limits = pb.LinuxContainerResources(cpu_shares=200)
    yield (
        "UpdateContainerResources",
        pb.UpdateContainerResourcesRequest(container_id=container, linux=limits),
    )
    yield "StopContainer", pb.StopContainerRequest(container_id=container, timeout=5)


def main(seconds: float) -> int:
    """Run it on a node of its own and print the report; 1 when something was lost or grew."""
    root = Path(tempfile.mkdtemp(prefix="nr-soak-"))
    try:
        with made_node_of(FaultyNode, root) as node:
            report = asyncio.run(Soak(node, 0).run(seconds))
    finally:
        unmount_below(root)
        shutil.rmtree(root, ignore_errors=True)
    say("\n".join([str(report), *(problems(report) or ["nothing was lost, nothing grew"])]))
    return int(bool(problems(report)))


if __name__ == "__main__":
    sys.exit(main(float(sys.argv[1])))
