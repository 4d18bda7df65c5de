"""Waiting for something to be so, with a deadline; never a bare sleep in a test."""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import Final, TypeVar

T = TypeVar("T")
PAUSE_S: Final = 0.1


class NotInTimeError(AssertionError):
    """What was waited for did not come; the text has the last that was seen."""


def wait_for(what: str, probe: Callable[[], T | None], limit_s: float = 60) -> T:
    """Call `probe` until it answers something true, and return that.

    An AssertionError or OSError of the probe means "not yet"; the last one is told at the end.
    """
    deadline = time.monotonic() + limit_s
    last = ""
    while True:
        try:
            found = probe()
        except (AssertionError, OSError) as error:
            last = f"; last: {error}"
        else:
            if found:
                return found
        if time.monotonic() > deadline:
            raise NotInTimeError(f"{what}: not within {limit_s:.0f} s{last}")
        time.sleep(PAUSE_S)
