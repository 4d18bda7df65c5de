"""One job a key: who asks for what is under way waits for it instead of doing it again."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Hashable
from dataclasses import dataclass
from typing import Generic, TypeVar

T = TypeVar("T")


@dataclass(slots=True)
class _Flight(Generic[T]):
    task: asyncio.Task[T]
    waiters: int = 0


class Flights(Generic[T]):
    """Owns the tasks. A job is cancelled only when nobody waits for it any more."""

    def __init__(self) -> None:
        """Begin with none."""
        self._flights: dict[Hashable, _Flight[T]] = {}

    async def join(self, key: Hashable, job: Callable[[], Awaitable[T]]) -> T:
        """Return what the job of ``key`` returns (or raises), starting it if needed."""
        flight = self._flights.get(key)
        if flight is None:
            # No name: a key may hold credentials.
            task = asyncio.get_running_loop().create_task(self._run(key, job))
            flight = self._flights[key] = _Flight(task)
        flight.waiters += 1
        try:
            return await asyncio.shield(flight.task)
        finally:
            flight.waiters -= 1
            if not flight.waiters and not flight.task.done():
                await self._end(key, flight)

    async def _run(self, key: Hashable, job: Callable[[], Awaitable[T]]) -> T:
        mine = asyncio.current_task()
        try:
            return await job()
        finally:
            flight = self._flights.get(key)
            if flight is not None and flight.task is mine:
                del self._flights[key]

    async def _end(self, key: Hashable, flight: _Flight[T]) -> None:
        """Cancel, and wait until its undo has run."""
        if self._flights.get(key) is flight:
            del self._flights[key]
        flight.task.cancel()
        await asyncio.wait([flight.task], timeout=30)
        if flight.task.done() and not flight.task.cancelled():
            flight.task.exception()  # told to nobody: nobody waits
