"""The OCI process object of an exec, given to the OCI runtime by a pipe that ends when we say.

crun's exec takes no heed of ``oomScoreAdj``: the process has what crun itself had when it forked,
and that is ours, which a unit file may have set so that it is never killed. So crun is given the
score, and the last byte of the object only after it: it cannot have forked before. Nothing is left
on disk, and a runtime whose starter was killed in between ends at the cut object.
"""

from __future__ import annotations

import asyncio
import json
import os
from typing import Final

from noderuntime.host import oom
from noderuntime.host.ports import ExecRequest
from noderuntime.host.process import nonblocking_pipe


class ProcessPipe:
    """Holds the object of one exec; ``descriptor`` is what the runtime reads it from."""

    def __init__(self, request: ExecRequest) -> None:
        """Write what the pipe takes, but for the last byte."""
        process = {**oom.clamp(request.process, oom.floor()), "terminal": request.terminal}
        data = json.dumps(process).encode()
        score = request.process.get("oomScoreAdj")
        self._score: Final = score if isinstance(score, int) else 0
        self.descriptor, self._write = nonblocking_pipe(ours=1)
        self._rest = data[os.write(self._write, data[:-1]) :]

    def let_go(self, pid: int) -> None:
        """Give the runtime the score of the process, then the rest of the object.

        What the pipe cannot take is written as the runtime reads; its end is the end of that too.
        """
        oom.inherit(pid, self._score)
        write, self._write = self._write, -1
        asyncio.get_running_loop().add_writer(write, self._go_on, write)
        self._go_on(write)

    def _go_on(self, write: int) -> None:
        try:
            self._rest = self._rest[os.write(write, self._rest) :]
        except BlockingIOError:
            return
        except BrokenPipeError:  # it has ended, and says why
            self._rest = b""
        if not self._rest:
            asyncio.get_running_loop().remove_writer(write)
            os.close(write)

    def close(self) -> None:
        """Close our copy of the runtime's end, and ours where the runtime was not let go."""
        os.close(self.descriptor)
        if self._write >= 0:
            os.close(self._write)
