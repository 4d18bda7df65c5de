"""Who is starting a container right now, also after the runtime that asked for it was killed.

Between the start of a monitor and its PID file nothing on disk names it. It inherits a lock on
``monitor.lock`` in the bundle, so that a later runtime can tell, and end it.
"""

from __future__ import annotations

import asyncio
import fcntl
import os
import signal
from collections.abc import Sequence
from pathlib import Path
from typing import Final

from noderuntime.errors import HostError
from noderuntime.host import pids
from noderuntime.host.syscalls import host_error
from noderuntime.host.threads import in_pool

_LOCK: Final = "monitor.lock"
_PATIENCE_S: Final = 0.5
_PAUSE_S: Final = 0.01
_END_TIMEOUT_S: Final = 2.0


async def kill_creators(container_id: str, bundle: Path) -> None:
    """Kill a monitor that has not written its PID yet, and the runtime that it had started.

    That is what a runtime finds that was killed in the middle of a create. The lock tells whether
    there still is one, also while it is between vfork and exec; looking through all processes
    costs milliseconds. What holds the lock and is not found is the container's own first process,
    which the OCI runtime and the cgroup know.
    """
    loop = asyncio.get_running_loop()
    give_up = loop.time() + _PATIENCE_S
    while not await in_pool(_is_free, bundle) and loop.time() < give_up:
        for creator in await in_pool(_creators, container_id, bundle):
            handle = pids.open_process(creator.pid, creator.start_ticks)
            if handle is not None:
                handle.signal(signal.SIGKILL)
                await handle.wait_end(_END_TIMEOUT_S)
                handle.close()
            give_up = loop.time() + _PATIENCE_S
        await asyncio.sleep(_PAUSE_S)


def take_lock(bundle: Path) -> int:
    """Return a locked descriptor, which conmon and the runtime's create inherit. flock(2)."""
    flags = os.O_RDWR | os.O_CREAT | os.O_CLOEXEC | os.O_NOFOLLOW
    descriptor = os.open(bundle / _LOCK, flags, 0o600)
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError as error:
        os.close(descriptor)
        raise host_error(f"another monitor is at {bundle}", error.errno or 0) from error
    return descriptor


def _is_free(bundle: Path) -> bool:
    try:
        os.close(take_lock(bundle))
    except HostError:
        return False
    return True


def _creators(container_id: str, bundle: Path) -> list[pids.Stat]:
    return [
        stat
        for stat in pids.all_stats()
        if stat.state != "Z" and _creates(pids.command_line(stat.pid), container_id, bundle)
    ]


def _creates(arguments: Sequence[str], container_id: str, bundle: Path) -> bool:
    return f"--cid={container_id}" in arguments or (
        "create" in arguments and str(bundle) in arguments and container_id in arguments
    )
