"""cgroup v2 under systemd, with each OCI runtime: limits, their change, OOM, stats, what is left."""

from __future__ import annotations

import os
import signal
from collections.abc import AsyncIterator, Iterator
from pathlib import Path

import pytest

from e2e.kernels.inside.kit import (
    HANDLERS,
    ROOT,
    UNIT,
    Cri,
    Pod,
    read,
    run,
    served,
    systemctl,
    wait_for,
)
from noderuntime.cri.runtime_v1 import api_pb2 as pb

MIB = 1 << 20
LOOP = "trap 'exit 0' TERM; while :; do sleep 0.05; done"
LIMITS = pb.LinuxContainerResources(
    cpu_period=100_000,
    cpu_quota=50_000,
    cpu_shares=512,
    memory_limit_in_bytes=64 * MIB,
    memory_swap_limit_in_bytes=64 * MIB,
)
WANTED = {"cpu.max": "50000", "memory.max": str(64 * MIB), "memory.swap.max": "0"}
handlers = pytest.mark.parametrize("handler", HANDLERS)


@pytest.fixture(scope="module")
def image() -> Iterator[str]:
    with served() as name:
        yield name


@pytest.fixture
async def cri(image: str) -> AsyncIterator[Cri]:
    client = Cri(image)
    await client.wait_ready(20)
    await client.pull(image)
    yield client
    await client.remove_all()
    await client.close()
    assert run("systemctl", "list-units", "--plain", "--no-legend", "--all", "cri-*") == ""
    assert list(ROOT.rglob("cri-noderuntime-*")) == []


async def test_the_driver_is_systemd(cri: Cri) -> None:
    assert await cri.uses_systemd()


@handlers
async def test_limits_hold_where_systemd_leaves_them(cri: Cri, handler: str) -> None:
    pod = await cri.run(handler, LOOP, LIMITS)
    assert read(pod.limited, WANTED) == WANTED
    inside = (await cri.exec(pod, "cat /sys/fs/cgroup/memory.max; cat /proc/self/cgroup")).split()
    assert inside[0] == str(64 * MIB)
    systemctl("daemon-reload")
    assert read(pod.limited, WANTED) == WANTED
    # What nobody limits is not limited by systemd's defaults.
    assert (pod.scope / "pids.max").read_text() == "max\n"
    pids = {path.parent for path in pod.scope.rglob("cgroup.procs") if path.read_text()}
    assert pids == {pod.limited}


@handlers
async def test_limits_change_in_place(cri: Cri, handler: str) -> None:
    pod = await cri.run(handler, LOOP, LIMITS)
    before = (await cri.status(pod)).started_at
    new = pb.LinuxContainerResources(
        cpu_period=100_000,
        cpu_quota=20_000,
        memory_limit_in_bytes=48 * MIB,
        memory_swap_limit_in_bytes=48 * MIB,
    )
    await cri.update(pod, new)
    wanted = {"cpu.max": "20000", "memory.max": str(48 * MIB)}
    assert read(pod.limited, wanted) == wanted
    await cri.update(pod, pb.LinuxContainerResources(cpu_quota=-1))
    for _ in range(2):  # also after systemd has read its units again
        assert read(pod.limited, wanted) == wanted | {"cpu.max": "max"}
        systemctl("daemon-reload")
    status = await cri.status(pod)
    assert (status.state, status.started_at) == (pb.CONTAINER_RUNNING, before)


@handlers
async def test_a_container_that_takes_too_much_memory_is_oom_killed(cri: Cri, handler: str) -> None:
    pod = await cri.run(handler, "exec dd if=/dev/zero of=/dev/null bs=256M", LIMITS)
    status = await cri.exited(pod)
    assert (status.reason, status.exit_code) == ("OOMKilled", 137)


@handlers
async def test_a_child_that_takes_too_much_memory_is_told_with_its_code(
    cri: Cri, handler: str
) -> None:
    pod = await cri.run(handler, "dd if=/dev/zero of=/dev/null bs=256M; exit $?", LIMITS)
    status = await cri.exited(pod)
    assert (status.reason, status.exit_code) == ("OOMKilled", 137)


@handlers
async def test_memory_qos_comes_through_unified(cri: Cri, handler: str) -> None:
    asked = {"memory.high": str(40 * MIB), "memory.min": str(8 * MIB)}
    resources = pb.LinuxContainerResources(memory_limit_in_bytes=64 * MIB, unified=asked)
    pod = await cri.run(handler, LOOP, resources)
    assert read(pod.limited, asked) == asked
    asked["memory.high"] = str(32 * MIB)
    await cri.update(pod, pb.LinuxContainerResources(unified=asked))
    assert read(pod.limited, asked) == asked


@handlers
async def test_no_more_processes_than_allowed(cri: Cri, handler: str) -> None:
    script = "for i in 1 2 3 4 5 6 7 8 9; do sleep 100 & done; wait"
    resources = pb.LinuxContainerResources(unified={"pids.max": "5"})
    pod = await cri.run(handler, f"({script}); {LOOP}", resources)
    wait_for(lambda: "max 0" not in (pod.limited / "pids.events").read_text())
    assert int((pod.limited / "pids.current").read_text()) <= 5


@handlers
async def test_stats_are_of_the_container_and_of_its_pod(cri: Cri, handler: str) -> None:
    script = "dd if=/dev/zero of=/tmp/f bs=1M count=4; while :; do :; done"
    pod = await cri.run(handler, script, LIMITS)
    wait_for(lambda: _throttled(pod) > 0)
    stats = await cri.container_stats(pod)
    assert stats.cpu.usage_core_nano_seconds.value > 0
    assert 0 < stats.memory.working_set_bytes.value <= 64 * MIB
    of_pod = (await cri.pod_stats(pod)).linux
    assert of_pod.cpu.usage_core_nano_seconds.value >= stats.cpu.usage_core_nano_seconds.value
    assert of_pod.memory.working_set_bytes.value > 0
    assert of_pod.process.process_count.value == 1


@handlers
async def test_what_is_written_to_the_disk_is_in_the_metrics(cri: Cri, handler: str) -> None:
    pod = await cri.run(handler, LOOP, LIMITS)
    assert "io" in (ROOT / "cgroup.controllers").read_text().split()
    await cri.exec(pod, "dd if=/dev/zero of=/tmp/f bs=1M count=8 oflag=direct conv=fsync")
    written = await cri.metrics(pod, "container_fs_writes_bytes_total")
    assert 8 * MIB <= sum(written) < 16 * MIB


@handlers
async def test_a_restart_of_the_service_leaves_pods_alone(cri: Cri, handler: str) -> None:
    pod = await cri.run(handler, LOOP, LIMITS)
    first = (pod.limited / "cgroup.procs").read_text().split()[0]
    main = int(systemctl("show", "--property=MainPID", "--value", UNIT))
    os.kill(main, signal.SIGKILL)
    wait_for(
        lambda: systemctl("show", "--property=MainPID", "--value", UNIT) not in {"0", str(main)}
    )
    await cri.close()
    await cri.wait_ready(20)
    assert (await cri.status(pod)).state == pb.CONTAINER_RUNNING
    systemctl("restart", UNIT)
    await cri.close()
    await cri.wait_ready(20)
    assert (await cri.status(pod)).state == pb.CONTAINER_RUNNING
    assert (pod.limited / "cgroup.procs").read_text().split()[0] == first
    assert read(pod.limited, WANTED) == WANTED


def _throttled(pod: Pod) -> int:
    lines = (pod.limited / "cpu.stat").read_text().splitlines()
    return next(int(line.split()[1]) for line in lines if line.startswith("nr_throttled "))


def test_nothing_else_is_mounted() -> None:
    assert not [x for x in Path("/proc/mounts").read_text().splitlines() if "/snapshots/" in x]
