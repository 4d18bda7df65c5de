"""Events: one for each change that CRI names, in order, and never more than a bound of them."""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING

import pytest

from noderuntime.engine.events import MAX_SUBSCRIBERS, MAX_WAITING, Event, EventKind, Subscription
from noderuntime.engine.state import ContainerState, SandboxState
from noderuntime.errors import HostError, ResourceExhaustedError
from noderuntime.policy.model import Resources
from tests.fakes.engine import World, container_config, sandbox_config

if TYPE_CHECKING:
    from noderuntime.engine.engine import Engine


async def take(subscription: Subscription, count: int) -> list[Event]:
    found: list[Event] = []
    async with asyncio.timeout(2):
        async for event in subscription:
            found.append(event)
            if len(found) == count:
                break
    return found


async def test_a_pods_life_is_told_in_order_with_the_pod_as_it_then_was(
    engine: Engine, world: World
) -> None:
    subscription = engine.subscribe()
    sandbox_id = await engine.run_sandbox(sandbox_config(), "")
    container_id = await engine.create_container(sandbox_id, container_config())
    await engine.start_container(container_id)
    world.end(container_id, 3)
    events = await take(subscription, 5)
    await engine.remove_container(container_id)
    await engine.stop_sandbox(sandbox_id)
    await engine.remove_sandbox(sandbox_id)
    events += await take(subscription, 3)
    assert [(event.kind, event.object_id) for event in events] == [
        (EventKind.CREATED, sandbox_id),
        (EventKind.STARTED, sandbox_id),
        (EventKind.CREATED, container_id),
        (EventKind.STARTED, container_id),
        (EventKind.STOPPED, container_id),
        (EventKind.DELETED, container_id),
        (EventKind.STOPPED, sandbox_id),
        (EventKind.DELETED, sandbox_id),
    ]
    assert [c.state for event in events for c in event.containers] == [
        ContainerState.CREATED,
        ContainerState.RUNNING,
        ContainerState.EXITED,
    ]
    assert events[4].containers[0].exit_code == 3
    assert all(event.sandbox is not None for event in events)
    last = events[-1].sandbox
    assert last is not None
    assert last.state is SandboxState.NOT_READY


async def test_a_start_that_fails_is_told_as_a_stop(engine: Engine, world: World) -> None:
    sandbox_id = await engine.run_sandbox(sandbox_config(), "")
    container_id = await engine.create_container(sandbox_id, container_config())
    subscription = engine.subscribe()
    world.failing["runtime.start"] = HostError("no such program")
    with pytest.raises(HostError):
        await engine.start_container(container_id)
    (event,) = await take(subscription, 1)
    assert (event.kind, event.containers[0].reason) == (EventKind.STOPPED, "StartError")


async def test_new_limits_are_no_event(engine: Engine) -> None:
    sandbox_id = await engine.run_sandbox(sandbox_config(), "")
    container_id = await engine.create_container(sandbox_id, container_config())
    await engine.start_container(container_id)
    subscription = engine.subscribe()
    await engine.update_resources(container_id, Resources(cpu_shares=100))
    await engine.stop_container(container_id, 0.0)
    (event,) = await take(subscription, 1)
    assert event.kind is EventKind.STOPPED


async def test_a_subscriber_that_does_not_read_is_cut_off_and_holds_nothing(
    engine: Engine,
) -> None:
    late, early = engine.subscribe(), engine.subscribe()
    event = Event(
        kind=EventKind.STOPPED, object_id="c", created_at_ns=1, sandbox=None, containers=()
    )
    for _ in range(MAX_WAITING + 1):
        late.offer(event)
    with pytest.raises(ResourceExhaustedError, match="read too slowly"):
        await take(late, 1)
    await engine.run_sandbox(sandbox_config(), "")
    assert len(await take(early, 2)) == 2, "others are not disturbed"


async def test_subscribers_are_bounded_and_end_with_the_node(engine: Engine) -> None:
    subscriptions = [engine.subscribe() for _ in range(MAX_SUBSCRIBERS)]
    with pytest.raises(ResourceExhaustedError):
        engine.subscribe()
    subscriptions[0].close()
    engine.subscribe()
    engine.end_events()
    assert await take(subscriptions[1], 1) == []
