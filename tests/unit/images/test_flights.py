from __future__ import annotations

import asyncio

import pytest

from noderuntime.images.flights import Flights


async def test_who_asks_for_what_is_under_way_waits_for_it() -> None:
    flights: Flights[int] = Flights()
    gate = asyncio.Event()
    runs = 0

    async def job() -> int:
        nonlocal runs
        runs += 1
        await gate.wait()
        return runs

    async with asyncio.TaskGroup() as group:
        tasks = [group.create_task(flights.join("a", job)) for _ in range(3)]
        await asyncio.sleep(0)
        gate.set()
    assert [task.result() for task in tasks] == [1, 1, 1]
    assert await flights.join("a", job) == 2


async def test_an_error_reaches_all_and_the_next_begins_anew() -> None:
    flights: Flights[int] = Flights()

    async def fails() -> int:
        raise ValueError("x")

    results = await asyncio.gather(
        *(flights.join("a", fails) for _ in range(3)), return_exceptions=True
    )
    assert all(isinstance(result, ValueError) for result in results)

    async def works() -> int:
        return 1

    assert await flights.join("a", works) == 1


async def test_one_waiter_gone_cancels_nothing_the_last_cancels_all() -> None:
    flights: Flights[int] = Flights()
    ended = asyncio.Event()

    async def job() -> int:
        try:
            await asyncio.sleep(60)
        finally:
            ended.set()
        return 1

    loop = asyncio.get_running_loop()
    one = loop.create_task(flights.join("a", job))
    two = loop.create_task(flights.join("a", job))
    await asyncio.sleep(0)
    await asyncio.sleep(0)
    one.cancel()
    with pytest.raises(asyncio.CancelledError):
        await one
    assert not ended.is_set()
    two.cancel()
    with pytest.raises(asyncio.CancelledError):
        await two
    assert ended.is_set()
