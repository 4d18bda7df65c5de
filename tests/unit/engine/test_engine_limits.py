"""Limits that the node cannot set are refused by name; OOM kills are told also by the cgroup."""

from __future__ import annotations

import asyncio
import json
from typing import TYPE_CHECKING

import pytest

from noderuntime.api.config import UlimitConfig, load_config
from noderuntime.engine import limits
from noderuntime.engine.state import ContainerState
from noderuntime.errors import ConfigError, FailedPreconditionError, InvalidArgumentError
from noderuntime.policy.model import Resources
from noderuntime.policy.rules import Ulimit
from tests.fakes.engine import World, container_config, sandbox_config

if TYPE_CHECKING:
    from pathlib import Path

    from noderuntime.engine.engine import Engine

HUGE = Resources(hugepage_limits_bytes={"1GB": 0, "2MB": 4 << 20})
NO_HUGE = Resources(hugepage_limits_bytes={"1GB": 0, "2MB": 0})


async def running(engine: Engine, resources: Resources, *, start: bool = True) -> str:
    sandbox_id = await engine.run_sandbox(sandbox_config(), "")
    config = container_config(resources=resources)
    container_id = await engine.create_container(sandbox_id, config)
    if start:
        await engine.start_container(container_id)
    return container_id


@pytest.mark.parametrize(
    ("resources", "field"),
    [
        pytest.param(HUGE, "hugepage_limits: 2MB", id="huge-pages"),
        pytest.param(Resources(unified={"memory.high": "5"}), "unified: memory.high", id="unified"),
    ],
)
async def test_what_the_node_cannot_limit_is_refused(
    engine: Engine, world: World, resources: Resources, field: str
) -> None:
    world.controllers, world.is_unified = {"cpu"}, False
    with pytest.raises(InvalidArgumentError, match=field):
        await running(engine, resources)
    container_id = await running(engine, NO_HUGE)
    with pytest.raises(InvalidArgumentError, match=field):
        await engine.update_resources(container_id, resources)
    assert "runtime.update" not in world.calls
    assert engine.container(container_id).config.resources.hugepage_limits_bytes == {}


async def test_what_the_node_can_limit_is_passed_on(engine: Engine) -> None:
    container_id = await running(engine, HUGE)
    assert engine.container(container_id).config.resources == HUGE
    await engine.update_resources(container_id, Resources(unified={"memory.high": "5"}))
    told = engine.container(container_id).config.resources
    assert (told.unified, told.hugepage_limits_bytes) == (
        {"memory.high": "5"},
        HUGE.hugepage_limits_bytes,
    )


async def test_a_quota_is_lifted_apart_from_the_oci_runtime_on_v1(
    engine: Engine, world: World
) -> None:
    world.is_unified = False
    container_id = await running(engine, Resources(cpu_quota_us=50_000))
    await engine.update_resources(container_id, Resources(cpu_quota_us=-1, cpu_shares=10))
    assert world.calls[-2:] == ["runtime.update", "cgroups.lift_cpu_quota"]
    assert world.updates == [Resources(cpu_shares=10)]
    assert engine.container(container_id).config.resources.cpu_quota_us == -1


async def test_a_quota_is_lifted_by_the_oci_runtime_on_v2(engine: Engine, world: World) -> None:
    container_id = await running(engine, Resources(cpu_quota_us=50_000, cpu_period_us=50_000))
    await engine.update_resources(container_id, Resources(cpu_quota_us=-1))
    assert world.updates == [Resources(cpu_quota_us=-1, cpu_period_us=50_000)]
    assert "cgroups.lift_cpu_quota" not in world.calls


@pytest.mark.parametrize("is_unified", [True, False])
async def test_swap_that_is_not_allowed_is_told_in_the_words_that_systemd_hears(
    engine: Engine, world: World, *, is_unified: bool
) -> None:
    world.is_unified = is_unified
    limits = Resources(memory_limit_bytes=64 << 20, memory_swap_limit_bytes=64 << 20)
    container_id = await running(engine, limits)
    await engine.update_resources(container_id, limits)
    assert [told.unified for told in world.updates] == [
        {"memory.swap.max": "0"} if is_unified else {}
    ]
    assert engine.container(container_id).config.resources == limits


@pytest.mark.parametrize(
    ("code", "kills", "reason"),
    [(137, 1, "OOMKilled"), (137, 0, "Error"), (1, 1, "Error"), (0, 1, "Completed")],
)
async def test_a_kill_is_told_as_oom_where_the_cgroup_counted_one(
    engine: Engine, world: World, code: int, kills: int, reason: str
) -> None:
    container_id = await running(engine, Resources())
    world.oom_kills = kills
    world.cgroups.add(engine.container(container_id).cgroup_path)
    world.end(container_id, code)
    async with asyncio.timeout(2):
        while (record := engine.container(container_id)).state is not ContainerState.EXITED:
            await asyncio.sleep(0.001)
    assert (record.exit_code, record.reason) == (code, reason)


async def test_a_container_that_is_not_started_yet_gets_new_limits_with_its_start(
    engine: Engine, world: World
) -> None:
    first = Resources(cpu_quota_us=50_000, cpu_period_us=100_000, cpuset_cpus="0")
    container_id = await running(engine, first, start=False)
    spec = world.root / "run" / "containers" / container_id / "config.json"
    before = json.loads(spec.read_text())
    update = Resources(cpu_quota_us=-1, memory_limit_bytes=1 << 20, oom_score_adj=500)
    await engine.update_resources(container_id, update)
    after = json.loads(spec.read_text())
    assert after["linux"]["resources"] == {
        "devices": before["linux"]["resources"]["devices"],
        "cpu": {"period": 100_000, "cpus": "0"},
        "memory": {"limit": 1 << 20},
    }
    assert after["process"] == {**before["process"], "oomScoreAdj": 500}
    assert "runtime.update" not in world.calls
    assert engine.container(container_id).config.resources.oom_score_adj == 500


async def test_an_ended_container_cannot_be_updated(engine: Engine) -> None:
    container_id = await running(engine, Resources())
    await engine.stop_container(container_id, 0)
    with pytest.raises(FailedPreconditionError, match="of one that runs"):
        await engine.update_resources(container_id, Resources(cpu_shares=10))


async def test_oom_scores_are_set_on_processes_and_kept_where_nothing_is_asked(
    engine: Engine, world: World
) -> None:
    container_id = await running(engine, Resources(oom_score_adj=900))
    cgroup = engine.container(container_id).cgroup_path
    for asked in (0, 900):
        await engine.update_resources(container_id, Resources(oom_score_adj=asked))
    assert world.oom_scores == {}
    await engine.update_resources(container_id, Resources(oom_score_adj=-5))
    assert world.oom_scores == {cgroup: (900, -5)}
    assert engine.container(container_id).config.resources.oom_score_adj == -5


@pytest.mark.parametrize(
    ("has_swap", "asked", "told"),
    [
        pytest.param(False, 1 << 20, 0, id="no swap to limit"),
        pytest.param(True, -1, 0, id="as much as there is"),
        pytest.param(True, 1 << 20, None, id="a limit that cannot be set"),
    ],
)
async def test_swap_that_is_not_counted_is_limited_only_where_there_is_none(
    engine: Engine, world: World, has_swap: bool, asked: int, told: int | None
) -> None:
    world.counts_swap, world.has_swap = False, has_swap
    wanted = Resources(memory_limit_bytes=1 << 20, memory_swap_limit_bytes=asked)
    if told is None:
        with pytest.raises(InvalidArgumentError, match="memory_swap_limit_in_bytes: swap cannot"):
            await running(engine, wanted)
        return
    container_id = await running(engine, wanted)
    assert engine.container(container_id).config.resources.memory_swap_limit_bytes == told


@pytest.mark.parametrize(
    "key",
    ["cgroup.procs", "cgroup.kill", "../../memory.max", "memory.reclaim", "hugetlb.2MB.current"],
)
async def test_a_key_that_is_no_limit_is_refused(engine: Engine, key: str) -> None:
    wanted = Resources(unified={key: "1"})
    with pytest.raises(InvalidArgumentError, match=r"linux\.resources\.unified"):
        await running(engine, wanted)
    container_id = await running(engine, Resources())
    with pytest.raises(InvalidArgumentError, match=r"linux\.resources\.unified"):
        await engine.update_resources(container_id, wanted)


async def test_the_keys_of_memory_qos_are_passed_on(engine: Engine, world: World) -> None:
    keys = {"memory.min": "1048576", "memory.high": "2097152", "memory.oom.group": "1"}
    more = {"hugetlb.2MB.max": "0", "hugetlb.1GB.rsvd.max": "0"}
    container_id = await running(engine, Resources(unified=keys))
    await engine.update_resources(container_id, Resources(unified=more))
    assert world.updates == [Resources(unified=more)]
    assert engine.container(container_id).config.resources.unified == {**keys, **more}


def test_the_nodes_ulimits_hold_where_the_profile_has_none_of_the_name() -> None:
    nodes = (
        UlimitConfig(name="nofile", soft=1024, hard=4096),
        UlimitConfig(name="core", soft=0, hard=-1),
    )
    found = limits.ulimits(nodes, (Ulimit(name="nofile", soft=5, hard=6),))
    assert found == (
        Ulimit(name="core", soft=0, hard=2**64 - 1),
        Ulimit(name="nofile", soft=5, hard=6),
    )
    assert limits.ulimits((), ()) == ()


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ('[[ulimits]]\nname = "files"\nsoft = 1\nhard = 1', "ulimits.0.name"),
        ('[[ulimits]]\nname = "nofile"\nsoft = 9\nhard = 1', "soft must not be more"),
        ('[[ulimits]]\nname = "nofile"\nsoft = -1\nhard = 1', "soft must not be more"),
        ('[[ulimits]]\nname = "nofile"\nsoft = -2\nhard = 1', "ulimits.0.soft"),
        ('[[ulimits]]\nname = "core"\nsoft = 1\nhard = 1\n' * 2, "given twice"),
    ],
)
def test_a_ulimit_that_is_none_is_told_by_its_key(tmp_path: Path, text: str, words: str) -> None:
    file = tmp_path / "config.toml"
    file.write_text(text)
    with pytest.raises(ConfigError, match=words):
        load_config(file)
