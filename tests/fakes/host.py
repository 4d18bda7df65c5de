"""Fakes of what ``host`` does with the kernel: namespaces, first processes, mounts, cgroups."""

from __future__ import annotations

import json
import shutil
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from signal import SIGKILL
from typing import Any

from noderuntime.errors import HostError, NotFoundError
from noderuntime.host.pids import ProcessIdentity
from noderuntime.host.ports import (
    CgroupDriver,
    CgroupStats,
    InitRequest,
    MountFeatures,
    NamespaceRequest,
    OciRuntime,
    Owners,
)
from noderuntime.host.readings import CgroupMetrics
from tests.fakes.world import ALIVE, World


class FakeNamespaces:
    """Pins are names in the world."""

    def __init__(self, world: World) -> None:
        self._world = world

    async def prepare(self, root: Path) -> None:
        await self._world.call("namespaces.prepare")

    async def create(self, directory: Path, request: NamespaceRequest) -> None:
        await self._world.call("namespaces.create")
        self._world.hostnames.append(request.hostname)
        for name in ("net", "ipc", "uts", "pid", "user"):
            if getattr(request, name if name != "net" else "network"):
                self._world.pins.add(str(directory / name))
        if request.pid and request.init is None:
            raise HostError("a PID namespace needs a first process")

    async def remove(self, directory: Path) -> None:
        await self._world.call("namespaces.remove")
        self._world.pins = {p for p in self._world.pins if not p.startswith(str(directory))}

    async def pin_pid(self, pid: int, member_of: str, target: Path) -> None:
        await self._world.call("namespaces.pin_pid")
        self._world.mounts.add(str(target))


class FakeInits:
    """First processes are containers of the world without a monitor."""

    def __init__(self, world: World) -> None:
        self._world = world

    async def start(self, runtime: OciRuntime, request: InitRequest) -> ProcessIdentity:
        await self._world.call("inits.start")
        request.directory.mkdir()
        (request.directory / "config.json").write_text(json.dumps(request.config))
        self._world.inits[request.directory] = request.sandbox_id
        self._world.processes[request.sandbox_id] = "running"
        self._world.cgroups.update(cgroups_of(request.config))
        return ProcessIdentity(pid=4_000_001, start_ticks=1)

    async def find(self, directory: Path) -> ProcessIdentity | None:
        name = self._world.inits.get(directory, "")
        is_there = self._world.processes.get(name) == "running"
        return ProcessIdentity(pid=4_000_001, start_ticks=1) if is_there else None

    async def remove(self, runtime: OciRuntime, sandbox_id: str, directory: Path) -> None:
        await self._world.call("inits.remove")
        self._world.processes.pop(sandbox_id, None)
        self._world.inits.pop(directory, None)
        shutil.rmtree(directory, ignore_errors=True)


class FakeMounts:
    """Mounts are names in the world; a folder below the target is made, as the real one has it."""

    def __init__(self, world: World) -> None:
        self._world = world

    def features(self) -> MountFeatures:
        return MountFeatures(recursive_readonly=True, idmapped=self._world.user_namespaces)

    async def tmpfs(self, target: Path, *, size_bytes: int, mode: int) -> None:
        await self._world.call("mounts.tmpfs")
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
        await self._world.call("mounts.overlay")
        if not 1 <= len(lowers) <= 127:
            raise HostError(f"an overlay takes 1 to 127 layers and was given {len(lowers)}")
        self._world.contexts[str(target)] = context
        self._world.mount(target)

    async def clone(
        self, source: Path, target: Path, userns: Path | None, *, peer: bool = False
    ) -> tuple[Path, ...]:
        await self._world.call("mounts.clone")
        below = [p for p in map(Path, self._world.mounts) if source in p.parents]
        again = tuple(target / path.relative_to(source) for path in below)
        self._world.mounts.update(map(str, (target, *again)))
        return again

    async def set_bindable(self, targets: Sequence[Path], *, bindable: bool) -> None:
        await self._world.call("mounts.set_bindable")
        self._world.sealed = set() if bindable else set(map(str, targets))

    async def require_own(self, pid: int, declared: Iterable[str]) -> None:
        await self._world.call("mounts.require_own")

    async def leave_out(self, pid: int, folders: Sequence[Path]) -> None:
        await self._world.call("mounts.leave_out")
        self._world.left_out[pid] = tuple(map(str, folders))

    async def unmount(self, target: Path) -> None:
        await self._world.call("mounts.unmount")
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
        await self._world.call("cgroups.set_oom_score")
        self._world.oom_scores[oci_path] = (before, score)

    async def oom_kills(self, oci_path: str) -> int:
        return self._world.oom_kills if oci_path in self._world.cgroups else 0

    async def lift_cpu_quota(self, oci_path: str) -> None:
        await self._world.call("cgroups.lift_cpu_quota")

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
        await self._world.call("cgroups.kill")
        container_id = oci_path.rpartition("/")[2]
        is_alive = self._world.processes.get(container_id) in ALIVE
        if is_alive and SIGKILL not in self._world.ignored_signals:
            self._world.end(container_id, 128 + SIGKILL)

    async def metrics(self, oci_path: str) -> CgroupMetrics:
        if oci_path not in self._world.cgroups:
            raise NotFoundError(f"cgroup {oci_path} is not there")
        return CgroupMetrics(id=oci_path, threads=1, oom_kills=self._world.oom_kills)

    async def pod_metrics(self, parent: str) -> CgroupMetrics:
        return CgroupMetrics(id=parent, threads=2)

    async def remove(self, oci_path: str) -> None:
        await self._world.call("cgroups.remove")
        self._world.cgroups.discard(oci_path)


def cgroups_of(config: Mapping[str, Any]) -> tuple[str, ...]:
    """Return the cgroup that the OCI runtime makes for a bundle, where it is told which."""
    path = config.get("linux", {}).get("cgroupsPath", "")
    return (str(path),) if path else ()
