"""Waiting for what has no event: asked again and again, with a deadline that a busy machine keeps."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable
from typing import Final

DEADLINE_S: Final = 30.0


async def until(condition: Callable[[], bool], timeout_s: float = DEADLINE_S) -> None:
    """Return once it is so. Raises AssertionError when it is not in time."""
    end = time.monotonic() + timeout_s
    while not condition():
        assert time.monotonic() < end, f"it was not so within {timeout_s:g} s"
        await asyncio.sleep(0.01)
