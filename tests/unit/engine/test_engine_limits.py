"""Limits that the node cannot set are refused by name; OOM kills are told also by the cgroup."""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING

import pytest

from noderuntime.engine.state import ContainerState
from noderuntime.errors import InvalidArgumentError
from noderuntime.policy.model import Resources
from tests.fakes.engine import World, container_config, sandbox_config

if TYPE_CHECKING:
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
