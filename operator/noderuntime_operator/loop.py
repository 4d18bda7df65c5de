"""The loop: something changed → look at everything → plan → write. Level-triggered, one pass at a time.

An event only says that there is something to look at, so none can be missed for good, and a pass does the
same after a restart as it would have done before.
"""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import Awaitable, Callable
from datetime import UTC, datetime
from typing import Final

import httpx2

from noderuntime_operator.reconcile.observed import Observed
from noderuntime_operator.reconcile.plan import Plan
from noderuntime_operator.reconcile.reconcile import reconcile

_RESYNC_S: Final = 300.0
_SETTLE_S: Final = 0.1  # events come in bursts
_SHARE: Final = (
    4.0  # rest this many times as long as a pass took: large clusters are not listed all the time
)
_FIRST_BACKOFF_S: Final = 0.5
_LAST_BACKOFF_S: Final = 30.0
_STUCK_S: Final = 120.0

_log = logging.getLogger(__name__)


class Loop:
    """Owns the passes; ``changed`` may be called at any time from the same event loop."""

    def __init__(
        self,
        observe: Callable[[], Awaitable[Observed]],
        carry_out: Callable[[Plan], Awaitable[None]],
    ) -> None:
        """Take how to look and how to write; both may raise HTTP errors."""
        self._observe, self._carry_out = observe, carry_out
        self._event = asyncio.Event()
        self._event.set()
        self._pass_started: float | None = None
        self._failures = 0
        self._passes = 0

    def changed(self) -> None:
        """Say that there is something to look at."""
        self._event.set()

    @property
    def is_alive(self) -> bool:
        """Tell whether no pass hangs."""
        started = self._pass_started
        return started is None or time.monotonic() - started < _STUCK_S

    @property
    def is_ready(self) -> bool:
        """Tell whether the last pass went through."""
        return self._passes > 0 and self._failures == 0

    async def run(self) -> None:
        """Run until cancelled."""
        wait_s: float | None = None
        while True:
            await self._next(_RESYNC_S if wait_s is None else wait_s)
            began = time.monotonic()
            self._pass_started = began
            try:
                wait_s = await self._pass()
            finally:
                self._pass_started = None
            await asyncio.sleep(max(_SETTLE_S, _SHARE * (time.monotonic() - began)))

    async def _next(self, timeout_s: float) -> None:
        try:
            async with asyncio.timeout(timeout_s):
                await self._event.wait()
        except TimeoutError:
            return
        finally:
            self._event.clear()

    async def _pass(self) -> float | None:
        """Look and write once; returns after how many seconds to look again."""
        try:
            plan = reconcile(await self._observe(), datetime.now(UTC))
            await self._carry_out(plan)
        except (httpx2.HTTPError, OSError) as error:
            self._failures += 1
            notes = "; ".join(getattr(error, "__notes__", ()))
            _log.warning(
                "pass failed", extra={"error": str(error) or type(error).__name__, "step": notes}
            )
            return min(_LAST_BACKOFF_S, _FIRST_BACKOFF_S * 2.0 ** min(self._failures, 10))
        self._failures = 0
        self._passes += 1
        return plan.retry_s
