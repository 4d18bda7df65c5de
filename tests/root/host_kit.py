"""What the root tests of the host part share: bundles with busybox, and a census of the machine."""

from __future__ import annotations

import asyncio
import json
import os
import shutil
import tempfile
import time
import uuid
from collections.abc import AsyncIterator, Awaitable, Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import TypeVar

from noderuntime.host import mountinfo, pids
from noderuntime.host.cgroups import KernelCgroups, hierarchies
from noderuntime.host.exec import RuntimeExec
from noderuntime.host.monitor import Conmon
from noderuntime.host.mounts import KernelMounts
from noderuntime.host.netns import KernelNamespaces
from noderuntime.host.oci_runtime import OciCli
from noderuntime.host.ports import CgroupDriver, Exit, MonitorRequest

BUSYBOX = Path("/bin/busybox")
# crun, unless asked for another: OCI_RUNTIME=/usr/sbin/runc pytest tests/root
RUNTIME = Path(os.environ.get("OCI_RUNTIME", "/usr/bin/crun"))
CONMON = Path("/usr/bin/conmon")
T = TypeVar("T")
CAPABILITIES = ("CAP_KILL", "CAP_SETUID", "CAP_SETGID", "CAP_CHOWN")


def make_rootfs(path: Path) -> Path:
    """A root with busybox under every name that it has."""
    for name in ("bin", "proc", "dev", "tmp", "etc", "sys"):
        (path / name).mkdir(parents=True, exist_ok=True)
    shutil.copy2(BUSYBOX, path / "bin" / "busybox")
    for name in ("sh", "sleep", "seq", "cat", "stty", "echo", "printf", "true"):
        (path / "bin" / name).symlink_to("busybox")
    return path


@dataclass(slots=True)
class Kit:
    """One node on this machine: everything of it is below ``root`` and the cgroup ``parent``."""

    root: Path
    parent: str
    runtime: OciCli
    monitor: Conmon
    exec: RuntimeExec = field(default_factory=RuntimeExec)
    namespaces: KernelNamespaces = field(default_factory=KernelNamespaces)
    mounts: KernelMounts = field(default_factory=KernelMounts)
    cgroups: KernelCgroups = field(
        default_factory=lambda: KernelCgroups(driver=CgroupDriver.CGROUPFS)
    )
    containers: list[str] = field(default_factory=list[str])

    def bundle(
        self, *args: str, terminal: bool = False, changes: Mapping[str, object] | None = None
    ) -> MonitorRequest:
        """Make a bundle and return the request for it; ``changes`` go into linux.resources."""
        container_id = uuid.uuid4().hex + uuid.uuid4().hex
        bundle = self.root / "containers" / container_id
        bundle.mkdir(parents=True)
        make_rootfs(bundle / "rootfs")
        config = oci_config(args, self.cgroups.oci_path(self.parent, container_id), terminal)
        if changes:
            linux = config["linux"]
            assert isinstance(linux, dict)
            linux["resources"] = dict(changes)
        (bundle / "config.json").write_text(json.dumps(config))
        self.containers.append(container_id)
        return MonitorRequest(
            container_id=container_id,
            bundle=bundle,
            log_path=self.root / "logs" / f"{container_id}.log",
            terminal=terminal,
            stdin=False,
            stdin_once=False,
        )

    def process(self, *args: str) -> dict[str, object]:
        """An OCI process for exec."""
        return oci_process(args, terminal=False)

    async def run(self, request: MonitorRequest) -> int:
        """Create and start."""
        pid = await self.monitor.create(self.runtime, request)
        await self.runtime.start(request.container_id)
        return pid

    async def wait_exit(self, container_id: str) -> Exit:
        """Wait for the monitor's word."""

        async def ended() -> Exit | None:
            return await self.monitor.exit_of(container_id)

        return await eventually(ended)

    async def destroy(self) -> None:
        """Remove everything, as a removal would."""
        for container_id in self.containers:
            await self.runtime.delete(container_id)
            await self.monitor.remove(container_id)
            await self.cgroups.remove(self.cgroups.oci_path(self.parent, container_id))
        for mount in set(hierarchies().values()):
            path = mount / self.parent.lstrip("/")
            if path.is_dir():
                path.rmdir()
        await self.mounts.unmount(self.root)

    def leftovers(self) -> list[str]:
        """Everything on this machine that still belongs to this kit."""
        mounts = [str(m.target) for m in mountinfo.mounts() if m.target.is_relative_to(self.root)]
        processes = [
            " ".join(pids.command_line(stat.pid))
            for stat in pids.all_stats()
            if any(str(self.root) in part for part in pids.command_line(stat.pid))
        ]
        cgroups = [
            str(mount / self.parent.lstrip("/"))
            for mount in set(hierarchies().values())
            if (mount / self.parent.lstrip("/")).exists()
        ]
        return [*mounts, *processes, *cgroups]


async def eventually(check: Callable[[], Awaitable[T | None]], timeout_s: float = 30.0) -> T:
    """Ask until the answer is not None."""
    deadline = time.monotonic() + timeout_s
    while time.monotonic() < deadline:
        if (value := await check()) is not None:
            return value
        await asyncio.sleep(0.01)
    raise AssertionError(f"not within {timeout_s} s")


def descriptors() -> int:
    """How many descriptors this process has open."""
    return len(list(Path("/proc/self/fd").iterdir()))


async def kit_in(name: str, below: str = "") -> AsyncIterator[Kit]:
    """Give a kit, ``below`` its folder, and check at the end that nothing of it is left."""
    top = Path(tempfile.mkdtemp(prefix=f"nr-host-{name}-"))
    root = top / below
    root.mkdir(exist_ok=True)
    kit = Kit(
        root=root,
        parent=f"/nr-host-{uuid.uuid4().hex[:8]}",
        runtime=OciCli(RUNTIME, root / "oci"),
        monitor=Conmon(CONMON, root / "containers", root / "exits"),
    )
    try:
        await kit.namespaces.prepare(root)
        before = descriptors()
        yield kit
        await kit.destroy()
        assert kit.leftovers() == []
        assert descriptors() <= before + 1
    finally:
        shutil.rmtree(top, ignore_errors=True)


def oci_process(args: tuple[str, ...], *, terminal: bool) -> dict[str, object]:
    return {
        "terminal": terminal,
        "user": {"uid": 0, "gid": 0},
        "args": list(args),
        "env": ["PATH=/bin", "TERM=dumb"],
        "cwd": "/",
        "capabilities": {
            kind: list(CAPABILITIES) for kind in ("bounding", "effective", "permitted")
        },
        "oomScoreAdj": -997,
    }


def oci_config(args: tuple[str, ...], cgroup: str, terminal: bool) -> dict[str, object]:
    return {
        "ociVersion": "1.0.2",
        "process": oci_process(args, terminal=terminal),
        "root": {"path": "rootfs"},
        "mounts": [
            {"destination": "/proc", "type": "proc", "source": "proc"},
            {
                "destination": "/dev",
                "type": "tmpfs",
                "source": "tmpfs",
                "options": ["nosuid", "mode=755"],
            },
            {
                "destination": "/dev/pts",
                "type": "devpts",
                "source": "devpts",
                "options": ["nosuid", "noexec", "newinstance", "ptmxmode=0666", "mode=0620"],
            },
        ],
        "linux": {
            "cgroupsPath": cgroup,
            "namespaces": [{"type": kind} for kind in ("pid", "mount", "ipc", "uts", "network")],
            "resources": {},
        },
    }
