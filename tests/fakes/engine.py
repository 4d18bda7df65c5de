"""A node that is only remembered: what the parts below the engine would make, in one ``World``.

The world outlives an engine, as a kernel does, so a crash is a new engine on the same world.
"""

from __future__ import annotations

import asyncio
import json
import shutil
from collections.abc import AsyncIterator, Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from signal import SIGKILL, Signals

from noderuntime.api.config import Config, HandlerConfig
from noderuntime.engine.engine import Engine
from noderuntime.engine.node import Faults, Parts
from noderuntime.errors import HostError, ImageError, NotFoundError
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
from noderuntime.images.ports import Credentials, FsUsage, Image, Snapshot
from noderuntime.network.ports import Attachment
from noderuntime.policy.model import (
    ContainerConfig,
    ContainerSecurity,
    ImageConfig,
    PodIdentity,
    Resources,
    SandboxConfig,
)
from tests.fakes.lsm import FakeAppArmor, FakeSelinux

IMAGE_ID = "sha256:" + "ab" * 32


@dataclass
class World:
    """What is there."""

    root: Path
    pins: set[str] = field(default_factory=set[str])
    mounts: set[str] = field(default_factory=set[str])
    cgroups: set[str] = field(default_factory=set[str])
    attachments: set[str] = field(default_factory=set[str])
    networks: list[Path | None] = field(default_factory=list[Path | None])  # a call each
    snapshots: set[str] = field(default_factory=set[str])
    processes: dict[str, str] = field(default_factory=dict[str, str])  # ID -> created, running
    monitors: set[str] = field(default_factory=set[str])
    exits: dict[str, Exit] = field(default_factory=dict[str, Exit])
    sealed: set[str] = field(default_factory=set[str])
    left_out: dict[int, tuple[str, ...]] = field(default_factory=dict[int, tuple[str, ...]])
    counts_swap: bool = True
    has_swap: bool = True
    oom_scores: dict[str, tuple[int, int]] = field(default_factory=dict[str, tuple[int, int]])
    lost_exits: dict[str, Exit] = field(default_factory=dict[str, Exit])  # what the kernel knows
    ended: list[asyncio.Queue[str]] = field(default_factory=list[asyncio.Queue[str]])
    images: dict[str, Image] = field(default_factory=dict[str, Image])
    calls: list[str] = field(default_factory=list[str])
    ignored_signals: set[int] = field(default_factory=set[int])
    failing: dict[str, Exception] = field(default_factory=dict[str, Exception])  # call -> error
    hostnames: list[str] = field(default_factory=list[str])
    is_unified: bool = True
    controllers: set[str] = field(default_factory=lambda: {"cpu", "memory", "hugetlb"})
    oom_kills: int = 0
    updates: list[Resources] = field(default_factory=list[Resources])
    user_namespaces: bool = True
    apparmor: FakeAppArmor = field(default_factory=FakeAppArmor)
    selinux: FakeSelinux = field(default_factory=FakeSelinux)
    contexts: dict[str, str] = field(default_factory=dict[str, str])  # of overlays, by target
    execs: list[ExecRequest] = field(default_factory=list[ExecRequest])
    tmpfs: dict[str, int] = field(default_factory=dict[str, int])  # target -> bytes

    def call(self, name: str) -> None:
        """Record a call, and fail it where a test says so."""
        self.calls.append(name)
        if name in self.failing:
            raise self.failing[name]

    def end(self, container_id: str, code: int, *, oom: bool = False) -> None:
        """A container's process ends, its monitor says so and ends."""
        self.processes.pop(container_id, None)
        self.monitors.discard(container_id)
        self.exits[container_id] = Exit(code=code, finished_at_ns=42, oom_killed=oom)
        for queue in self.ended:
            queue.put_nowait(container_id)

    def mount(self, target: Path) -> None:
        """Something is mounted on ``target``, which is made if missing."""
        target.mkdir(exist_ok=True)
        self.mounts.add(str(target))

    def census(self) -> dict[str, object]:
        """Everything that could be left behind, files too."""
        return {
            "pins": sorted(self.pins),
            "mounts": sorted(self.mounts),
            "cgroups": sorted(self.cgroups),
            "attachments": sorted(self.attachments),
            "snapshots": sorted(self.snapshots),
            "processes": dict(self.processes),
            "monitors": sorted(self.monitors),
            "files": sorted(
                str(path.relative_to(self.root))
                for path in self.root.rglob("*")
                if path.is_file() and path.name != "boot_id"
            ),
            "sandboxes": sorted(path.name for path in self.root.glob("run/sandboxes/*")),
            "containers": sorted(path.name for path in self.root.glob("run/containers/*")),
        }


class FakeNamespaces:
    """Pins are names in the world."""

    def __init__(self, world: World) -> None:
        self._world = world

    async def prepare(self, root: Path) -> None:
        self._world.call("namespaces.prepare")

    async def create(self, directory: Path, request: NamespaceRequest) -> None:
        self._world.call("namespaces.create")
        self._world.hostnames.append(request.hostname)
        for name in ("net", "ipc", "uts", "pid", "user"):
            if getattr(request, name if name != "net" else "network"):
                self._world.pins.add(str(directory / name))
        if request.pid and request.init is None:
            raise HostError("a PID namespace needs a first process")

    async def remove(self, directory: Path) -> None:
        self._world.call("namespaces.remove")
        self._world.pins = {p for p in self._world.pins if not p.startswith(str(directory))}

    async def pin_pid(self, pid: int, member_of: str, target: Path) -> None:
        self._world.call("namespaces.pin_pid")
        self._world.mounts.add(str(target))


class FakeInits:
    """First processes are containers of the world without a monitor."""

    def __init__(self, world: World) -> None:
        self._world = world

    async def start(self, runtime: OciRuntime, request: InitRequest) -> ProcessIdentity:
        self._world.call("inits.start")
        request.directory.mkdir()
        (request.directory / "config.json").write_text(json.dumps(request.config))
        self._world.processes[request.sandbox_id] = "running"
        self._world.cgroups.add(f"/fake/{request.sandbox_id}")
        return ProcessIdentity(pid=4_000_001, start_ticks=1)

    async def find(self, directory: Path) -> ProcessIdentity | None:
        is_there = directory.parent.name in self._world.processes
        return ProcessIdentity(pid=4_000_001, start_ticks=1) if is_there else None

    async def remove(self, runtime: OciRuntime, sandbox_id: str, directory: Path) -> None:
        self._world.call("inits.remove")
        self._world.processes.pop(sandbox_id, None)
        shutil.rmtree(directory, ignore_errors=True)


class FakeMounts:
    """Mounts are names in the world; a folder below the target is made, as the real one has it."""

    def __init__(self, world: World) -> None:
        self._world = world

    def features(self) -> MountFeatures:
        return MountFeatures(recursive_readonly=True, idmapped=self._world.user_namespaces)

    async def tmpfs(self, target: Path, *, size_bytes: int, mode: int) -> None:
        self._world.call("mounts.tmpfs")
        self._world.tmpfs[str(target)] = size_bytes
        self._world.mount(target)

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
        self._world.call("mounts.overlay")
        self._world.contexts[str(target)] = context
        self._world.mount(target)

    async def clone(
        self, source: Path, target: Path, userns: Path | None, *, peer: bool = False
    ) -> tuple[Path, ...]:
        self._world.call("mounts.clone")
        self._world.mounts.add(str(target))
        return (target / "below",)

    async def set_bindable(self, targets: Sequence[Path], *, bindable: bool) -> None:
        self._world.call("mounts.set_bindable")
        self._world.sealed = set() if bindable else set(map(str, targets))

    async def leave_out(self, pid: int, folders: Sequence[Path]) -> None:
        self._world.call("mounts.leave_out")
        self._world.left_out[pid] = tuple(map(str, folders))

    async def unmount(self, target: Path) -> None:
        self._world.call("mounts.unmount")
        self._world.mounts = {m for m in self._world.mounts if not Path(m).is_relative_to(target)}


class FakeCgroups:
    """Cgroups are names in the world."""

    def __init__(self, world: World) -> None:
        self._world = world

    def driver(self) -> CgroupDriver:
        return CgroupDriver.CGROUPFS

    def is_unified(self) -> bool:
        return self._world.is_unified

    def has_controller(self, name: str) -> bool:
        return name in self._world.controllers

    def can_limit_swap(self) -> bool:
        return self._world.counts_swap

    def has_swap(self) -> bool:
        return self._world.has_swap

    async def set_oom_score(self, oci_path: str, before: int, score: int) -> None:
        self._world.call("cgroups.set_oom_score")
        self._world.oom_scores[oci_path] = (before, score)

    async def lift_cpu_quota(self, oci_path: str) -> None:
        self._world.call("cgroups.lift_cpu_quota")

    async def count_oom_kills(self, oci_path: str) -> None:
        pass

    def oci_path(self, parent: str, container_id: str) -> str:
        return f"{parent or '/fake'}/{container_id}"

    async def stats(self, oci_path: str) -> CgroupStats:
        if oci_path not in self._world.cgroups:
            raise NotFoundError(f"cgroup {oci_path} is not there")
        return CgroupStats(timestamp_ns=1, pids=1)

    async def pod_stats(self, parent: str) -> CgroupStats:
        return CgroupStats(timestamp_ns=1, pids=2)

    async def kill(self, oci_path: str) -> None:
        self._world.call("cgroups.kill")
        container_id = oci_path.rpartition("/")[2]
        if container_id in self._world.processes and SIGKILL not in self._world.ignored_signals:
            self._world.end(container_id, 128 + SIGKILL)

    async def metrics(self, oci_path: str) -> CgroupMetrics:
        if oci_path not in self._world.cgroups:
            raise NotFoundError(f"cgroup {oci_path} is not there")
        return CgroupMetrics(id=oci_path, threads=1, oom_kills=self._world.oom_kills)

    async def oom_kills(self, oci_path: str) -> int:
        return self._world.oom_kills if oci_path in self._world.cgroups else 0

    async def pod_metrics(self, parent: str) -> CgroupMetrics:
        return CgroupMetrics(id=parent, threads=2)

    async def remove(self, oci_path: str) -> None:
        self._world.call("cgroups.remove")
        self._world.cgroups.discard(oci_path)


class FakeRuntime:
    """Processes are states in the world."""

    def __init__(self, world: World, binary: Path) -> None:
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
        self._world.call("runtime.start")
        if self._world.processes.get(container_id) != "created":
            raise HostError(f"{container_id} is not created")
        self._world.processes[container_id] = "running"

    async def kill(self, container_id: str, signal: int) -> None:
        self._world.call(f"runtime.kill {Signals(signal).name}")
        is_ignored = signal in self._world.ignored_signals
        if container_id in self._world.processes and not is_ignored:
            self._world.end(container_id, 128 + signal)

    async def forget(self, container_id: str, bundle: Path) -> None:
        await self.delete(container_id)

    async def delete(self, container_id: str) -> None:
        self._world.call("runtime.delete")
        if container_id in self._world.processes:
            self._world.end(container_id, 137)

    async def state(self, container_id: str) -> str | None:
        return self._world.processes.get(container_id)

    async def update(self, container_id: str, resources: Resources) -> None:
        self._world.call("runtime.update")
        self._world.updates.append(resources)


class FakeMonitor:
    """Monitors and exits are in the world."""

    def __init__(self, world: World) -> None:
        self._world = world

    async def create(self, runtime: OciRuntime, request: MonitorRequest) -> int:
        self._world.call("monitor.create")
        if not (request.bundle / "config.json").is_file():
            raise HostError("there is no config.json")
        self._world.exits.pop(request.container_id, None)
        self._world.processes[request.container_id] = "created"
        self._world.monitors.add(request.container_id)
        self._world.cgroups.add(f"/fake/{request.container_id}")
        return 4_000_000

    async def exit_of(self, container_id: str) -> Exit | None:
        return self._world.exits.get(container_id)

    async def exits(self) -> AsyncIterator[str]:
        queue: asyncio.Queue[str] = asyncio.Queue()
        self._world.ended.append(queue)
        while True:
            yield await queue.get()

    async def is_alive(self, container_id: str) -> bool:
        return container_id in self._world.monitors

    async def lost_exit_of(self, container_id: str) -> Exit | None:
        return self._world.lost_exits.get(container_id)

    async def end_log(self, container_id: str, sentence: str) -> None:
        self._world.call("monitor.end_log")
        assert container_id, sentence

    async def signal(self, container_id: str, number: int) -> bool:
        del container_id, number
        return False  # the OCI runtime does it

    async def remove(self, container_id: str) -> None:
        self._world.call("monitor.remove")
        self._world.monitors.discard(container_id)
        self._world.exits.pop(container_id, None)

    async def reopen_log(self, container_id: str) -> None:
        self._world.call("monitor.reopen_log")

    async def attach(self, container_id: str) -> AttachStream:
        raise HostError("nothing to attach to in a fake")


class FakeExec:
    """Says what it was asked."""

    def __init__(self, world: World) -> None:
        self._world = world

    async def open(self, runtime: OciRuntime, request: ExecRequest) -> ExecStream:
        raise HostError("no streams in a fake")

    async def sweep(self, runtime: OciRuntime) -> None:
        self._world.call("exec.sweep")

    async def sync(self, runtime: OciRuntime, request: ExecRequest, timeout_s: float) -> ExecResult:
        self._world.call("exec.sync")
        self._world.execs.append(request)
        args = request.process["args"]
        return ExecResult(stdout=repr(args).encode(), stderr=b"", exit_code=0)


class FakePortForward:
    """Refuses."""

    async def connect(
        self, netns: Path | None, port: int
    ) -> tuple[asyncio.StreamReader, asyncio.StreamWriter]:
        raise HostError(f"nothing listens on {port} in {netns}")


class FakeNetwork:
    """Attachments are names in the world."""

    def __init__(self, world: World) -> None:
        self._world = world

    async def attach(self, attachment: Attachment) -> tuple[str, ...]:
        self._world.call("network.attach")
        self._world.attachments.add(attachment.sandbox_id)
        self._world.networks.append(attachment.cni_conf_dir)
        return ("10.0.0.7",)

    async def detach(self, attachment: Attachment) -> None:
        self._world.call("network.detach")
        self._world.attachments.discard(attachment.sandbox_id)
        self._world.networks.append(attachment.cni_conf_dir)

    def attached(self) -> tuple[str, ...]:
        return tuple(sorted(self._world.attachments))

    async def collect(self, sandbox_ids: Iterable[str]) -> None:
        self._world.call("network.collect")
        self._world.attachments.intersection_update(sandbox_ids)

    async def check_status(self) -> None:
        self._world.call("network.check_status")

    def served_by(self) -> str:
        return "a fake network"

    def not_ready_because(self) -> str:
        return ""


class FakeImages:
    """One image is there from the start; writable layers are names in the world."""

    def __init__(self, world: World) -> None:
        self._world = world

    async def recover(self) -> None:
        self._world.call("images.recover")

    async def pull(self, reference: str, credentials: Credentials | None = None) -> Image:
        self._world.call("images.pull")
        if "missing" in reference:
            raise ImageError(f"{reference} is not there")
        return self._world.images[IMAGE_ID]

    def find(self, reference: str) -> Image | None:
        return next(
            (
                image
                for image in self._world.images.values()
                if reference in (image.id, *image.repo_tags, *image.repo_digests)
            ),
            None,
        )

    def list(self) -> tuple[Image, ...]:
        return tuple(self._world.images.values())

    async def remove(self, reference: str) -> None:
        image = self.find(reference)
        if image is None:
            raise NotFoundError(f"image {reference} is not there")
        del self._world.images[image.id]

    async def prepare(self, container_id: str, image: Image) -> Snapshot:
        self._world.call("images.prepare")
        self._world.snapshots.add(container_id)
        root = self._world.root / "images"
        return Snapshot(lowers=(root / "layer",), upper=root / "upper", work=root / "work")

    async def discard(self, container_id: str) -> None:
        self._world.call("images.discard")
        self._world.snapshots.discard(container_id)

    def containers(self) -> tuple[str, ...]:
        return tuple(sorted(self._world.snapshots))

    async def usage(self, container_id: str) -> FsUsage:
        return FsUsage(mountpoint=Path("/"), used_bytes=1, inodes_used=1, timestamp_ns=1)

    async def fs_usage(self) -> FsUsage:
        return FsUsage(mountpoint=Path("/"), used_bytes=2, inodes_used=2, timestamp_ns=1)


def new_world(root: Path) -> World:
    """Return a node with one image and nothing else."""
    world = World(root=root)
    world.images[IMAGE_ID] = Image(
        id=IMAGE_ID,
        repo_tags=("registry.example.com/app:1",),
        repo_digests=("registry.example.com/app@sha256:" + "cd" * 32,),
        size_bytes=1,
        config=ImageConfig(entrypoint=("/app",), stop_signal="SIGINT"),
        layers=(),
    )
    return world


def config_of(world: World, **changes: object) -> Config:
    """Return a configuration whose paths are all below the world's root."""
    settings: Mapping[str, object] = {
        "socket": world.root / "run" / "noderuntime.sock",
        "state_dir": world.root / "state",
        "run_dir": world.root / "run",
        "revision": world.root / "etc" / "current",
        "handlers": {"crun": HandlerConfig()},
        **changes,
    }
    return Config.model_validate(settings)


def new_engine(
    world: World, *, faults: Faults | None = None, boot_id: str = "boot-1", **settings: object
) -> Engine:
    """Return an engine on the world; a second one on the same world is the next process."""
    parts = Parts(
        config=config_of(world, **settings),
        namespaces=FakeNamespaces(world),
        inits=FakeInits(world),
        mounts=FakeMounts(world),
        cgroups=FakeCgroups(world),
        runtimes=lambda binary: FakeRuntime(world, binary),
        monitor=FakeMonitor(world),
        exec=FakeExec(world),
        port_forward=FakePortForward(),
        network=FakeNetwork(world),
        images=FakeImages(world),
        apparmor=world.apparmor,
        selinux=world.selinux,
    )
    return Engine(parts, faults=faults, boot_id=boot_id)


# What the kubelet sends for procMount: Default; without, it is Unmasked.
PROC_MOUNT_DEFAULT = ContainerSecurity(
    masked_paths=("/proc/kcore",), readonly_paths=("/proc/sys",), no_new_privs=True
)


def sandbox_config(attempt: int = 0, **changes: object) -> SandboxConfig:
    """Return what the kubelet asks for a plain Pod."""
    pod = PodIdentity(name="web", namespace="shop", uid="u-1", attempt=attempt)
    plain = SandboxConfig(pod=pod, hostname="web", log_directory="/nowhere/logs")
    return replace(plain, **changes)  # type: ignore[arg-type]  # checked by the constructor


def container_config(attempt: int = 0, **changes: object) -> ContainerConfig:
    """Return what the kubelet asks for a plain container."""
    plain = ContainerConfig(
        name="app", image="registry.example.com/app:1", attempt=attempt, security=PROC_MOUNT_DEFAULT
    )
    return replace(plain, **changes)  # type: ignore[arg-type]  # checked by the constructor
