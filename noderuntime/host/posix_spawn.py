"""posix_spawn(3) through libc, since Python's own start of a program stops the whole process meanwhile.

``subprocess`` and ``os.posix_spawn`` hold the interpreter's lock until the child has called exec, which
takes a millisecond on an idle machine and many on a busy one: no RPC is answered in that time. A call
through ctypes lets the lock go. The child gets 0, 1, 2, then from 3 on what it is passed, and nothing
else (closefrom), a session of its own, no blocked signal, and SIGPIPE, which Python ignores, as it was.
"""

from __future__ import annotations

import ctypes
import fcntl
import os
import signal
from collections.abc import Mapping, Sequence
from contextlib import ExitStack, suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Final

from noderuntime.host.syscalls import host_error

_SETSIGDEF: Final = 0x04
_SETSIGMASK: Final = 0x08
_SETSID: Final = 0x80
# Larger than spawn.h's posix_spawnattr_t (336) and posix_spawn_file_actions_t (80) anywhere.
_OPAQUE_BYTES: Final = 1024
_SIGSET_BYTES: Final = 128

_libc = ctypes.CDLL(None)


def is_there() -> bool:
    """Tell whether libc has all that is needed: glibc 2.34."""
    return hasattr(_libc, "posix_spawn_file_actions_addclosefrom_np")


@dataclass(slots=True)
class Spawned:
    """A child of ours, as ``subprocess.Popen`` shows one."""

    pid: int
    returncode: int | None = field(default=None)

    def poll(self) -> int | None:
        """Collect it if it has ended; -N for signal N."""
        if self.returncode is None:
            pid, status = os.waitpid(self.pid, os.WNOHANG)
            if pid == self.pid:
                self.returncode = os.waitstatus_to_exitcode(status)
        return self.returncode


def spawn(
    argv: Sequence[str], descriptors: Sequence[int], env: Mapping[str, str], cwd: Path | None
) -> Spawned:
    """Start ``argv[0]``, a path; ``descriptors`` become 0, 1, 2, 3... Blocking. Raises HostError."""
    with ExitStack() as stack:
        sources = [_out_of_the_way(each, len(descriptors), stack) for each in descriptors]
        return _spawn(argv, sources, env, cwd)


def _out_of_the_way(descriptor: int, amount: int, stack: ExitStack) -> int:
    """Return a copy where the child's own numbers would hide it, or where dup2 would do nothing."""
    if descriptor >= amount:
        return descriptor
    copy = fcntl.fcntl(descriptor, fcntl.F_DUPFD_CLOEXEC, amount)
    stack.callback(os.close, copy)
    return copy


def _spawn(
    argv: Sequence[str], sources: Sequence[int], env: Mapping[str, str], cwd: Path | None
) -> Spawned:
    actions = ctypes.create_string_buffer(_OPAQUE_BYTES)
    attributes = ctypes.create_string_buffer(_OPAQUE_BYTES)
    _check(_libc.posix_spawn_file_actions_init(actions), argv[0])
    _check(_libc.posix_spawnattr_init(attributes), argv[0])
    try:
        _describe(actions, attributes, sources, cwd, argv[0])
        pid = ctypes.c_int()
        result = _libc.posix_spawn(
            ctypes.byref(pid),
            os.fsencode(argv[0]),
            actions,
            attributes,
            _strings(argv),
            _strings([f"{name}={value}" for name, value in env.items()]),
        )
        _check(result, argv[0])
    finally:
        _libc.posix_spawn_file_actions_destroy(actions)
        _libc.posix_spawnattr_destroy(attributes)
    return Spawned(pid.value)


def _describe(
    actions: ctypes.Array[ctypes.c_char],
    attributes: ctypes.Array[ctypes.c_char],
    sources: Sequence[int],
    cwd: Path | None,
    name: str,
) -> None:
    for target, descriptor in enumerate(sources):
        _check(_libc.posix_spawn_file_actions_adddup2(actions, descriptor, target), name)
    if is_there():  # else what is not for children is closed by its flag, as Python opens all
        _check(_libc.posix_spawn_file_actions_addclosefrom_np(actions, len(sources)), name)
    if cwd is not None:
        path = os.fsencode(cwd)
        _check(_libc.posix_spawn_file_actions_addchdir_np(actions, path), name)
    flags = ctypes.c_short(_SETSIGDEF | _SETSIGMASK | _SETSID)
    _check(_libc.posix_spawnattr_setflags(attributes, flags), name)
    signals = ctypes.create_string_buffer(_SIGSET_BYTES)
    _libc.sigemptyset(signals)
    _check(_libc.posix_spawnattr_setsigmask(attributes, signals), name)
    for number in (signal.SIGPIPE, signal.SIGXFSZ):
        _libc.sigaddset(signals, int(number))
    _check(_libc.posix_spawnattr_setsigdefault(attributes, signals), name)


def _strings(values: Sequence[str]) -> ctypes.Array[ctypes.c_char_p]:
    return (ctypes.c_char_p * (len(values) + 1))(*map(os.fsencode, values), None)


def _check(code: int, name: str) -> None:
    if code:  # posix_spawn and its kin return the error number
        raise host_error(f"cannot start {name}", code)


def forget(spawned: Spawned) -> None:
    """Kill and collect one that nobody waits for any more. Blocking."""
    with suppress(ProcessLookupError):
        os.killpg(spawned.pid, signal.SIGKILL)
    os.waitpid(spawned.pid, 0)
