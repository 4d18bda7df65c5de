"""Jobs: work that outlives the call that asked for it, one at a time for each key.

The kubelet gives up on a call after its deadline and asks again. The first call's work goes on
here, the second call joins it, and both get the same answer. A task's owner is its ``Jobs``.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Awaitable, Callable, Coroutine, Iterable
from functools import partial
from typing import Any, TypeVar, cast

from noderuntime.errors import UnavailableError

_log = logging.getLogger(__name__)

T = TypeVar("T")
Key = tuple[str, ...]  # (verb, what it is about...)

CANCEL_GRACE_S = 60.0  # undoing has its own deadlines; this only bounds a shutdown


async def to_the_end(work: Coroutine[Any, Any, T] | asyncio.Future[T]) -> T:
    """Run ``work`` to its end even when this task is cancelled; the cancel is raised afterwards.

    For what must not be torn: an undo, or a write to disk in a thread, which goes on anyway.
    """
    loop = asyncio.get_running_loop()
    task = work if isinstance(work, asyncio.Future) else loop.create_task(work)
    cancelled: asyncio.CancelledError | None = None
    while not task.done():
        try:
            await asyncio.wait([task])
        except asyncio.CancelledError as error:
            cancelled = error
    if cancelled is not None:
        if not task.cancelled() and (failure := task.exception()) is not None:
            cancelled.add_note(f"and meanwhile: {failure}")
        raise cancelled
    return task.result()


async def every(works: Iterable[Coroutine[Any, Any, None]]) -> None:
    """Run all at once, each to its end; raise the first error, with the others as its notes."""
    results = await asyncio.gather(*works, return_exceptions=True)
    errors = [result for result in results if result is not None]
    if errors:
        for other in errors[1:]:
            errors[0].add_note(f"and: {describe(other)}")
        raise errors[0]


class Jobs:
    """All jobs of one engine."""

    def __init__(self) -> None:
        """Start with none."""
        self._running: dict[Key, asyncio.Task[object]] = {}
        self._waiting: dict[Key, int] = {}
        self._closed = False

    async def join(self, key: Key, work: Callable[[], Coroutine[Any, Any, T]]) -> T:
        """Return what ``work`` returns; one under way for the same key is joined instead.

        Cancelling the caller stops nothing. Raises what ``work`` raises, and UnavailableError when
        the engine is being shut down.
        """
        task = self._running.get(key) or self._start(key, work)
        self._waiting[key] = self._waiting.get(key, 0) + 1
        try:
            return cast("T", await asyncio.shield(task))
        except asyncio.CancelledError:
            if task.cancelled() and not _is_cancelled():
                raise UnavailableError("the runtime is being stopped; try again") from None
            raise
        finally:
            self._leave(key)

    def start(self, key: Key, work: Callable[[], Coroutine[Any, Any, object]]) -> None:
        """Start ``work`` without waiting; nothing where the same key is under way."""
        if key not in self._running and not self._closed:
            self._start(key, work)

    async def settle(self, matches: Callable[[Key], bool], timeout_s: float) -> None:
        """Wait until the jobs that match now have ended, however they end."""
        tasks = [task for key, task in self._running.items() if matches(key)]
        if tasks:
            await asyncio.wait(tasks, timeout=timeout_s)

    async def close(self, grace_s: float) -> None:
        """Take no more jobs, wait ``grace_s`` for those there are, then cancel the rest."""
        self._closed = True
        await self.settle(lambda _key: True, grace_s)
        for task in self._running.values():
            task.cancel()
        await self.settle(lambda _key: True, CANCEL_GRACE_S)

    def _start(self, key: Key, work: Callable[[], Awaitable[T]]) -> asyncio.Task[object]:
        if self._closed:
            raise UnavailableError("the runtime is being stopped; try again")

        async def run() -> object:
            return await work()

        task = asyncio.get_running_loop().create_task(run(), name="/".join(key))
        self._running[key] = task
        task.add_done_callback(partial(self._ended, key))
        return task

    def _leave(self, key: Key) -> None:
        left = self._waiting.get(key, 1) - 1
        if left > 0:
            self._waiting[key] = left
        else:
            self._waiting.pop(key, None)

    def _ended(self, key: Key, task: asyncio.Task[object]) -> None:
        del self._running[key]
        if task.cancelled():
            return
        error = task.exception()
        if error is not None and key not in self._waiting:
            _log.warning(
                "a job failed after its caller had left",
                extra={"job": "/".join(key), "error": describe(error)},
            )


def describe(error: BaseException) -> str:
    """Return the error's text and its notes, on one line."""
    text = "; ".join([str(error) or type(error).__name__, *getattr(error, "__notes__", ())])
    return " ".join(text.split())


def _is_cancelled() -> bool:
    task = asyncio.current_task()
    return task is not None and task.cancelling() > 0
