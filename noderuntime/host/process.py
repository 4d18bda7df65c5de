"""Starting programs: vfork and exec, waited for through a pidfd, with bounds on time and output.

What needs no descriptor under a number of its own is started by a thread (posix_spawn.py), and the
event loop goes on. For the rest ``subprocess.Popen`` uses vfork(2) as long as no preexec_fn and no user
is given, so that a start does not copy this process' page tables. No thread and no signal handler waits
for a child: a pidfd becomes readable when it ended (pidfd_open(2)).
"""

from __future__ import annotations

import asyncio
import os
import signal
import subprocess
from collections.abc import Callable, Generator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Final, Protocol

from noderuntime.errors import DeadlineExceededError, HostError
from noderuntime.host import pipes, posix_spawn
from noderuntime.host.syscalls import host_error
from noderuntime.host.threads import POOL, in_pool

PATH: Final = "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"
ENVIRONMENT: Final[Mapping[str, str]] = {"PATH": PATH}
DEFAULT_TIMEOUT_S: Final = 60.0
OUTPUT_LIMIT_BYTES: Final = 1024 * 1024
DRAIN_S: Final = 1.0  # how long output of children is awaited after the program itself ended


class Process(Protocol):
    """What ``Popen`` and ``posix_spawn`` give."""

    @property
    def pid(self) -> int:
        """The process."""
        ...

    @property
    def returncode(self) -> int | None:
        """How it ended, -N by signal N; None until ``poll`` saw it."""
        ...

    def poll(self) -> int | None:
        """Collect it if it ended."""
        ...


class Child:
    """A started process. Its exit is collected as soon as it ends, whether or not anyone waits."""

    def __init__(self, process: Process) -> None:
        """Take over the process; must be called in the event loop's thread."""
        self.pid: Final = process.pid
        self._process = process
        self._loop = asyncio.get_running_loop()
        self._pidfd = os.pidfd_open(process.pid)
        self._ended: asyncio.Future[int] = self._loop.create_future()
        self._loop.add_reader(self._pidfd, self._collect)

    def _collect(self) -> None:
        code = self._process.poll()
        if code is None:
            return
        self._loop.remove_reader(self._pidfd)
        os.close(self._pidfd)
        if not self._ended.done():
            self._ended.set_result(code)

    @property
    def exit_code(self) -> int | None:
        """128+N for signal N; None while it runs."""
        code = self._process.returncode
        return 128 - code if code is not None and code < 0 else code

    async def wait(self) -> int:
        """Wait for the end and return ``exit_code``; may be cancelled and called again."""
        code = await asyncio.shield(self._ended)
        return 128 - code if code < 0 else code

    def when_ended(self, callback: Callable[[], None]) -> None:
        """Call ``callback`` in the event loop once the process ended."""
        self._ended.add_done_callback(lambda _: callback())

    def signal(self, number: int, *, group: bool = False) -> None:
        """Signal the process, or its whole group where it was started as a leader."""
        if self._process.returncode is not None:
            return  # collected: the number may be somebody else's
        with suppress(ProcessLookupError):
            if group:
                os.killpg(self.pid, number)
            else:
                os.kill(self.pid, number)


@dataclass(frozen=True, slots=True, kw_only=True)
class Streams:
    """What a child gets as 0, 1 and 2 and which other descriptors stay open in it."""

    stdin: int = subprocess.DEVNULL
    stdout: int = subprocess.DEVNULL
    stderr: int = subprocess.DEVNULL
    pass_fds: tuple[int, ...] = ()


def spawn(
    argv: Sequence[str],
    streams: Streams,
    *,
    env: Mapping[str, str] = ENVIRONMENT,
    cwd: Path | None = None,
) -> Child:
    """Start ``argv`` as the leader of a session of its own; raises HostError if it cannot be."""
    try:
        process = subprocess.Popen(
            list(argv),
            stdin=streams.stdin,
            stdout=streams.stdout,
            stderr=streams.stderr,
            pass_fds=streams.pass_fds,
            env=dict(env),
            cwd=cwd,
            start_new_session=True,
        )
    except OSError as error:
        raise host_error(f"cannot start {argv[0]}", error.errno or 0) from error
    return Child(process)


async def spawn_aside(
    argv: Sequence[str],
    descriptors: Sequence[int],
    *,
    env: Mapping[str, str] = ENVIRONMENT,
    cwd: Path | None = None,
) -> Child:
    """Start ``argv``, with the event loop going on meanwhile; ``descriptors`` become 0, 1, 2, 3...

    Raises HostError. When it is cancelled, the process is killed.
    """
    starting = asyncio.get_running_loop().run_in_executor(
        POOL, posix_spawn.spawn, argv, descriptors, env, cwd
    )
    try:
        return Child(await asyncio.shield(starting))
    except asyncio.CancelledError:
        await asyncio.wait([starting])
        if starting.exception() is None:
            await in_pool(posix_spawn.forget, starting.result())
        raise


@dataclass(frozen=True, slots=True, kw_only=True)
class Command:
    """A program that is run to its end. Output past ``output_limit_bytes`` is dropped."""

    argv: tuple[str, ...]
    stdin: bytes = b""
    env: Mapping[str, str] = field(default_factory=lambda: dict(ENVIRONMENT))
    cwd: Path | None = None
    timeout_s: float = DEFAULT_TIMEOUT_S
    output_limit_bytes: int = OUTPUT_LIMIT_BYTES
    pass_fds: tuple[int, ...] = ()

    @property
    def name(self) -> str:
        """The program without its folder, for messages."""
        return Path(self.argv[0]).name


@dataclass(frozen=True, slots=True, kw_only=True)
class Output:
    """How a program ended; ``exit_code`` is 128+N for signal N."""

    exit_code: int
    stdout: bytes
    stderr: bytes

    def last_line(self) -> str:
        """Return the last line of stderr (else of stdout) that is not empty."""
        for stream in (self.stderr, self.stdout):
            lines = [line.strip() for line in stream.decode(errors="replace").splitlines()]
            if last := next((line for line in reversed(lines) if line), ""):
                return last
        return ""


async def collect(descriptor: int, limit_bytes: int, into: bytearray) -> None:
    """Read to the end, keeping the first ``limit_bytes``; the rest is read and dropped."""
    while data := await pipes.read(descriptor):
        room = limit_bytes - len(into)
        if room > 0:
            into += data[:room]


async def feed(descriptor: int, data: bytes) -> None:
    """Write and close; a program that does not read its input is no error."""
    try:
        with suppress(BrokenPipeError):
            await pipes.write(descriptor, data)
    finally:
        os.close(descriptor)


@contextmanager
def null() -> Generator[int]:
    """Give a descriptor of /dev/null, for a child."""
    descriptor = os.open(os.devnull, os.O_RDWR | os.O_CLOEXEC)
    try:
        yield descriptor
    finally:
        os.close(descriptor)


def nonblocking_pipe(*, ours: int) -> tuple[int, int]:
    """Return (read, write) of a pipe whose end number ``ours`` (0 or 1) does not block."""
    ends = os.pipe()
    os.set_blocking(ends[ours], False)
    return ends


async def run(command: Command) -> Output:
    """Run to the end. On cancel and past ``timeout_s`` the whole process group is killed.

    Raises HostError when it cannot be started, DeadlineExceededError past the time.
    """
    stdin_r, stdin_w = nonblocking_pipe(ours=1)
    stdout_r, stdout_w = nonblocking_pipe(ours=0)
    stderr_r, stderr_w = nonblocking_pipe(ours=0)
    try:
        child = await _start(command, (stdin_r, stdout_w, stderr_w))
    except BaseException:
        for descriptor in (stdin_w, stdout_r, stderr_r):
            os.close(descriptor)
        raise
    finally:
        for descriptor in (stdin_r, stdout_w, stderr_w):
            os.close(descriptor)
    try:
        return await _communicate(child, command, (stdin_w, stdout_r, stderr_r))
    finally:
        os.close(stdout_r)
        os.close(stderr_r)


async def _start(command: Command, standard: tuple[int, int, int]) -> Child:
    is_path = "/" in command.argv[0]
    if command.pass_fds or not is_path or not posix_spawn.is_there():
        stdin, stdout, stderr = standard
        streams = Streams(stdin=stdin, stdout=stdout, stderr=stderr, pass_fds=command.pass_fds)
        return spawn(command.argv, streams, env=command.env, cwd=command.cwd)
    return await spawn_aside(command.argv, standard, env=command.env, cwd=command.cwd)


async def _communicate(child: Child, command: Command, ends: tuple[int, int, int]) -> Output:
    stdin_w, stdout_r, stderr_r = ends
    stdout, stderr = bytearray(), bytearray()
    limit = command.output_limit_bytes
    async with asyncio.TaskGroup() as tasks:
        feeder = tasks.create_task(feed(stdin_w, command.stdin))
        readers = (
            tasks.create_task(collect(stdout_r, limit, stdout)),
            tasks.create_task(collect(stderr_r, limit, stderr)),
        )
        try:
            async with asyncio.timeout(command.timeout_s):
                code = await child.wait()
        except TimeoutError:
            await _kill(child)
            for task in readers:
                task.cancel()
            code = -1
        except BaseException:
            await _kill(child)
            raise
        # A daemon that the program left behind may hold its pipes for ever.
        await asyncio.wait(readers, timeout=DRAIN_S)
        for task in (feeder, *readers):
            task.cancel()
    if code == -1:
        raise DeadlineExceededError(
            f"{command.name} did not finish within {command.timeout_s:g} s and was killed"
        )
    return Output(exit_code=code, stdout=bytes(stdout), stderr=bytes(stderr))


async def _kill(child: Child) -> None:
    child.signal(signal.SIGKILL, group=True)
    await child.wait()


async def run_checked(command: Command) -> Output:
    """Run to the end; a status other than 0 is a HostError with the program's own last line."""
    output = await run(command)
    if output.exit_code != 0:
        said = output.last_line() or "it said nothing"
        raise HostError(f"{command.name} failed with status {output.exit_code}: {said}")
    return output
