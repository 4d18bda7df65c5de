"""Block I/O of a real container on a disk of its own: what it writes past the page cache is counted.

Who counts depends on the kernel: on v2 the io controller; on v1 the bfq scheduler, and the throttle
where it throttles (before Linux 6.10 or so, always).
"""

from __future__ import annotations

import os
import subprocess
from collections.abc import AsyncIterator, Iterator
from dataclasses import dataclass, replace
from pathlib import Path

import pytest

from noderuntime.engine.engine import Engine
from noderuntime.host.cgroups import UNIFIED, KernelCgroups, hierarchies
from noderuntime.policy.model import Mount
from tests.root.engine_kit import RealNode
from tests.root.engine_scene import engine_on, made_node
from tests.waiting import DEADLINE_S

MIB = 1 << 20
IS_V2 = set(hierarchies()) == {UNIFIED}
COUNTERS = ["io"] if IS_V2 else ["bfq", "throttle"]
PLENTY = 1 << 40  # bytes a second: a throttle that slows nothing down


@dataclass(frozen=True, slots=True)
class Disk:
    """A file system on a loop device."""

    point: Path
    device: str  # /dev/loopN
    number: str  # MAJOR:MINOR

    def scheduler(self, name: str) -> bool:
        """Choose the scheduler; False where this kernel does not have it."""
        file = Path(f"/sys/block/{Path(self.device).name}/queue/scheduler")
        if name not in file.read_text().replace("[", "").replace("]", "").split():
            return False
        file.write_text(name)
        return True


@pytest.fixture(scope="module")
def node(tmp_path_factory: pytest.TempPathFactory) -> Iterator[RealNode]:
    with made_node(tmp_path_factory.mktemp("nr-engine-blocks")) as real:
        yield real


@pytest.fixture
async def engine(node: RealNode) -> AsyncIterator[Engine]:
    async with engine_on(node) as engine:
        yield engine


@pytest.fixture
def disk(tmp_path: Path) -> Iterator[Disk]:
    image, point = tmp_path / "disk", tmp_path / "mounted"
    point.mkdir()
    if not Path("/dev/loop-control").exists():
        subprocess.run(("modprobe", "loop"), check=True)
    for argv in (
        ("truncate", "-s", "32M", image),
        ("mkfs.ext4", "-q", image),
        ("mount", "-o", "loop", image, point),
    ):
        subprocess.run(argv, check=True)
    try:
        point.chmod(0o777)
        number = point.stat().st_dev
        lines = Path("/proc/self/mountinfo").read_text().splitlines()
        device = next(line.split()[-2] for line in lines if line.split()[4] == str(point))
        yield Disk(point, device, f"{os.major(number)}:{os.minor(number)}")
    finally:
        subprocess.run(("umount", point), check=True)


def let_count(disk: Disk, counter: str, cgroup_path: str) -> str:
    """Let the kernel count; returns why it cannot, by the name of what it has not."""
    cgroups = KernelCgroups()
    controller = "io" if counter == "io" else "blkio"
    if not cgroups.has_controller(controller):
        return f"this kernel has no controller {controller}"
    if counter == "bfq" and not disk.scheduler("bfq"):
        return "this kernel has no scheduler bfq"
    if counter == "throttle":
        group = hierarchies()["blkio"] / cgroups.relative(cgroup_path)
        limit = group / "blkio.throttle.write_bps_device"
        if not limit.exists():
            return "this kernel's blkio has no throttle"
        limit.write_text(f"{disk.number} {PLENTY}")
    return ""


@pytest.mark.parametrize("counter", COUNTERS)
async def test_what_a_container_writes_to_a_disk_is_counted(
    node: RealNode, engine: Engine, disk: Disk, counter: str
) -> None:
    volume = Mount(container_path="/tmp", host_path=str(disk.point))
    sandbox_id = await engine.run_sandbox(node.sandbox(), "")
    config = replace(node.container(), mounts=(volume,))
    container_id = await engine.create_container(sandbox_id, config)
    await engine.start_container(container_id)
    missing = let_count(disk, counter, engine.container(container_id).cgroup_path)
    if missing:
        pytest.skip(missing)
    write = "busybox dd if=/dev/zero of=/tmp/x bs=1M count=8 oflag=direct conv=fsync"
    result = await engine.exec_sync(container_id, ("/bin/busybox", "sh", "-c", write), DEADLINE_S)
    assert result.exit_code == 0, result.stderr
    (pod,) = [each async for each in engine.pod_metrics()]
    (container,) = pod.containers
    (found,) = [each for each in container.cgroup.disks if each.device == disk.device]
    assert f"{found.major}:{found.minor}" == disk.number
    assert 8 * MIB <= found.written_bytes < 16 * MIB
    assert found.writes >= 1
    assert found.read_bytes < MIB
    if pod.cgroup is not None:  # the Pod's own is at least what its container's is
        assert sum(e.written_bytes for e in pod.cgroup.disks if e.device == disk.device) >= 8 * MIB
