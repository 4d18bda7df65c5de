"""Fakes of what ``host`` does with processes: the OCI runtime, the monitor, execs, port-forward."""

from __future__ import annotations

import asyncio
import json
import socket
from collections.abc import AsyncIterator, Sequence
from pathlib import Path
from signal import SIGKILL, Signals
from typing import cast

from noderuntime.errors import DeadlineExceededError, HostError, NotFoundError
from noderuntime.host.ports import (
    AttachStream,
    ExecRequest,
    ExecResult,
    ExecStream,
    Exit,
    MonitorRequest,
    OciRuntime,
)
from noderuntime.policy.model import Resources
from tests.fakes.host import cgroups_of
from tests.fakes.world import ALIVE, World


class FakeRuntime:
    """Processes are states in the world; a signal ends one at once, unless the world ignores it."""

    def __init__(self, world: World, binary: Path = Path("/usr/bin/crun")) -> None:
        self._world = world
        self._binary = binary

    @property
    def binary(self) -> Path:
        return self._binary

    @property
    def program(self) -> Path:
        return self._binary

    @property
    def root(self) -> Path:
        return self._world.root / "run" / "oci"

    def global_arguments(self) -> tuple[str, ...]:
        return (f"--root={self.root}",)

    async def start(self, container_id: str) -> None:
        await self._world.call("runtime.start")
        if self._world.processes.get(container_id) != "created":
            raise HostError(f"{container_id} is not created")
        self._world.processes[container_id] = "running"

    async def kill(self, container_id: str, signal: int) -> None:
        name = Signals(signal).name if signal in set(Signals) else str(signal)  # a real-time one
        await self._world.call(f"runtime.kill {name}")
        is_alive = self._world.processes.get(container_id) in ALIVE
        if is_alive and signal not in self._world.ignored_signals:
            self._world.end(container_id, 128 + signal)

    async def delete(self, container_id: str) -> None:
        await self._world.call("runtime.delete")
        if self._world.processes.get(container_id) in ALIVE:
            self._world.end(container_id, 128 + SIGKILL)
        self._world.processes.pop(container_id, None)

    async def forget(self, container_id: str, bundle: Path) -> None:
        await self.delete(container_id)

    async def state(self, container_id: str) -> str | None:
        return self._world.processes.get(container_id)

    async def update(self, container_id: str, resources: Resources) -> None:
        await self._world.call("runtime.update")
        self._world.updates.append(resources)


class FakeStream:
    """``AttachStream`` and ``ExecStream``: what it gives is given to it, what it gets is kept."""

    def __init__(self, output: Sequence[tuple[int, bytes]] = (), exit_code: int = 0) -> None:
        self._output = tuple(output)
        self._exit_code = exit_code
        self.stdin = bytearray()
        self.is_closed = False

    async def __aiter__(self) -> AsyncIterator[tuple[int, bytes]]:
        for item in self._output:
            await asyncio.sleep(0)
            yield item

    async def write(self, data: bytes) -> None:
        if self.is_closed:
            raise HostError("stdin of this session is closed")
        self.stdin += data

    async def close_stdin(self) -> None:
        pass

    async def resize(self, width: int, height: int) -> None:
        pass

    async def close(self) -> None:
        self.is_closed = True

    async def wait(self) -> int:
        await asyncio.sleep(0)
        return self._exit_code


class FakeMonitor:
    """Monitors and exits are in the world."""

    def __init__(self, world: World) -> None:
        self._world = world

    def close(self) -> None:
        pass

    async def create(self, runtime: OciRuntime, request: MonitorRequest) -> int:
        await self._world.call("monitor.create")
        config = request.bundle / "config.json"
        if not config.is_file():
            raise HostError("there is no config.json")
        if request.container_id in self._world.processes:
            raise HostError(f"container {request.container_id} is there already")
        self._world.exits.pop(request.container_id, None)
        self._world.processes[request.container_id] = "created"
        self._world.monitors.add(request.container_id)
        self._world.cgroups.update(cgroups_of(json.loads(config.read_bytes())))
        return 4_000_000

    async def exit_of(self, container_id: str) -> Exit | None:
        return self._world.exits.get(container_id)

    async def lost_exit_of(self, container_id: str) -> Exit | None:
        return self._world.lost_exits.get(container_id)

    async def end_log(self, container_id: str, sentence: str) -> None:
        await self._world.call("monitor.end_log")
        assert container_id, sentence

    def exits(self) -> AsyncIterator[str]:
        queue: asyncio.Queue[str] = asyncio.Queue()
        self._world.ended.append(queue)
        return self._exits(queue)

    async def _exits(self, queue: asyncio.Queue[str]) -> AsyncIterator[str]:
        try:
            while True:
                yield await queue.get()
        finally:
            if queue in self._world.ended:
                self._world.ended.remove(queue)

    async def is_alive(self, container_id: str) -> bool:
        return container_id in self._world.monitors

    async def signal(self, container_id: str, number: int) -> bool:
        del container_id, number
        return False  # the OCI runtime does it

    async def remove(self, container_id: str) -> None:
        await self._world.call("monitor.remove")
        self._world.monitors.discard(container_id)
        self._world.exits.pop(container_id, None)

    async def reopen_log(self, container_id: str) -> None:
        await self._world.call("monitor.reopen_log")
        self._require(container_id)

    async def attach(self, container_id: str) -> AttachStream:
        await self._world.call("monitor.attach")
        self._require(container_id)
        return FakeStream()

    def _require(self, container_id: str) -> None:
        if container_id not in self._world.monitors:
            raise NotFoundError(f"container {container_id} has no monitor")


class FakeExec:
    """Runs ``true``, which says nothing, and ``hang``; says back every other command."""

    def __init__(self, world: World) -> None:
        self._world = world

    def _output(self, request: ExecRequest) -> bytes:
        words = cast("Sequence[str]", request.process["args"])
        return b"" if words[0] == "true" else repr(words).encode(errors="replace")

    async def open(self, runtime: OciRuntime, request: ExecRequest) -> ExecStream:
        await self._world.call("exec.open")
        output = self._output(request)
        return FakeStream([(2, output)] if output else [])

    async def sweep(self, runtime: OciRuntime) -> None:
        await self._world.call("exec.sweep")

    async def sync(self, runtime: OciRuntime, request: ExecRequest, timeout_s: float) -> ExecResult:
        await self._world.call("exec.sync")
        self._world.execs.append(request)
        output = self._output(request)
        if output == b"('hang',)":
            raise DeadlineExceededError(f"command did not finish within {timeout_s:g} s")
        return ExecResult(stdout=output, stderr=b"", exit_code=0)


class FakePortForward:
    """Only ``ports`` are listened on; each connection's other end is in ``peers``."""

    def __init__(self, world: World) -> None:
        self._world = world
        self.ports: set[int] = set()
        self.peers: list[socket.socket] = []

    async def connect(
        self, netns: Path | None, port: int
    ) -> tuple[asyncio.StreamReader, asyncio.StreamWriter]:
        await self._world.call("port_forward.connect")
        if port not in self.ports:
            raise HostError(f"cannot connect to port {port} in {netns} (connection refused)")
        ours, theirs = socket.socketpair()
        ours.setblocking(False)
        theirs.setblocking(False)
        self.peers.append(theirs)
        return await asyncio.open_connection(sock=ours)
