"""Which names appear in a folder, by inotify(7), without a thread."""

from __future__ import annotations

from collections.abc import AsyncIterator
from pathlib import Path

from inotify_simple import INotify, flags

from noderuntime.host.pipes import wait_ready


def renamed_into(directory: Path) -> AsyncIterator[str | None]:
    """Yield the name of each file that is renamed into ``directory`` from this call on.

    None means that the kernel's queue ran over: look at the whole folder.
    """
    inotify = INotify(nonblocking=True)
    try:
        inotify.add_watch(directory, flags.MOVED_TO | flags.ONLYDIR)
    except BaseException:
        inotify.close()
        raise
    return _names(inotify)


async def _names(inotify: INotify) -> AsyncIterator[str | None]:
    try:
        while True:
            await wait_ready(readable=(inotify.fileno(),))
            for event in inotify.read(timeout=0):
                yield None if event.mask & flags.Q_OVERFLOW else str(event.name)
    finally:
        inotify.close()
