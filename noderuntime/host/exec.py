"""``RUNTIME exec``: a process beside the container's own, on pipes or on a terminal.

The runtime stays in the foreground as the process' parent, so its exit code is the process'.
"""

from __future__ import annotations

import asyncio
import fcntl
import os
from collections.abc import AsyncIterator, Sequence
from contextlib import ExitStack, suppress
from typing import Final

from noderuntime.errors import DeadlineExceededError, HostError
from noderuntime.host import pipes
from noderuntime.host.exec_end import kill_tree, sweep
from noderuntime.host.exec_log import ExecLog, log_arguments
from noderuntime.host.exec_process import ProcessPipe
from noderuntime.host.ports import ExecRequest, ExecResult, OciRuntime
from noderuntime.host.process import Child, nonblocking_pipe, null, spawn_aside
from noderuntime.host.syscalls import host_error
from noderuntime.host.terminal import LARGEST, ExecCommand, Terminal, open_terminal

OUTPUT_LIMIT_BYTES: Final = 16 * 1024 * 1024
PIPE_BYTES: Final = (
    256 * 1024
)  # four reads for one wakeup; the kernel takes it only as it is filled
STDOUT: Final = 2
STDERR: Final = 3
DRAIN_S: Final = 1.0  # output of what the process left behind is awaited that long after its end


class RuntimeExecStream:
    """The ``ExecStream`` of ports.py."""

    def __init__(
        self,
        child: Child,
        outputs: Sequence[tuple[int, pipes.Owned]],
        stdin: pipes.Owned | None,
        log: ExecLog,
        *,
        terminal: Terminal | None = None,
    ) -> None:
        """``outputs``: what is read, and as which stream it is given on. Owns ``log``."""
        self._child = child
        self._outputs = tuple(outputs)
        self._stdin = stdin
        self._log = log
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
                    # What the runtime says of its own failure comes with ``wait``.
                    if not (number == STDERR and self._log.failure()):
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
        """Wait for the process and return its exit code; HostError when it was not started."""
        code = await self._child.wait()
        if code and (failure := self._log.failure()):
            raise HostError(failure)
        return code

    async def close(self) -> None:
        """Kill what is left and let go; again is nothing."""
        try:
            await kill_tree(self._child)
        finally:
            for owned in (*(o for _, o in self._outputs), *((self._stdin,) if self._stdin else ())):
                owned.close()
            self._log.close()


class RuntimeExec:
    """The ``Exec`` of ports.py."""

    async def open(self, runtime: OciRuntime, request: ExecRequest) -> RuntimeExecStream:
        """Start the process; raises HostError when the runtime cannot be started."""
        with ExitStack() as ours, ExitStack() as theirs:
            process = ProcessPipe(request)
            theirs.callback(process.close)
            log = ExecLog()
            ours.callback(log.close)
            # Without a terminal they become 3 and 4 in the child.
            numbers = (process.descriptor, log.descriptor) if request.terminal else (3, 4)
            command = ExecCommand(
                prefix=(
                    str(runtime.program),
                    *(*runtime.global_arguments(), *log_arguments(numbers[1]), "exec"),
                ),
                suffix=(f"--process=/proc/self/fd/{numbers[0]}", request.container_id),
                pass_fds=(process.descriptor, log.descriptor),
                started=process.let_go,
            )
            if not request.terminal:
                return await _open_pipes(command, request, log, ours, theirs)
            child, terminal, outputs = await open_terminal(command, runtime, log)
            ours.pop_all()
        stdin = terminal.owned if request.stdin else None
        return RuntimeExecStream(child, outputs, stdin, log, terminal=terminal)

    async def sync(self, runtime: OciRuntime, request: ExecRequest, timeout_s: float) -> ExecResult:
        """Run to the end; past ``timeout_s`` (0 = none) it is killed: DeadlineExceededError."""
        stream = await self.open(runtime, request)
        outputs = {STDOUT: bytearray(), STDERR: bytearray()}
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
        return ExecResult(
            stdout=bytes(outputs[STDOUT]), stderr=bytes(outputs[STDERR]), exit_code=code
        )

    async def sweep(self, runtime: OciRuntime) -> None:
        """Kill the execs that an earlier run of ours left behind; nobody holds their streams."""
        await sweep(runtime)


async def _open_pipes(
    command: ExecCommand, request: ExecRequest, log: ExecLog, ours: ExitStack, theirs: ExitStack
) -> RuntimeExecStream:
    def pipe(our_end: int) -> tuple[int, int]:
        ends = nonblocking_pipe(ours=our_end)
        with suppress(OSError):  # a bound of the machine's is no reason to fail
            fcntl.fcntl(ends[0], fcntl.F_SETPIPE_SZ, PIPE_BYTES)
        ours.callback(os.close, ends[our_end])
        theirs.callback(os.close, ends[1 - our_end])
        return ends[our_end], ends[1 - our_end]

    stdin_w, stdin_r = pipe(1) if request.stdin else (None, theirs.enter_context(null()))
    stdout_r, stdout_w = pipe(0)
    stderr_r, stderr_w = pipe(0)
    descriptors = (stdin_r, stdout_w, stderr_w, *command.pass_fds)
    child = await spawn_aside((*command.prefix, *command.suffix), descriptors)
    command.started(child.pid)
    ours.pop_all()
    outputs = ((STDOUT, pipes.Owned(stdout_r)), (STDERR, pipes.Owned(stderr_r)))
    stdin = pipes.Owned(stdin_w) if stdin_w is not None else None
    return RuntimeExecStream(child, outputs, stdin, log)
