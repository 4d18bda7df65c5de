"""A terminal for an exec, from the runtime's console socket or made by us.

crun sends the terminal that it made inside over ``--console-socket`` and stays in the foreground;
its own copying between two terminals does not follow a resize (1.8.1). runc takes a console socket
only where it detaches, and copies between ours and its own, following SIGWINCH.
"""

from __future__ import annotations

import asyncio
import fcntl
import os
import secrets
import signal
import socket
import struct
import termios
from collections.abc import Callable
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from noderuntime.errors import DeadlineExceededError, HostError
from noderuntime.host import pipes
from noderuntime.host.exec_end import kill_tree
from noderuntime.host.exec_log import ExecLog
from noderuntime.host.oci_runtime import clean_message
from noderuntime.host.ports import OciRuntime
from noderuntime.host.process import Child, Streams, nonblocking_pipe, spawn
from noderuntime.host.syscalls import host_error

LARGEST: Final = 0xFFFF  # a terminal's size is two unsigned shorts
_ACCEPT_TIMEOUT_S: Final = 30.0


@dataclass(frozen=True, slots=True, kw_only=True)
class ExecCommand:
    """``RUNTIME … exec``, then options of a terminal, then the rest.

    ``started`` is called with the PID of what was started, which goes no further until then.
    """

    prefix: tuple[str, ...]
    suffix: tuple[str, ...]
    pass_fds: tuple[int, ...]
    started: Callable[[int], None]


@dataclass(frozen=True, slots=True, kw_only=True)
class Terminal:
    """Our side. ``is_relayed``: the runtime copies to another one and must hear of a resize."""

    owned: pipes.Owned
    is_relayed: bool

    def resize(self, child: Child, width: int, height: int) -> None:
        """TIOCSWINSZ, ioctl_tty(2); nothing once it is closed."""
        if self.owned.is_open:
            with self.owned.use() as descriptor:
                size = struct.pack("HHHH", height, width, 0, 0)
                fcntl.ioctl(descriptor, termios.TIOCSWINSZ, size)
            if self.is_relayed:
                child.signal(signal.SIGWINCH)


Opened = tuple[Child, Terminal, tuple[tuple[int, pipes.Owned], ...]]


async def open_terminal(command: ExecCommand, runtime: OciRuntime, log: ExecLog) -> Opened:
    """Start the exec; returns it, its terminal and what is to be read. Raises HostError."""
    if runtime.binary.name.startswith("runc"):
        return _relayed(command)
    return await _received(command, runtime.root.parent, log)


def _relayed(command: ExecCommand) -> Opened:
    master, slave = os.openpty()
    os.set_blocking(master, False)
    streams = Streams(stdin=slave, stdout=slave, stderr=slave, pass_fds=command.pass_fds)
    try:
        child = spawn((*command.prefix, "--tty", *command.suffix), streams)
        command.started(child.pid)
    except BaseException:
        os.close(master)
        raise
    finally:
        os.close(slave)
    owned = pipes.Owned(master)
    return child, Terminal(owned=owned, is_relayed=True), ((2, owned),)


async def _received(command: ExecCommand, directory: Path, log: ExecLog) -> Opened:
    with ExitStack() as stack, ExitStack() as kept:
        listener, address, folder = _listen(directory, stack)
        errors_r, errors_w = nonblocking_pipe(ours=0)
        kept.callback(os.close, errors_r)
        try:
            child = spawn(
                (*command.prefix, "--tty", f"--console-socket={address}", *command.suffix),
                Streams(stderr=errors_w, pass_fds=(*command.pass_fds, folder)),
            )
            command.started(child.pid)
        finally:
            os.close(errors_w)
        try:
            async with asyncio.timeout(_ACCEPT_TIMEOUT_S):
                master = await _accept(listener, child)
        except BaseException as error:
            await kill_tree(child)
            if isinstance(error, TimeoutError):
                raise DeadlineExceededError("the OCI runtime gave no terminal in time") from error
            raise
        if master is None:
            await child.wait()  # who hears of its end hears the reason
            said = clean_message((pipes.read_now(errors_r) or b"").decode(errors="replace"))
            raise HostError(
                log.failure() or f"exec failed: {said or 'the OCI runtime gave no terminal'}"
            )
        kept.pop_all()
    owned = pipes.Owned(master)
    # What the runtime itself says belongs on the terminal: a session with one has no stderr.
    return child, Terminal(owned=owned, is_relayed=False), ((2, owned), (2, pipes.Owned(errors_r)))


def _listen(directory: Path, stack: ExitStack) -> tuple[socket.socket, str, int]:
    """Bind a socket of a random name; by way of the folder's descriptor its path is short."""
    listener = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM | socket.SOCK_NONBLOCK)
    stack.callback(listener.close)
    try:
        folder = os.open(directory, os.O_PATH | os.O_DIRECTORY | os.O_CLOEXEC)
        stack.callback(os.close, folder)
        name = f".console-{secrets.token_hex(8)}"
        address = f"/proc/self/fd/{folder}/{name}"
        listener.bind(address)
        stack.callback(Path.unlink, directory / name, missing_ok=True)
        (directory / name).chmod(0o600)
        listener.listen(1)
    except OSError as error:
        raise host_error(f"console socket in {directory}", error.errno or 0) from error
    return listener, address, folder


async def _accept(listener: socket.socket, child: Child) -> int | None:
    """Return the terminal's descriptor; None when the runtime ended without sending one."""
    ended: asyncio.Future[None] = asyncio.get_running_loop().create_future()
    child.when_ended(lambda: None if ended.done() else ended.set_result(None))
    await pipes.wait_ready(readable=(listener.fileno(),), until=(ended,))
    try:
        connection, _ = listener.accept()
    except BlockingIOError:
        return None
    with connection:
        connection.setblocking(False)
        await pipes.wait_ready(readable=(connection.fileno(),), until=(ended,))
        try:
            _, descriptors, _, _ = socket.recv_fds(connection, 4096, 1)
        except BlockingIOError:
            return None
    if not descriptors:
        return None
    os.set_blocking(descriptors[0], False)
    os.set_inheritable(descriptors[0], False)
    return descriptors[0]
