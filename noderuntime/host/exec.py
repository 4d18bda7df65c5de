"""``RUNTIME exec``: a process beside the container's own, on pipes or on a terminal.

The runtime stays in the foreground as the process' parent, so its exit code is the process'. The
process object is passed as a memory file: nothing is left on disk.
"""

from __future__ import annotations

import asyncio
import json
import os
import signal
import subprocess
from collections.abc import AsyncIterator, Sequence
from contextlib import ExitStack
from typing import Final

from noderuntime.errors import DeadlineExceededError, HostError
from noderuntime.host import oom, pids, pipes
from noderuntime.host.ports import ExecRequest, ExecResult, OciRuntime
from noderuntime.host.process import Child, Streams, nonblocking_pipe, spawn
from noderuntime.host.syscalls import host_error
from noderuntime.host.terminal import LARGEST, ExecCommand, Terminal, open_terminal
from noderuntime.host.threads import in_pool

OUTPUT_LIMIT_BYTES: Final = 16 * 1024 * 1024
DRAIN_S: Final = 1.0  # output of what the process left behind is awaited that long after its end


class RuntimeExecStream:
    """The ``ExecStream`` of ports.py."""

    def __init__(
        self,
        child: Child,
        outputs: Sequence[tuple[int, pipes.Owned]],
        stdin: pipes.Owned | None,
        *,
        terminal: Terminal | None = None,
    ) -> None:
        """``outputs``: what is read, and as which stream it is given on."""
        self._child = child
        self._outputs = tuple(outputs)
        self._stdin = stdin
        self._terminal = terminal
        self._is_stdin_open = stdin is not None
        self._drained: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        child.when_ended(self._start_draining)

    def _start_draining(self) -> None:
        asyncio.get_running_loop().call_later(DRAIN_S, self._end_draining)

    def _end_draining(self) -> None:
        if not self._drained.done():
            self._drained.set_result(None)

    async def __aiter__(self) -> AsyncIterator[tuple[int, bytes]]:
        """Yield output; ends at the end of both, or shortly after the process' own end."""
        live = list(self._outputs)
        while live := [(number, output) for number, output in live if output.is_open]:
            got = False
            for item in tuple(live):
                number, output = item
                if not output.is_open:
                    continue
                with output.use() as descriptor:
                    data = pipes.read_now(descriptor)
                if data == b"":
                    live.remove(item)
                elif data is not None:
                    got = True
                    yield number, data
            if live and not got:
                if self._drained.done():
                    return
                await self._wait_output([output for _, output in live])

    async def _wait_output(self, live: Sequence[pipes.Owned]) -> None:
        with ExitStack() as stack:
            descriptors = [stack.enter_context(output.use()) for output in live if output.is_open]
            until = [self._drained, *(output.closed for output in live)]
            await pipes.wait_ready(readable=descriptors, until=until)

    async def write(self, data: bytes) -> None:
        """Write to stdin; raises HostError when the process does not read any more."""
        if self._stdin is None or not self._is_stdin_open or not self._stdin.is_open:
            raise HostError("stdin of this session is closed")
        try:
            with self._stdin.use() as descriptor:
                await pipes.write(descriptor, data, (self._stdin.closed,))
        except OSError as error:
            what = "the process does not take input any more"
            raise host_error(what, error.errno or 0) from error

    async def close_stdin(self) -> None:
        """Half-close. A terminal has no half: it gets the end-of-file character."""
        if self._stdin is None or not self._is_stdin_open:
            return
        if self._terminal is not None:
            await self.write(b"\x04")
            self._is_stdin_open = False
            return
        self._is_stdin_open = False
        self._stdin.close()

    async def resize(self, width: int, height: int) -> None:
        """Set the terminal's size; nothing without one."""
        if self._terminal is not None and 0 < width <= LARGEST and 0 < height <= LARGEST:
            self._terminal.resize(self._child, width, height)

    async def wait(self) -> int:
        """Wait for the process and return its exit code."""
        return await self._child.wait()

    async def close(self) -> None:
        """Kill what is left and let go; again is nothing."""
        try:
            await kill_tree(self._child)
        finally:
            for owned in (*(o for _, o in self._outputs), *((self._stdin,) if self._stdin else ())):
                owned.close()


async def kill_tree(child: Child) -> None:
    """SIGKILL the process inside with what it started, then the runtime; wait for its end."""
    if child.exit_code is not None:
        return
    child.signal(signal.SIGSTOP)  # so that its children keep their parent while they are looked for
    try:
        pids.kill(await in_pool(pids.tree, child.pid))
    finally:
        child.signal(signal.SIGKILL)
        await child.wait()


class RuntimeExec:
    """The ``Exec`` of ports.py."""

    async def open(self, runtime: OciRuntime, request: ExecRequest) -> RuntimeExecStream:
        """Start the process; raises HostError when the runtime cannot be started."""
        with ExitStack() as ours, ExitStack() as theirs:
            process = _process_file(request)
            theirs.callback(os.close, process)
            command = ExecCommand(
                prefix=(str(runtime.binary), *runtime.global_arguments(), "exec"),
                suffix=(f"--process=/proc/self/fd/{process}", request.container_id),
                pass_fds=(process,),
            )
            if not request.terminal:
                return _open_pipes(command, request, ours, theirs)
            child, terminal, outputs = await open_terminal(command, runtime)
        stdin = terminal.owned if request.stdin else None
        return RuntimeExecStream(child, outputs, stdin, terminal=terminal)

    async def sync(self, runtime: OciRuntime, request: ExecRequest, timeout_s: float) -> ExecResult:
        """Run to the end; past ``timeout_s`` (0 = none) it is killed: DeadlineExceededError."""
        stream = await self.open(runtime, request)
        outputs = {2: bytearray(), 3: bytearray()}
        try:
            async with asyncio.timeout(timeout_s or None):
                async for number, data in stream:
                    room = OUTPUT_LIMIT_BYTES - len(outputs[number])
                    outputs[number] += data[: max(0, room)]
                code = await stream.wait()
        except TimeoutError as error:
            raise DeadlineExceededError(
                f"command in container {request.container_id} did not finish within {timeout_s:g} s"
            ) from error
        finally:
            await stream.close()
        return ExecResult(stdout=bytes(outputs[2]), stderr=bytes(outputs[3]), exit_code=code)


def _process_file(request: ExecRequest) -> int:
    process = {**oom.clamp(request.process, oom.floor()), "terminal": request.terminal}
    descriptor = os.memfd_create("process.json", os.MFD_CLOEXEC)
    with os.fdopen(os.dup(descriptor), "wb") as file:
        file.write(json.dumps(process).encode())
    return descriptor


def _open_pipes(
    command: ExecCommand, request: ExecRequest, ours: ExitStack, theirs: ExitStack
) -> RuntimeExecStream:
    def pipe(our_end: int) -> tuple[int, int]:
        ends = nonblocking_pipe(ours=our_end)
        ours.callback(os.close, ends[our_end])
        theirs.callback(os.close, ends[1 - our_end])
        return ends[our_end], ends[1 - our_end]

    stdin_w, stdin_r = pipe(1) if request.stdin else (None, subprocess.DEVNULL)
    stdout_r, stdout_w = pipe(0)
    stderr_r, stderr_w = pipe(0)
    streams = Streams(stdin=stdin_r, stdout=stdout_w, stderr=stderr_w, pass_fds=command.pass_fds)
    child = spawn((*command.prefix, *command.suffix), streams)
    ours.pop_all()
    outputs = ((2, pipes.Owned(stdout_r)), (3, pipes.Owned(stderr_r)))
    stdin = pipes.Owned(stdin_w) if stdin_w is not None else None
    return RuntimeExecStream(child, outputs, stdin)
