from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable

import httpx2
import pytest

from noderuntime_operator import loop as looping
from noderuntime_operator.loop import Loop
from noderuntime_operator.main import options_from
from noderuntime_operator.reconcile.observed import Observed
from noderuntime_operator.reconcile.plan import Plan
from tests.fakes.operator_cluster import SETTINGS


@pytest.fixture(autouse=True)
def quick(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(looping, "_SETTLE_S", 0.001)
    monkeypatch.setattr(looping, "_FIRST_BACKOFF_S", 0.001)


class World:
    """Counts looks; fails as often as it is told to."""

    def __init__(self) -> None:
        self.looks = 0
        self.failures = 0
        self.looked = asyncio.Event()

    async def observe(self) -> Observed:
        self.looks += 1
        self.looked.set()
        if self.failures:
            self.failures -= 1
            raise httpx2.ConnectError("the API server is away")
        return Observed(settings=SETTINGS)

    async def carry_out(self, plan: Plan) -> None:
        assert plan.actions == ()

    async def wait_looks(self, count: int) -> None:
        async with asyncio.timeout(5):
            while self.looks < count:
                self.looked.clear()
                await self.looked.wait()


async def running(check: Callable[[Loop, World], Awaitable[None]]) -> None:
    world = World()
    loop = Loop(world.observe, world.carry_out)
    async with asyncio.TaskGroup() as group:
        task = group.create_task(loop.run())
        await check(loop, world)
        task.cancel()


async def test_a_loop_looks_once_at_the_start_and_again_when_something_changed() -> None:
    async def check(loop: Loop, world: World) -> None:
        await world.wait_looks(1)
        await asyncio.sleep(0.02)
        assert world.looks == 1
        loop.changed()
        await world.wait_looks(2)

    await running(check)


async def test_a_burst_of_events_is_one_look() -> None:
    async def check(loop: Loop, world: World) -> None:
        await world.wait_looks(1)
        for _ in range(100):
            loop.changed()
        await world.wait_looks(2)
        await asyncio.sleep(0.02)
        assert world.looks <= 3

    await running(check)


async def test_a_failed_pass_is_tried_again_and_readiness_says_so() -> None:
    world = World()
    world.failures = 3
    loop = Loop(world.observe, world.carry_out)
    assert not loop.is_ready
    async with asyncio.TaskGroup() as group:
        task = group.create_task(loop.run())
        await world.wait_looks(2)
        assert not loop.is_ready
        await world.wait_looks(4)
        await asyncio.sleep(0.01)
        assert loop.is_ready
        assert loop.is_alive
        task.cancel()


async def test_a_pass_that_hangs_is_not_alive(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(looping, "_STUCK_S", 0.01)
    started = asyncio.Event()

    async def hang() -> Observed:
        started.set()
        await asyncio.Event().wait()
        raise AssertionError

    loop = Loop(hang, World().carry_out)
    async with asyncio.TaskGroup() as group:
        task = group.create_task(loop.run())
        await started.wait()
        await asyncio.sleep(0.02)
        assert not loop.is_alive
        task.cancel()


async def test_a_bug_ends_the_loop() -> None:
    async def broken() -> Observed:
        raise KeyError("a bug")

    with pytest.raises(KeyError):
        await Loop(broken, World().carry_out).run()


def test_the_agents_image_must_be_given() -> None:
    with pytest.raises(SystemExit, match="NODERUNTIME_AGENT_IMAGE is not set"):
        options_from({})


def test_options_have_defaults() -> None:
    options = options_from({"NODERUNTIME_AGENT_IMAGE": "image"})
    assert options.namespace == "noderuntime-system"
    assert options.deployment == ""
