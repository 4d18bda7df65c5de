"""StopContainer: which signal is sent, how long it waits, and that it always ends."""

from __future__ import annotations

import asyncio

import pytest

from noderuntime.engine.engine import Engine
from noderuntime.engine.signals import stop_signal
from noderuntime.engine.state import ContainerState
from noderuntime.errors import (
    DeadlineExceededError,
)
from tests.fakes.engine import World
from tests.unit.engine.containers_kit import running


@pytest.mark.parametrize(
    ("own", "sent"), [("", "SIGINT"), ("SIGQUIT", "SIGQUIT"), ("nonsense", "SIGTERM")]
)
async def test_the_stop_signal_is_the_containers_else_the_images(
    engine: Engine, world: World, own: str, sent: str
) -> None:
    container_id = await running(engine, stop_signal=own)
    await engine.stop_container(container_id, 5.0)
    assert [call for call in world.calls if "kill" in call] == [f"runtime.kill {sent}"]
    assert engine.container(container_id).reason == "Error"
    await engine.stop_container(container_id, 5.0)


@pytest.mark.parametrize(
    ("name", "number"),
    [("", 15), ("TERM", 15), ("sigterm", 15), ("9", 9), ("RTMIN+3", 37), ("SIGRTMIN+3", 37)]
    + [(name, 15) for name in ("0", "-1", "999999999", "RTMIN+99", "RTMIN+", "+", "Kill me")],
)
def test_a_stop_signal_is_read_by_name_or_number(name: str, number: int) -> None:
    assert stop_signal(name) == number


async def test_a_container_is_killed_when_its_grace_is_over(engine: Engine, world: World) -> None:
    world.ignored_signals.add(2)
    container_id = await running(engine)
    await engine.stop_container(container_id, 0.03)
    assert [call for call in world.calls if "kill" in call] == [
        "runtime.kill SIGINT",
        "runtime.kill SIGKILL",
    ]
    assert engine.container(container_id).exit_code == 137


async def test_a_stop_under_way_is_hurried_when_a_second_one_has_less_patience(
    engine: Engine, world: World
) -> None:
    world.ignored_signals.add(2)
    container_id = await running(engine)
    patient = asyncio.Task(engine.stop_container(container_id, 3600.0))
    await asyncio.sleep(0.01)
    async with asyncio.timeout(2):
        await engine.stop_container(container_id, 0.0)
        await patient
    assert engine.container(container_id).exit_code == 137


async def test_a_stop_ends_with_an_error_when_the_process_does_not_die(
    engine: Engine, world: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("noderuntime.engine.container_stop.KILLED_S", 0.03)
    monkeypatch.setattr("noderuntime.engine.container_stop.OBEYS_S", 0.01)
    world.ignored_signals.update({2, 9})
    container_id = await running(engine)
    with pytest.raises(DeadlineExceededError, match="hangs in the kernel"):
        await engine.stop_container(container_id, 0.0)
    assert engine.container(container_id).state is ContainerState.RUNNING
    world.ignored_signals.clear()
    await engine.remove_container(container_id)
    assert engine.containers() == ()


async def test_a_stop_kills_without_the_oci_runtime_where_that_does_not_end(
    engine: Engine, world: World
) -> None:
    container_id = await running(engine)
    for name in ("SIGTERM", "SIGKILL"):
        world.failing[f"runtime.kill {name}"] = DeadlineExceededError("crun kill did not finish")
    await engine.stop_container(container_id, 0.0)
    assert engine.container(container_id).exit_code == 137
    assert "cgroups.kill" in world.calls
