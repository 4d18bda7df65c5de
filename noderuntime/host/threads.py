"""Blocking calls off the event loop: a bounded, named pool, and threads that die after one call.

A thread that entered another namespace never serves anything else: it ends with its call.
"""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from typing import ParamSpec, TypeVar

P = ParamSpec("P")
T = TypeVar("T")

POOL = ThreadPoolExecutor(max_workers=8, thread_name_prefix="host")


async def in_pool(function: Callable[P, T], *args: P.args, **kwargs: P.kwargs) -> T:
    """Run a blocking call in the pool of the host part; a cancel does not stop the call itself."""
    loop = asyncio.get_running_loop()
    return await loop.run_in_executor(POOL, partial(function, *args, **kwargs))


async def in_own_thread(function: Callable[P, T], *args: P.args, **kwargs: P.kwargs) -> T:
    """Run a call in a thread that dies after it, as setns(2) and unshare(2) need.

    The call is waited for even when the caller is cancelled, so that what it made can be undone.
    """
    loop = asyncio.get_running_loop()
    result: asyncio.Future[T] = loop.create_future()

    def settle(value: T | None, error: BaseException | None) -> None:
        if error is not None:
            result.set_exception(error)
        else:
            result.set_result(value)  # type: ignore[arg-type]  # T may itself be None

    def body() -> None:
        value: T | None = None
        error: BaseException | None = None
        try:
            value = function(*args, **kwargs)
        except BaseException as caught:  # noqa: BLE001  # handed to the caller, whatever it is
            error = caught
        loop.call_soon_threadsafe(settle, value, error)

    threading.Thread(target=body, name="host-once", daemon=True).start()
    try:
        return await asyncio.shield(result)
    except asyncio.CancelledError:
        await asyncio.wait({result})
        if not result.cancelled():
            result.exception()  # seen: the cancel is what the caller gets
        raise
