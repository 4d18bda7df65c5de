"""Which names appear in a folder, by inotify(7), without a thread."""

from __future__ import annotations

import weakref
from collections import deque
from collections.abc import Sequence
from pathlib import Path
from types import TracebackType
from typing import Protocol, Self, cast

from inotify_simple import INotify, flags

from noderuntime.host.pipes import Owned, wait_ready


class _Event(Protocol):
    @property
    def mask(self) -> int: ...
    @property
    def name(self) -> str: ...


class _Watch(Protocol):
    """What is used of INotify, which has no types."""

    def add_watch(self, path: Path, mask: int) -> int: ...
    def read(self, *, timeout: int) -> Sequence[_Event]: ...
    def fileno(self) -> int: ...
    def close(self) -> None: ...


class Renames:
    """Yields the name of each file that is renamed into a folder, from the construction on.

    None means that the kernel's queue ran over: look at the whole folder.
    """

    def __init__(self, directory: Path) -> None:
        """Begin to watch; must be called in the event loop. Raises OSError."""
        self._inotify = cast("_Watch", INotify(nonblocking=True))
        # Also where nobody ever iterated, as an async generator's own end would not be run then.
        weakref.finalize(self, self._inotify.close)
        self._inotify.add_watch(directory, flags.MOVED_TO | flags.ONLYDIR)
        self._owned = Owned(self._inotify.fileno(), self._inotify.close)
        self._names: deque[str | None] = deque()

    def __aiter__(self) -> Self:
        """Iterate; there is one place in it, whoever asks."""
        return self

    async def __anext__(self) -> str | None:
        """Wait for the next name."""
        while not self._names:
            if not self._owned.is_open:
                raise StopAsyncIteration
            with self._owned.use() as descriptor:
                await wait_ready(readable=(descriptor,), until=(self._owned.closed,))
                if self._owned.is_open:
                    self._read()
        return self._names.popleft()

    def _read(self) -> None:
        for event in self._inotify.read(timeout=0):
            self._names.append(None if event.mask & flags.Q_OVERFLOW else event.name)

    def close(self) -> None:
        """End the watch."""
        self._owned.close()

    def __enter__(self) -> Self:
        """Close at the end of the block."""
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        """Close."""
        self.close()
