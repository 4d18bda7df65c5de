"""The OCI process object of an exec, given to the OCI runtime by a pipe that ends when we say.

crun's exec takes no heed of ``oomScoreAdj``: the process has what crun itself had when it forked,
and that is ours, which a unit file may have set so that it is never killed. So crun is given the
score, and the last byte of the object only after it: it cannot have forked before. Nothing is left
on disk, and a runtime whose starter was killed in between ends at the cut object.
"""

from __future__ import annotations

import fcntl
import json
import os
from contextlib import suppress
from typing import Final

from noderuntime.errors import HostError
from noderuntime.host import oom
from noderuntime.host.ports import ExecRequest


class ProcessPipe:
    """Holds the object of one exec; ``descriptor`` is what the runtime reads it from."""

    def __init__(self, request: ExecRequest) -> None:
        """Write all but the last byte. Raises HostError for one that no pipe here can hold."""
        process = {**oom.clamp(request.process, oom.floor()), "terminal": request.terminal}
        data = json.dumps(process).encode()
        score = request.process.get("oomScoreAdj")
        self._score: Final = score if isinstance(score, int) else 0
        self._last: Final = data[-1:]
        self.descriptor, self._write = os.pipe()
        try:
            _fill(self._write, data[:-1])
        except BaseException:
            self.close()
            raise

    def let_go(self, pid: int) -> None:
        """Give the runtime the score of the process, then the rest of the object."""
        oom.inherit(pid, self._score)
        with suppress(BrokenPipeError):  # it has ended already, and says why
            os.write(self._write, self._last)
        os.close(self._write)
        self._write = -1

    def close(self) -> None:
        """Close what is open."""
        os.close(self.descriptor)
        if self._write >= 0:
            os.close(self._write)


def _fill(descriptor: int, data: bytes) -> None:
    """Write what nobody reads yet: the pipe must be large enough."""
    os.set_blocking(descriptor, False)
    written = 0
    with suppress(BlockingIOError, PermissionError):
        if len(data) >= fcntl.fcntl(descriptor, fcntl.F_GETPIPE_SZ):
            enlarge(descriptor, len(data) + 1)
        written = os.write(descriptor, data)
    if written < len(data):
        raise HostError(
            f"the process to run is {len(data) + 1} bytes with its arguments and environment, more "
            "than /proc/sys/fs/pipe-max-size lets this node hand over"
        )


def enlarge(descriptor: int, size: int) -> None:
    """Let a pipe hold ``size`` bytes; PermissionError past the machine's bound."""
    fcntl.fcntl(descriptor, fcntl.F_SETPIPE_SZ, size)
