"""In-memory fakes of everything in host/ports.py, all on one ``FakeNode``.

The node records each call by name (``namespaces.create``, ``monitor.create``, ...), can be told to
fail or to run something at a call, and gives a census of all that exists.
"""

from __future__ import annotations

import asyncio
import socket
from collections import defaultdict
from collections.abc import AsyncIterator, Awaitable, Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import cast

from noderuntime.errors import DeadlineExceededError, HostError, NotFoundError
from noderuntime.host.pids import ProcessIdentity
from noderuntime.host.ports import (
    AttachStream,
    CgroupDriver,
    CgroupStats,
    ExecRequest,
    ExecResult,
    ExecStream,
    Exit,
    InitRequest,
    MonitorRequest,
    MountFeatures,
    NamespaceRequest,
    OciRuntime,
    Owners,
)
from noderuntime.host.readings import CgroupMetrics
from noderuntime.policy.model import Resources

SIGKILL = 9


@dataclass(slots=True)
class FakeNode:
    """The machine that the fakes share. ``now_ns`` is its clock."""

    calls: list[tuple[str, str]] = field(default_factory=list[tuple[str, str]])
    faults: dict[str, BaseException] = field(default_factory=dict[str, BaseException])
    hooks: dict[str, Callable[[], Awaitable[None]]] = field(
        default_factory=dict[str, Callable[[], Awaitable[None]]]
    )
    namespaces: dict[Path, NamespaceRequest] = field(default_factory=dict[Path, NamespaceRequest])
    inits: dict[Path, str] = field(default_factory=dict[Path, str])
    mounts: dict[Path, str] = field(default_factory=dict[Path, str])
    cgroups: set[str] = field(default_factory=set[str])
    containers: dict[str, str] = field(default_factory=dict[str, str])
    monitors: dict[str, MonitorRequest] = field(default_factory=dict[str, MonitorRequest])
    ended: dict[str, Exit] = field(default_factory=dict[str, Exit])
    lost: dict[str, int] = field(
        default_factory=dict[str, int]
    )  # exit codes the kernel still knows
    logs_ended: list[str] = field(default_factory=list[str])
    ignores: dict[str, set[int]] = field(default_factory=lambda: defaultdict(set))
    watchers: list[asyncio.Queue[str]] = field(default_factory=list[asyncio.Queue[str]])
    now_ns: int = 1_000_000_000

    async def at(self, call: str, about: str) -> None:
        """Record a call; run its hook and raise its fault, which is used up."""
        self.calls.append((call, about))
        if (hook := self.hooks.get(call)) is not None:
            await hook()
        if (fault := self.faults.pop(call, None)) is not None:
            raise fault

    def names(self) -> list[str]:
        """Return the names of the calls so far, in order."""
        return [name for name, _ in self.calls]

    def census(self) -> frozenset[str]:
        """Return everything that exists."""
        return frozenset(
            [
                *(f"namespaces {path}" for path in self.namespaces),
                *(f"mount {path}" for path in self.mounts),
                *(f"cgroup {path}" for path in self.cgroups),
                *(f"container {name} {state}" for name, state in self.containers.items()),
                *(f"monitor {name}" for name in self.monitors),
                *(f"exit {name}" for name in self.ended),
            ]
        )

    def end(self, container_id: str, code: int, *, oom_killed: bool = False) -> None:
        """Let a container's process end by itself."""
        self.containers[container_id] = "stopped"
        self.now_ns += 1_000_000
        if container_id in self.monitors:
            self.ended[container_id] = Exit(
                code=code, finished_at_ns=self.now_ns, oom_killed=oom_killed
            )
            for queue in self.watchers:
                queue.put_nowait(container_id)

    def kill_monitor(self, container_id: str) -> None:
        """Let a monitor die without a word."""
        del self.monitors[container_id]


class FakeNamespaces:
    """``Namespaces``; also makes the pin files, for code that looks."""

    def __init__(self, node: FakeNode) -> None:
        self._node = node

    async def prepare(self, root: Path) -> None:
        await self._node.at("namespaces.prepare", str(root))

    async def create(self, directory: Path, request: NamespaceRequest) -> None:
        await self._node.at("namespaces.create", str(directory))
        self._node.namespaces[directory] = request

    async def remove(self, directory: Path) -> None:
        await self._node.at("namespaces.remove", str(directory))
        self._node.namespaces.pop(directory, None)

    async def pin_pid(self, pid: int, member_of: str, target: Path) -> None:
        await self._node.at("namespaces.pin_pid", f"{pid} of {member_of}")
        self._node.mounts[target] = f"pid namespace of {pid}"


class FakeInits:
    """``Inits``: containers of the node that run without a monitor."""

    def __init__(self, node: FakeNode) -> None:
        self._node = node

    async def start(self, runtime: OciRuntime, request: InitRequest) -> ProcessIdentity:
        del runtime
        await self._node.at("inits.start", request.sandbox_id)
        self._node.containers[request.sandbox_id] = "running"
        self._node.inits[request.directory] = request.sandbox_id
        return self._identity()

    async def find(self, directory: Path) -> ProcessIdentity | None:
        name = self._node.inits.get(directory, "")
        return self._identity() if self._node.containers.get(name) == "running" else None

    async def remove(self, runtime: OciRuntime, sandbox_id: str, directory: Path) -> None:
        del runtime
        await self._node.at("inits.remove", sandbox_id)
        self._node.containers.pop(sandbox_id, None)
        self._node.inits.pop(directory, None)

    def _identity(self) -> ProcessIdentity:
        return ProcessIdentity(pid=3999, start_ticks=1)


class FakeMounts:
    """``Mounts``."""

    def __init__(self, node: FakeNode) -> None:
        self._node = node

    def features(self) -> MountFeatures:
        return MountFeatures(recursive_readonly=True, idmapped=True)

    async def tmpfs(self, target: Path, *, size_bytes: int, mode: int) -> None:
        await self._node.at("mounts.tmpfs", str(target))
        self._node.mounts[target] = f"tmpfs size={size_bytes} mode={mode:o}"

    async def overlay(
        self,
        lowers: Sequence[Path],
        upper: Path,
        work: Path,
        target: Path,
        owners: Owners | None = None,
        *,
        context: str = "",
    ) -> None:
        await self._node.at("mounts.overlay", str(target))
        if not 1 <= len(lowers) <= 127:
            raise HostError(f"an overlay takes 1 to 127 layers and was given {len(lowers)}")
        self._node.mounts[target] = f"overlay {':'.join(map(str, lowers))} {upper} {work}"

    async def clone(
        self, source: Path, target: Path, userns: Path | None, *, peer: bool = False
    ) -> tuple[Path, ...]:
        await self._node.at("mounts.clone", str(target))
        self._node.mounts[target] = f"{source} by {userns}"
        return ()

    async def set_bindable(self, targets: Sequence[Path], *, bindable: bool) -> None:
        await self._node.at("mounts.set_bindable", f"{[*map(str, targets)]} {bindable}")

    async def leave_out(self, pid: int, folders: Sequence[Path]) -> None:
        await self._node.at("mounts.leave_out", f"{pid} {[*map(str, folders)]}")

    async def unmount(self, target: Path) -> None:
        await self._node.at("mounts.unmount", str(target))
        for path in [p for p in self._node.mounts if p.is_relative_to(target)]:
            del self._node.mounts[path]


class FakeCgroups:
    """``Cgroups`` with the cgroupfs driver; a test adds to ``node.cgroups`` and to ``readings``."""

    def __init__(self, node: FakeNode) -> None:
        self._node = node
        self.readings: dict[str, CgroupStats] = {}

    def driver(self) -> CgroupDriver:
        return CgroupDriver.CGROUPFS

    def is_unified(self) -> bool:
        return True

    def has_controller(self, name: str) -> bool:
        return bool(name)

    def can_limit_swap(self) -> bool:
        return True

    def has_swap(self) -> bool:
        return True

    async def set_oom_score(self, oci_path: str, before: int, score: int) -> None:
        await self._node.at("cgroups.set_oom_score", f"{oci_path} {before} {score}")

    async def lift_cpu_quota(self, oci_path: str) -> None:
        await self._node.at("cgroups.lift_cpu_quota", oci_path)

    async def count_oom_kills(self, oci_path: str) -> None:
        pass

    def oci_path(self, parent: str, container_id: str) -> str:
        return f"{parent or '/noderuntime'}/{container_id}"

    async def stats(self, oci_path: str) -> CgroupStats:
        await self._node.at("cgroups.stats", oci_path)
        if oci_path not in self._node.cgroups and oci_path not in self.readings:
            raise NotFoundError(f"cgroup {oci_path} is not there")
        return self.readings.get(oci_path, CgroupStats(timestamp_ns=self._node.now_ns))

    async def pod_stats(self, parent: str) -> CgroupStats:
        await self._node.at("cgroups.pod_stats", parent)
        return self.readings.get(parent, CgroupStats(timestamp_ns=self._node.now_ns))

    async def kill(self, oci_path: str) -> None:
        await self._node.at("cgroups.kill", oci_path)
        container_id = oci_path.rpartition("/")[2]
        if self._node.containers.get(container_id) in {"created", "running"}:
            self._node.end(container_id, 128 + SIGKILL)

    async def metrics(self, oci_path: str) -> CgroupMetrics:
        reading = await self.stats(oci_path)
        return CgroupMetrics(id=oci_path, threads=reading.pids)

    async def oom_kills(self, oci_path: str) -> int:
        return (await self.metrics(oci_path)).oom_kills

    async def pod_metrics(self, parent: str) -> CgroupMetrics:
        reading = await self.pod_stats(parent)
        return CgroupMetrics(id=parent, threads=reading.pids)

    async def remove(self, oci_path: str) -> None:
        await self._node.at("cgroups.remove", oci_path)
        self._node.cgroups.discard(oci_path)


class FakeOciRuntime:
    """``OciRuntime``; a killed process ends at once unless ``node.ignores`` has the signal."""

    def __init__(
        self,
        node: FakeNode,
        binary: Path = Path("/usr/bin/crun"),
        root: Path = Path("/run/test/crun"),
    ) -> None:
        self._node = node
        self._binary = binary
        self._root = root
        self.updates: list[tuple[str, Resources]] = []

    @property
    def binary(self) -> Path:
        return self._binary

    @property
    def program(self) -> Path:
        return self._binary

    @property
    def root(self) -> Path:
        return self._root

    def global_arguments(self) -> tuple[str, ...]:
        return (f"--root={self._root}",)

    async def start(self, container_id: str) -> None:
        await self._node.at("runtime.start", container_id)
        state = self._node.containers.get(container_id)
        if state != "created":
            raise HostError(f"crun start of container {container_id} failed: it is {state}")
        self._node.containers[container_id] = "running"

    async def kill(self, container_id: str, signal: int) -> None:
        await self._node.at("runtime.kill", container_id)
        if self._node.containers.get(container_id) not in {"created", "running"}:
            return
        if signal == SIGKILL or signal not in self._node.ignores[container_id]:
            self._node.end(container_id, 128 + signal)

    async def forget(self, container_id: str, bundle: Path) -> None:
        await self.delete(container_id)

    async def delete(self, container_id: str) -> None:
        await self._node.at("runtime.delete", container_id)
        if self._node.containers.get(container_id) in {"created", "running"}:
            self._node.end(container_id, 128 + SIGKILL)
        self._node.containers.pop(container_id, None)

    async def state(self, container_id: str) -> str | None:
        await self._node.at("runtime.state", container_id)
        return self._node.containers.get(container_id)

    async def update(self, container_id: str, resources: Resources) -> None:
        await self._node.at("runtime.update", container_id)
        self.updates.append((container_id, resources))


class FakeStream:
    """``AttachStream`` and ``ExecStream``: what it gives is scripted, what it gets is kept."""

    def __init__(self, output: Sequence[tuple[int, bytes]] = (), exit_code: int = 0) -> None:
        self._output = tuple(output)
        self._exit_code = exit_code
        self.stdin = bytearray()
        self.is_stdin_open = True
        self.is_closed = False
        self.sizes: list[tuple[int, int]] = []

    async def __aiter__(self) -> AsyncIterator[tuple[int, bytes]]:
        for item in self._output:
            await asyncio.sleep(0)
            yield item

    async def write(self, data: bytes) -> None:
        if not self.is_stdin_open or self.is_closed:
            raise HostError("stdin of this session is closed")
        self.stdin += data

    async def close_stdin(self) -> None:
        self.is_stdin_open = False

    async def resize(self, width: int, height: int) -> None:
        self.sizes.append((width, height))

    async def close(self) -> None:
        self.is_closed = True

    async def wait(self) -> int:
        await asyncio.sleep(0)
        return self._exit_code


class FakeMonitor:
    """``Monitor``."""

    def __init__(self, node: FakeNode) -> None:
        self._node = node
        self._next_pid = 4000
        self.streams: dict[str, FakeStream] = {}
        self.reopened: list[str] = []

    async def create(self, runtime: OciRuntime, request: MonitorRequest) -> int:
        del runtime
        container_id = request.container_id
        await self._node.at("monitor.create", container_id)
        if container_id in self._node.containers:
            raise HostError(f"crun create of container {container_id} failed: it is there")
        self._node.ended.pop(container_id, None)
        self._node.monitors[container_id] = request
        self._node.containers[container_id] = "created"
        self._next_pid += 1
        return self._next_pid

    async def exit_of(self, container_id: str) -> Exit | None:
        return self._node.ended.get(container_id)

    def exits(self) -> AsyncIterator[str]:
        queue: asyncio.Queue[str] = asyncio.Queue()
        self._node.watchers.append(queue)
        return self._exits(queue)

    async def _exits(self, queue: asyncio.Queue[str]) -> AsyncIterator[str]:
        try:
            while True:
                yield await queue.get()
        finally:
            self._node.watchers.remove(queue)

    async def is_alive(self, container_id: str) -> bool:
        return container_id in self._node.monitors and container_id not in self._node.ended

    async def lost_exit_of(self, container_id: str) -> Exit | None:
        code = self._node.lost.get(container_id)
        return None if code is None else Exit(code=code, finished_at_ns=self._node.now_ns)

    async def end_log(self, container_id: str, sentence: str) -> None:
        assert sentence
        self._node.logs_ended.append(container_id)

    async def signal(self, container_id: str, number: int) -> bool:
        del container_id, number
        return False  # the OCI runtime does it

    async def remove(self, container_id: str) -> None:
        await self._node.at("monitor.remove", container_id)
        self._node.monitors.pop(container_id, None)
        self._node.ended.pop(container_id, None)

    async def reopen_log(self, container_id: str) -> None:
        await self._node.at("monitor.reopen_log", container_id)
        if container_id not in self._node.monitors:
            raise NotFoundError(f"container {container_id} has no monitor")
        self.reopened.append(container_id)

    async def attach(self, container_id: str) -> AttachStream:
        await self._node.at("monitor.attach", container_id)
        if container_id not in self._node.monitors:
            raise NotFoundError(f"container {container_id} has no monitor")
        return self.streams.setdefault(container_id, FakeStream())


class FakeExec:
    """``Exec``: ``answers`` by the process' first argument; "hang" never ends."""

    def __init__(self, node: FakeNode) -> None:
        self._node = node
        self.answers: dict[str, ExecResult] = {}
        self.requests: list[ExecRequest] = []
        self.streams: list[FakeStream] = []

    def _answer(self, process: Mapping[str, object]) -> tuple[str, ExecResult]:
        arguments = process.get("args")
        words = cast("Sequence[object]", arguments) if isinstance(arguments, list | tuple) else ()
        first = str(words[0]) if words else ""
        return first, self.answers.get(first, ExecResult(stdout=b"", stderr=b"", exit_code=0))

    async def open(self, runtime: OciRuntime, request: ExecRequest) -> ExecStream:
        del runtime
        await self._node.at("exec.open", request.container_id)
        self.requests.append(request)
        _, result = self._answer(request.process)
        output = [(n, data) for n, data in ((2, result.stdout), (3, result.stderr)) if data]
        stream = FakeStream(output, result.exit_code)
        self.streams.append(stream)
        return stream

    async def sweep(self, runtime: OciRuntime) -> None:
        await self._node.at("exec.sweep", str(runtime.root))

    async def sync(self, runtime: OciRuntime, request: ExecRequest, timeout_s: float) -> ExecResult:
        del runtime
        await self._node.at("exec.sync", request.container_id)
        self.requests.append(request)
        first, result = self._answer(request.process)
        if first == "hang":
            raise DeadlineExceededError(f"command did not finish within {timeout_s:g} s")
        return result


class FakePortForward:
    """``PortForward``: each connection's other end is in ``peers``."""

    def __init__(self, node: FakeNode) -> None:
        self._node = node
        self.ports: set[int] = set()
        self.peers: list[socket.socket] = []

    async def connect(
        self, netns: Path | None, port: int
    ) -> tuple[asyncio.StreamReader, asyncio.StreamWriter]:
        await self._node.at("portforward.connect", f"{netns}:{port}")
        if port not in self.ports:
            raise HostError(f"cannot connect to port {port} in the pod (connection refused)")
        ours, theirs = socket.socketpair()
        ours.setblocking(False)
        theirs.setblocking(False)
        self.peers.append(theirs)
        return await asyncio.open_connection(sock=ours)
