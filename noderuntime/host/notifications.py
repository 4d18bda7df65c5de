"""System calls that wait for an answer: what a seccomp filter with SCMP_ACT_NOTIFY hands over.

A ``Listener`` is one loaded filter: of a container's first process and all that descend from it, or
of an exec and its descendants. A ``Handover`` takes it from an OCI runtime. A call that is received
must be answered; while nobody answers it waits, and when the listener is closed (also by the death
of its owner) it and every later one fail with ENOSYS.

Source: seccomp_unotify(2); linux/seccomp.h; OCI runtime-spec config-linux.md "The Container Process
State"; SECCOMP_USER_NOTIF_FD_SYNC_WAKE_UP is of Linux 6.6.
"""

from __future__ import annotations

import ctypes
import errno
import fcntl
import json
import os
import socket
import struct
from collections.abc import Mapping
from contextlib import suppress
from dataclasses import dataclass
from typing import Any, Final, Literal, NamedTuple, cast

from noderuntime.errors import HostError
from noderuntime.host.seccomp import LIBRARY

_RECEIVE: Final = 0xC0502100  # SECCOMP_IOCTL_NOTIF_RECV
_SEND: Final = 0xC0182101  # SECCOMP_IOCTL_NOTIF_SEND
_SET_FLAGS: Final = 0x40082104  # SECCOMP_IOCTL_NOTIF_SET_FLAGS
_SYNC_WAKE_UP: Final = 1
_CONTINUE: Final = 1  # SECCOMP_USER_NOTIF_FLAG_CONTINUE
_NOTIFICATION: Final = struct.Struct("=QIIiI")  # struct seccomp_notif up to the arch; 80 bytes
_NOTHING: Final = bytes(80)  # the kernel refuses a buffer that is not zero
_RESPONSE: Final = struct.Struct("=QqiI")  # struct seccomp_notif_resp
_LARGEST_STATE: Final = 1 << 20  # bytes; it has config.json's annotations
_PIECE: Final = 64 << 10
_X32_BIT: Final = 0x40000000
_X86_64: Final = 0xC000003E  # AUDIT_ARCH_X86_64, and so libseccomp's token
# libseccomp's tokens by the names that a profile has for them; an AUDIT_ARCH but for X32.
Architecture = Literal["X86_64", "X86", "X32", "AARCH64", "ARM"]
ARCHITECTURES: Final[Mapping[int, Architecture]] = {
    _X86_64: "X86_64",
    0x40000003: "X86",
    0x4000003E: "X32",
    0xC00000B7: "AARCH64",
    0x40000028: "ARM",
}


class Call(NamedTuple):
    """A system call: libseccomp's token of the architecture, and the number there."""

    architecture: int
    number: int


class Notification(NamedTuple):
    """A call that waits. ``thread`` is its ID in the PID namespace of who asks; 0 is none there."""

    id: int
    thread: int
    call: Call


class Listener:
    """One loaded filter. Not for use by several threads."""

    def __init__(self, descriptor: int) -> None:
        """Own the descriptor."""
        self.descriptor: Final = descriptor
        self._buffer = bytearray(len(_NOTHING))
        self._answer = bytearray(_RESPONSE.size)
        with suppress(OSError):  # before Linux 6.6
            # The answer hands the processor to who waits.
            fcntl.ioctl(descriptor, _SET_FLAGS, _SYNC_WAKE_UP)

    def receive(self) -> Notification | None:
        """Return a call that waits; None when it was interrupted meanwhile.

        Only after poll(2) has said that there is one; it would wait else.
        """
        self._buffer[:] = _NOTHING
        try:
            fcntl.ioctl(self.descriptor, _RECEIVE, self._buffer)
        except OSError as error:
            if error.errno in (errno.ENOENT, errno.EINTR):
                return None
            raise HostError(f"no call can be received: {error.strerror}") from error
        cookie, thread, _, number, architecture = _NOTIFICATION.unpack_from(self._buffer)
        if architecture == _X86_64 and number & _X32_BIT:
            architecture = 0x4000003E
        return Notification(cookie, thread, Call(architecture, number))

    def let(self, notification: Notification) -> None:
        """Let the call be done, as if there were no filter; nothing where it is gone."""
        _RESPONSE.pack_into(self._answer, 0, notification.id, 0, 0, _CONTINUE)
        try:
            fcntl.ioctl(self.descriptor, _SEND, self._answer)
        except OSError as error:
            if error.errno != errno.ENOENT:
                raise HostError(f"no call can be answered: {error.strerror}") from error

    def close(self) -> None:
        """Close it: from now on every call that it was told of fails with ENOSYS."""
        os.close(self.descriptor)


@dataclass(frozen=True, slots=True)
class Handed:
    """What an OCI runtime hands over: a filter, and the container that it is of."""

    listener: Listener
    container_id: str
    is_exec: bool


class Handover:
    """What comes over one connection of an OCI runtime: a descriptor and a JSON object, in pieces.

    The container's process may be held up meanwhile: nothing here waits for the connection's end.
    """

    def __init__(self, connection: socket.socket) -> None:
        """Own the connection."""
        self.connection: Final = connection
        self._data = bytearray()
        self._descriptors: list[int] = []
        connection.setblocking(False)

    def read(self) -> Handed | None:
        """Take what is there; None while more has to come. Raises HostError for anything else."""
        try:
            data, descriptors, _, _ = socket.recv_fds(self.connection, _PIECE, 1)
        except BlockingIOError:
            return None
        except OSError as error:
            raise HostError(f"no filter was handed over: {error.strerror}") from error
        for descriptor in descriptors:
            os.set_inheritable(descriptor, False)
        self._descriptors += descriptors
        self._data += data
        state = _state(self._data)
        if state is None:
            if not data or len(self._data) > _LARGEST_STATE:
                raise HostError("what was handed over is not the state of a container")
            return None
        if not self._descriptors:
            raise HostError("the state of a container was handed over without a filter")
        listener = Listener(self._descriptors.pop(0))
        return Handed(listener, str(state.get("id")), state.get("status") == "running")

    def close(self) -> None:
        """Close the connection, and what was not taken."""
        self.connection.close()
        while self._descriptors:
            os.close(self._descriptors.pop())


def _state(data: bytes | bytearray) -> dict[str, Any] | None:
    try:
        found = cast("dict[str, Any]", json.loads(data))["state"]
    except (ValueError, KeyError, TypeError, RecursionError):
        return None
    return cast("dict[str, Any]", found) if isinstance(found, dict) else None


class Names:
    """The names of system calls, by the node's libseccomp."""

    def __init__(self) -> None:
        """Load the library. Raises HostError where it is missing."""
        try:
            lib: Any = ctypes.CDLL(LIBRARY)
            self._resolve: Any = lib.seccomp_syscall_resolve_num_arch
        except (OSError, AttributeError) as error:
            raise HostError(f"{LIBRARY} cannot be used: {error}") from error
        self._resolve.restype = ctypes.c_void_p
        self._resolve.argtypes = [ctypes.c_uint32, ctypes.c_int]
        self._free: Any = ctypes.CDLL(None).free
        self._free.argtypes = [ctypes.c_void_p]

    def name(self, call: Call) -> str | None:
        """Return the call's name; None where the library does not know it."""
        found = self._resolve(call.architecture, call.number)
        if not found:
            return None
        try:
            return ctypes.string_at(found).decode()
        finally:
            self._free(found)
