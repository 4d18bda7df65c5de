"""Node: everything that the verbs share, put together once. No global, no singleton."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Awaitable, Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING
from weakref import WeakValueDictionary

from noderuntime.engine.decisions import Told
from noderuntime.engine.selinux import Levels
from noderuntime.policy.features import HostFeatures

if TYPE_CHECKING:
    from noderuntime.api.config import Config
    from noderuntime.engine.apparmor import Profiles
    from noderuntime.engine.artifacts import SeccompArtifacts
    from noderuntime.engine.disk import Disk
    from noderuntime.engine.filters import Filters
    from noderuntime.engine.handlers import HandlerTable
    from noderuntime.engine.jobs import Jobs
    from noderuntime.engine.journal import Journal
    from noderuntime.engine.state import ContainerId, SandboxId
    from noderuntime.engine.store import Store
    from noderuntime.host.lsm import AppArmor, Selinux
    from noderuntime.host.ports import (
        Cgroups,
        Exec,
        Inits,
        Monitor,
        Mounts,
        Namespaces,
        OciRuntime,
        PortForward,
    )
    from noderuntime.host.seccomp import SeccompCompiler
    from noderuntime.images.ports import Images
    from noderuntime.network.ports import Network
    from noderuntime.telemetry.decisions import DecisionLog

Faults = Callable[[str, str], Awaitable[None]]
"""Called with (verb, "step:before" or "step:after"); may raise, for tests."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Parts:
    """The parts below the engine, real or fakes. ``runtimes`` gives the runtime of a program."""

    config: Config
    namespaces: Namespaces
    inits: Inits
    mounts: Mounts
    cgroups: Cgroups
    runtimes: Callable[[Path], OciRuntime]
    monitor: Monitor
    exec: Exec
    port_forward: PortForward
    network: Network
    images: Images
    seccomp: SeccompCompiler
    apparmor: AppArmor
    selinux: Selinux


def features_of(parts: Parts) -> HostFeatures:
    """Return what the node can do of what a profile may demand; cheap."""
    return HostFeatures(
        apparmor=parts.apparmor.is_enabled(),
        apparmor_parser=parts.apparmor.can_load(),
        selinux=parts.selinux.is_enabled(),
        user_namespaces=parts.mounts.features().idmapped,
    )


class Paths:
    """Where things of a sandbox and of a container are: a function of the ID, in ``run_dir``."""

    def __init__(self, run_dir: Path) -> None:
        """Keep the root; nothing is made."""
        self.run_dir = run_dir
        self.sandboxes = run_dir / "sandboxes"
        self.containers = run_dir / "containers"
        self.boot_id = run_dir / "boot_id"

    def sandbox(self, sandbox_id: SandboxId) -> Path:
        """Return the sandbox's folder."""
        return self.sandboxes / sandbox_id

    def namespaces(self, sandbox_id: SandboxId) -> Path:
        """Return the folder of the namespace pins net, ipc, uts and pid."""
        return self.sandbox(sandbox_id) / "ns"

    def init(self, sandbox_id: SandboxId) -> Path:
        """Return the bundle of the sandbox's first process, for Pods that need one."""
        return self.sandbox(sandbox_id) / "init"

    def shm(self, sandbox_id: SandboxId) -> Path:
        """Return the mount point of the Pod's /dev/shm."""
        return self.sandbox(sandbox_id) / "shm"

    def resolv_conf(self, sandbox_id: SandboxId) -> Path:
        """Return the Pod's resolv.conf."""
        return self.sandbox(sandbox_id) / "resolv.conf"

    def hostname(self, sandbox_id: SandboxId) -> Path:
        """Return the Pod's /etc/hostname."""
        return self.sandbox(sandbox_id) / "hostname"

    def bundle(self, container_id: ContainerId) -> Path:
        """Return the container's OCI bundle."""
        return self.containers / container_id

    def target_pid(self, container_id: ContainerId) -> Path:
        """Return the pin of the PID namespace that the container joins (mode TARGET)."""
        return self.bundle(container_id) / "target-pid"

    def volume(self, container_id: ContainerId, number: int) -> Path:
        """Return where a volume is mounted a second time, for a user namespace."""
        return self.bundle(container_id) / "mapped" / str(number)

    def rootfs(self, container_id: ContainerId) -> Path:
        """Return the mount point of the container's root."""
        return self.bundle(container_id) / "rootfs"

    def image_volumes(self, container_id: ContainerId) -> Path:
        """Return the folder of the container's mounted images."""
        return self.bundle(container_id) / "volumes"

    def spec(self, container_id: ContainerId) -> Path:
        """Return the container's config.json."""
        return self.bundle(container_id) / "config.json"


class Locks:
    """One lock an object, there as long as someone holds it or waits for it."""

    def __init__(self) -> None:
        """Start with none."""
        self._locks: WeakValueDictionary[str, asyncio.Lock] = WeakValueDictionary()

    def of(self, object_id: str) -> asyncio.Lock:
        """Return the object's lock. Holders are bounded by their steps' deadlines."""
        lock = self._locks.get(object_id)
        if lock is None:
            lock = self._locks[object_id] = asyncio.Lock()
        return lock


class Endings:
    """Wakes who waits for the end of a container."""

    def __init__(self) -> None:
        """Start with nobody waiting."""
        self._events: WeakValueDictionary[str, asyncio.Event] = WeakValueDictionary()

    async def wait(self, container_id: str, timeout_s: float) -> None:
        """Return when the container ended or ``timeout_s`` passed: the caller looks again."""
        event = self._events.get(container_id)
        if event is None:
            event = self._events[container_id] = asyncio.Event()
        try:
            async with asyncio.timeout(timeout_s):
                await event.wait()
        except TimeoutError:
            return

    def wake(self, container_id: str) -> None:
        """Wake all who wait now."""
        event = self._events.pop(container_id, None)
        if event is not None:
            event.set()


@dataclass(frozen=True, slots=True, kw_only=True)
class Node:
    """One node. Times of records come from ``now_ns``."""

    parts: Parts
    paths: Paths
    disk: Disk
    store: Store
    journal: Journal
    jobs: Jobs
    handlers: HandlerTable
    filters: Filters
    artifacts: SeccompArtifacts
    decisions: DecisionLog
    apparmor: Profiles
    faults: Faults | None = None
    told: Told = field(default_factory=Told)
    locks: Locks = field(default_factory=Locks)
    levels: Levels = field(default_factory=Levels)
    endings: Endings = field(default_factory=Endings)
    stop_deadlines: dict[str, float] = field(default_factory=dict[str, float])  # loop time, by ID
    now_ns: Callable[[], int] = time.time_ns

    def runtime(self, program: str) -> OciRuntime:
        """Return the OCI runtime of a sandbox or container."""
        return self.parts.runtimes(Path(program))
