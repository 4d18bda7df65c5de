"""Limits of a real container: set at its start, changed while it runs, and what it uses told."""

from __future__ import annotations

import asyncio
import shutil
import time
from collections.abc import AsyncIterator, Iterator
from dataclasses import replace
from pathlib import Path

import pytest

from noderuntime.api.config import UlimitConfig
from noderuntime.cli.parts import parts_of
from noderuntime.engine.engine import Engine
from noderuntime.errors import InvalidArgumentError
from noderuntime.host.cgroups import UNIFIED, KernelCgroups, hierarchies
from noderuntime.policy.model import Resources
from tests.root.engine_kit import RealNode
from tests.root.engine_scene import Scene, engine_on, made_node
from tests.waiting import until

DEADLINE_S = 30.0
MIB = 1 << 20
IS_V2 = set(hierarchies()) == {UNIFIED}
# Controller, its file in v1 and in v2.
CPU_QUOTA = ("cpu", "cpu.cfs_quota_us", "cpu.max")
CPU_SHARES = ("cpu", "cpu.shares", "cpu.weight")
MEMORY = ("memory", "memory.limit_in_bytes", "memory.max")
SWAP = ("memory", "memory.memsw.limit_in_bytes", "memory.swap.max")
CPUSET = ("cpuset", "cpuset.cpus", "cpuset.cpus")
HUGEPAGES = ("hugetlb", "hugetlb.2MB.limit_in_bytes", "hugetlb.2MB.max")


@pytest.fixture(scope="module")
def node(tmp_path_factory: pytest.TempPathFactory) -> Iterator[RealNode]:
    with made_node(tmp_path_factory.mktemp("nr-engine-resources")) as real:
        yield real


@pytest.fixture
async def engine(node: RealNode) -> AsyncIterator[Engine]:
    shutil.rmtree(node.root / "logs", ignore_errors=True)
    async with engine_on(node, watching=True) as engine:
        yield engine


async def started(node: RealNode, engine: Engine, resources: Resources, script: str = "") -> str:
    sandbox_id = await engine.run_sandbox(node.sandbox(), "")
    config = replace(node.container(script=script), resources=resources)
    container_id = await engine.create_container(sandbox_id, config)
    await engine.start_container(container_id)
    return container_id


def read(engine: Engine, container_id: str, place: tuple[str, str, str]) -> str:
    controller, v1, v2 = place
    mount = hierarchies()[UNIFIED if IS_V2 else controller]
    relative = KernelCgroups().relative(engine.container(container_id).cgroup_path)
    # Under systemd crun makes one more cgroup, which systemd does not write to.
    below = mount / relative / "container"
    folder = below if below.is_dir() else mount / relative
    return (folder / (v2 if IS_V2 else v1)).read_text().split()[0]


async def test_limits_change_in_place_without_a_restart(node: RealNode, engine: Engine) -> None:
    first = Resources(
        cpu_period_us=100_000,
        cpu_quota_us=50_000,
        cpu_shares=512,
        memory_limit_bytes=64 * MIB,
        memory_swap_limit_bytes=64 * MIB,
    )
    container_id = await started(node, engine, first)
    pid = engine.container(container_id).pid
    for quota, memory in ((80_000, 128 * MIB), (20_000, 48 * MIB)):
        wanted = Resources(
            cpu_period_us=100_000,
            cpu_quota_us=quota,
            cpu_shares=1024,
            memory_limit_bytes=memory,
            memory_swap_limit_bytes=memory,
        )
        await engine.update_resources(container_id, wanted)
        assert read(engine, container_id, CPU_QUOTA) == str(quota)
        assert read(engine, container_id, MEMORY) == str(memory)
        told = engine.container(container_id).config.resources
        assert (told.cpu_quota_us, told.memory_limit_bytes) == (quota, memory)
    assert engine.container(container_id).pid == pid
    result = await engine.exec_sync(container_id, ("/bin/busybox", "true"), DEADLINE_S)
    assert result.exit_code == 0


async def test_a_quota_can_be_taken_away_in_place(node: RealNode, engine: Engine) -> None:
    limits = Resources(cpu_period_us=100_000, cpu_quota_us=50_000)
    container_id = await started(node, engine, limits)
    await engine.update_resources(container_id, Resources(cpu_quota_us=-1))
    assert read(engine, container_id, CPU_QUOTA) in {"-1", "max"}


async def test_cpus_and_huge_pages_are_set_and_changed(node: RealNode, engine: Engine) -> None:
    limits = Resources(cpuset_cpus="0", hugepage_limits_bytes={"2MB": 4 * MIB})
    container_id = await started(node, engine, limits)
    assert read(engine, container_id, CPUSET) == "0"
    assert read(engine, container_id, HUGEPAGES) == str(4 * MIB)
    await engine.update_resources(
        container_id, Resources(cpuset_cpus="0-1", hugepage_limits_bytes={"2MB": 8 * MIB})
    )
    assert read(engine, container_id, CPUSET) == "0-1"
    assert read(engine, container_id, HUGEPAGES) == str(8 * MIB)


def scores(pid: int) -> list[str]:
    tree = [pid, *map(int, Path(f"/proc/{pid}/task/{pid}/children").read_text().split())]
    return [Path(f"/proc/{each}/oom_score_adj").read_text().strip() for each in tree]


async def test_an_oom_score_changes_in_place_for_every_process(
    node: RealNode, engine: Engine
) -> None:
    script = "busybox sleep 60 & echo 7 >/proc/$!/oom_score_adj; busybox sleep 60 & wait"
    container_id = await started(node, engine, Resources(oom_score_adj=900), script)
    pid = engine.container(container_id).pid
    await until(lambda: sorted(scores(pid)) == ["7", "900", "900"])
    await engine.update_resources(container_id, Resources(oom_score_adj=950))
    assert sorted(scores(pid)) == ["7", "950", "950"]  # what the container set itself stays
    command = ("/bin/cat", "/proc/self/oom_score_adj")
    result = await engine.exec_sync(container_id, command, DEADLINE_S)
    assert result.stdout == b"950\n"


async def test_a_created_container_starts_with_limits_that_came_after(
    node: RealNode, engine: Engine
) -> None:
    sandbox_id = await engine.run_sandbox(node.sandbox(), "")
    first = Resources(cpu_period_us=100_000, cpu_quota_us=50_000)
    config = replace(node.container(), resources=first)
    container_id = await engine.create_container(sandbox_id, config)
    await engine.update_resources(
        container_id, Resources(cpu_quota_us=70_000, memory_limit_bytes=64 * MIB)
    )
    await engine.start_container(container_id)
    assert read(engine, container_id, CPU_QUOTA) == "70000"
    assert read(engine, container_id, MEMORY) == str(64 * MIB)


async def test_swap_is_limited_and_told(node: RealNode, engine: Engine) -> None:
    limits = Resources(memory_limit_bytes=64 * MIB, memory_swap_limit_bytes=96 * MIB)
    container_id = await started(node, engine, limits)
    # v1 limits both together, v2 swap alone.
    wanted = str(32 * MIB if IS_V2 else 96 * MIB)
    assert read(engine, container_id, SWAP) == wanted
    cgroup = engine.container(container_id).cgroup_path
    assert (await KernelCgroups().metrics(cgroup)).memory_swap_bytes == 0


async def test_memory_qos_is_set_on_v2_and_refused_by_name_on_v1(
    node: RealNode, engine: Engine
) -> None:
    keys = {"memory.min": str(8 * MIB), "memory.high": str(48 * MIB), "memory.oom.group": "1"}
    limits = Resources(memory_limit_bytes=64 * MIB, unified=keys)
    if not IS_V2:
        with pytest.raises(InvalidArgumentError, match=r"memory\.high needs cgroup v2"):
            await started(node, engine, limits)
        return
    container_id = await started(node, engine, limits)
    await engine.update_resources(container_id, Resources(unified={"memory.high": str(56 * MIB)}))
    wanted = {**keys, "memory.high": str(56 * MIB)}
    assert {key: read(engine, container_id, ("", "", key)) for key in keys} == wanted


@pytest.mark.parametrize("handler", ["crun", "runc"])
async def test_ulimits_of_the_node_hold_for_a_container_and_what_is_executed_in_it(
    node: RealNode, handler: str
) -> None:
    shutil.rmtree(node.root / "logs", ignore_errors=True)
    empty = node.census()
    limits = (
        # Go raises the soft one to the hard, and some versions of runc now and then leave it so.
        UlimitConfig(name="nofile", soft=321, hard=4321 if handler == "crun" else 321),
        UlimitConfig(name="core", soft=0, hard=-1),
    )
    engine = Engine(parts_of(node.config.model_copy(update={"ulimits": limits})))
    await engine.recover()
    try:
        await _ulimits_are(node, engine, handler, ["321", str(limits[0].hard), "0", "unlimited"])
    finally:
        await Scene(node, engine).remove_everything()
        await engine.close()
    assert [line for line in node.leftovers(empty) if "run/oci" not in line] == []


async def _ulimits_are(node: RealNode, engine: Engine, handler: str, wanted: list[str]) -> None:
    script = "ulimit -Sn; ulimit -Hn; ulimit -Sc; ulimit -Hc"
    sandbox_id = await engine.run_sandbox(node.sandbox(), handler)
    config = node.container(script=f"{script}; busybox sleep 60 & wait")
    container_id = await engine.create_container(sandbox_id, config)
    await engine.start_container(container_id)
    command = ("/bin/busybox", "sh", "-c", script)
    result = await engine.exec_sync(container_id, command, DEADLINE_S)
    assert result.stdout.decode().split() == wanted
    log = engine.log_file(engine.container(container_id))
    await until(lambda: [line.split(" ", 3)[-1] for line in log.read_text().splitlines()] == wanted)


async def test_metrics_tell_what_a_real_container_uses(node: RealNode, engine: Engine) -> None:
    container_id = await started(node, engine, Resources(), "while :; do :; done")
    end = time.monotonic() + DEADLINE_S
    while True:
        (pod,) = [each async for each in engine.pod_metrics()]
        (container,) = pod.containers
        if container.cgroup.cpu_user_ns:
            break
        assert time.monotonic() < end
        await asyncio.sleep(0.05)
    cgroup = container.cgroup
    assert container_id in cgroup.id  # under systemd it is part of a name
    assert cgroup.memory_usage_bytes > 0
    assert (cgroup.processes.processes, cgroup.threads) == (1, 1)
    assert cgroup.processes.files >= 3
    assert pod.cgroup is not None
    assert pod.cgroup.cpu_usage_ns >= cgroup.cpu_usage_ns
    assert [usage.interface for usage in pod.network] == ["eth0"]
    assert container.filesystem.inodes > container.filesystem.inodes_free > 0


async def test_no_line_is_lost_while_a_log_is_rotated(node: RealNode, engine: Engine) -> None:
    script = "trap 'echo end; exit 0' TERM; n=0; while :; do n=$((n+1)); echo line-$n; done"
    container_id = await started(node, engine, Resources(), script)
    log = engine.log_file(engine.container(container_id))
    parts: list[Path] = []
    for number in range(8):
        await until(lambda: log.stat().st_size > 4096)
        parts.append(log.with_suffix(f".{number}"))
        log.rename(parts[-1])  # as the kubelet does: rename, then ask for a new file
        await engine.reopen_log(container_id)
    await engine.stop_container(container_id, DEADLINE_S)
    whole = "".join(part.read_text() for part in (*parts, log))
    pieces = [line.split(" ", 3)[2:] for line in whole.splitlines(keepends=True)]
    # A line that did not fit the monitor's buffer is in pieces: P(artial), then F(ull).
    text = "".join(words.rstrip("\n") if tag == "P" else words for tag, words in pieces)
    lines = text.splitlines()
    assert len(lines) > 100
    assert lines == [*(f"line-{n}" for n in range(1, len(lines))), "end"]
