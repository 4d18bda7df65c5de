"""Jobs outlive their callers, and what is undone is undone whole."""

from __future__ import annotations

import asyncio
import logging

import pytest

from noderuntime.engine.jobs import Jobs, every, to_the_end
from noderuntime.engine.undo import Undo
from noderuntime.errors import HostError, UnavailableError

KEY = ("verb", "object")


async def test_a_second_call_joins_the_first_when_it_is_under_way() -> None:
    jobs, gate, runs = Jobs(), asyncio.Event(), 0

    async def work() -> int:
        nonlocal runs
        runs += 1
        await gate.wait()
        return runs

    async with asyncio.TaskGroup() as group:
        calls = [group.create_task(jobs.join(KEY, work)) for _ in range(3)]
        await asyncio.sleep(0)
        gate.set()
    assert [call.result() for call in calls] == [1, 1, 1]
    assert await jobs.join(KEY, work) == 2


async def test_the_work_goes_on_when_its_caller_is_cancelled() -> None:
    jobs, gate, done = Jobs(), asyncio.Event(), asyncio.Event()

    async def work() -> None:
        await gate.wait()
        done.set()

    caller = asyncio.Task(jobs.join(KEY, work))
    await asyncio.sleep(0)
    caller.cancel()
    with pytest.raises(asyncio.CancelledError):
        await caller
    gate.set()
    async with asyncio.timeout(1):
        await done.wait()


async def test_an_error_is_logged_when_every_caller_has_left(
    caplog: pytest.LogCaptureFixture,
) -> None:
    jobs, gate = Jobs(), asyncio.Event()

    async def work() -> None:
        await gate.wait()
        raise HostError("no such device")

    caller = asyncio.Task(jobs.join(KEY, work))
    await asyncio.sleep(0)
    caller.cancel()
    with pytest.raises(asyncio.CancelledError):
        await caller
    with caplog.at_level(logging.WARNING):
        gate.set()
        await jobs.settle(lambda _key: True, 1.0)
        await asyncio.sleep(0)
    assert [record.__dict__["error"] for record in caplog.records] == ["no such device"]


async def test_callers_are_told_to_try_again_when_the_engine_closes() -> None:
    jobs = Jobs()
    caller = asyncio.Task(jobs.join(KEY, asyncio.Event().wait))
    await asyncio.sleep(0)
    await jobs.close(0.0)
    with pytest.raises(UnavailableError):
        await caller
    with pytest.raises(UnavailableError):
        await jobs.join(KEY, asyncio.Event().wait)


async def test_work_to_the_end_is_not_torn_when_it_is_cancelled_twice() -> None:
    gate, done = asyncio.Event(), asyncio.Event()

    async def work() -> None:
        await gate.wait()
        done.set()

    task = asyncio.Task(to_the_end(work()))
    for _ in range(2):
        await asyncio.sleep(0)
        task.cancel()
    await asyncio.sleep(0)
    assert not task.done()
    gate.set()
    with pytest.raises(asyncio.CancelledError):
        await task
    assert done.is_set()


async def test_every_work_is_run_to_its_end_when_one_of_them_fails() -> None:
    ran: list[int] = []

    async def work(number: int) -> None:
        await asyncio.sleep(0)
        ran.append(number)
        if number:
            raise HostError(f"number {number}")

    with pytest.raises(HostError, match="number 1") as caught:
        await every(work(number) for number in (1, 0, 2))
    assert sorted(ran) == [0, 1, 2]
    assert caught.value.__notes__ == ["and: number 2"]


async def test_undo_tries_all_last_first_when_some_fail() -> None:
    tried: list[str] = []
    undo = Undo()

    def action(name: str, *, fails: bool) -> None:
        async def run() -> None:
            tried.append(name)
            if fails:
                raise HostError(f"{name} is busy")

        undo.push(name, run)

    action("a", fails=True)
    action("b", fails=False)
    action("c", fails=True)
    undo.push("d", None)
    error = HostError("the first")
    assert not await undo.unwind(error)
    assert tried == ["c", "b", "a"]
    assert error.__notes__ == ["undo of c failed: c is busy", "undo of a failed: a is busy"]
