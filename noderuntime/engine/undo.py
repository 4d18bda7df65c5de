"""Undo: what has been begun is taken back, last first, every one tried, whatever fails."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable

from noderuntime.engine.jobs import describe, to_the_end

Action = Callable[[], Awaitable[None]]

DEADLINE_S = 60.0


class Undo:
    """A stack of actions. Each must succeed where there is nothing to take back."""

    def __init__(self) -> None:
        """Start empty."""
        self._actions: list[tuple[str, Action]] = []

    def push(self, name: str, action: Action | None) -> None:
        """Remember how to take back a step. Pushed before the step runs: it may fail half-way."""
        if action is not None:
            self._actions.append((name, action))

    async def unwind(self, error: BaseException) -> bool:
        """Take everything back; failures become notes on ``error``. Returns whether all succeeded.

        A cancel that comes meanwhile is raised only after the last action.
        """
        failures = await to_the_end(self._unwind())
        for failure in failures:
            error.add_note(failure)
        return not failures

    async def _unwind(self) -> list[str]:
        failures: list[str] = []
        for name, action in reversed(self._actions):
            try:
                async with asyncio.timeout(DEADLINE_S):
                    await action()
            except Exception as failure:  # noqa: BLE001 - every action is tried
                failures.append(f"undo of {name} failed: {describe(failure)}")
        self._actions.clear()
        return failures
