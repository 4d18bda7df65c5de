"""Running a service until SIGTERM or SIGINT, and telling systemd when it is ready.

Source: sd_notify(3), whose protocol is one datagram to the socket named by NOTIFY_SOCKET.
"""

from __future__ import annotations

import asyncio
import logging
import os
import signal
import socket
from contextlib import suppress
from typing import TYPE_CHECKING, cast

from noderuntime.errors import NodeRuntimeError

if TYPE_CHECKING:
    from collections.abc import Coroutine

_log = logging.getLogger(__name__)


def notify(state: str) -> None:
    """Tell systemd, where it asked for it; a lost message is not an error."""
    address = os.environ.get("NOTIFY_SOCKET", "")
    if not address.startswith(("/", "@")):
        return
    if address.startswith("@"):
        address = "\0" + address[1:]
    with (
        suppress(OSError),
        socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM | socket.SOCK_CLOEXEC) as message,
    ):
        message.connect(address)
        message.sendall(state.encode())


async def until_signal(service: Coroutine[object, object, None]) -> None:
    """Run ``service`` to its end, or cancel it at a signal and wait for its cleanup.

    Of several errors at once the first of ours is raised, the others are its notes.
    """
    loop = asyncio.get_running_loop()
    stopped = asyncio.Event()
    for number in (signal.SIGTERM, signal.SIGINT):
        loop.add_signal_handler(number, stopped.set)
    try:
        async with asyncio.TaskGroup() as group:
            task = group.create_task(service, name="service")
            waiter = group.create_task(stopped.wait(), name="signal")
            await asyncio.wait({task, waiter}, return_when=asyncio.FIRST_COMPLETED)
            if stopped.is_set():
                notify("STOPPING=1")
                _log.info("stopping")
                task.cancel()
            waiter.cancel()
    except BaseExceptionGroup as group_of_errors:
        raise first_of(group_of_errors) from group_of_errors
    finally:
        for number in (signal.SIGTERM, signal.SIGINT):
            loop.remove_signal_handler(number)


def first_of(group: BaseExceptionGroup[BaseException]) -> BaseException:
    """Return the first error of ours, else the first; the others are its notes."""
    leaves = _leaves(group)
    chosen = next((error for error in leaves if isinstance(error, NodeRuntimeError)), leaves[0])
    for other in leaves:
        if other is not chosen:
            chosen.add_note(f"and: {type(other).__name__}: {other}")
    return chosen


def _leaves(group: BaseExceptionGroup[BaseException]) -> list[BaseException]:
    found: list[BaseException] = []
    for error in group.exceptions:
        if isinstance(error, BaseExceptionGroup):
            found += _leaves(cast("BaseExceptionGroup[BaseException]", error))
        else:
            found.append(error)
    return found
