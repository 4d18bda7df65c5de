"""Where hostile bytes are parsed: a process that sees nothing but the layer's folder.

``start`` forks a small process before the worker has read its request, so no credential was ever
in its memory. For each layer that process forks a child, which makes the folder its root, gives up
what it does not need (capabilities, privileges by exec, core dumps, memory, and Python's imports:
a module found inside an image would run as root, CVE-2019-14271), unpacks, and answers one JSON
document through a pipe. The children die with their parent (prctl PR_SET_PDEATHSIG), whoever kills
it. Sources: capabilities(7), chroot(2), prctl(2), unix(7) SCM_RIGHTS.
"""

from __future__ import annotations

import ctypes
import json
import os
import resource
import signal
import socket
import struct
import sys
import threading
from collections.abc import Callable
from dataclasses import dataclass
from typing import Final, NoReturn

from noderuntime.errors import ImageError

MAX_MEMORY: Final = 2 << 30
MAX_ANSWER: Final = 64 << 20
_PR_SET_PDEATHSIG: Final = 1
_PR_SET_DUMPABLE: Final = 4
_PR_SET_NO_NEW_PRIVS: Final = 38
_CAPABILITY_VERSION_3: Final = 0x20080522
# CHOWN, DAC_OVERRIDE, FOWNER, FSETID, SYS_ADMIN (trusted.* attributes), MKNOD, SETFCAP
_KEPT: Final = sum(1 << bit for bit in (0, 1, 3, 4, 21, 27, 31))
_libc = ctypes.CDLL(None, use_errno=True)


@dataclass(frozen=True, slots=True, kw_only=True)
class Limits:
    """How much a layer may become. ``is_base``: no layer lies below."""

    is_base: bool
    limit_bytes: int
    max_entries: int


@dataclass(frozen=True, slots=True, kw_only=True)
class Layer:
    """What became of it."""

    diff_id: str
    size_bytes: int
    inodes: int
    implied: tuple[bytes, ...]


class Jail:
    """The worker's handle on the process that forks unpackers; usable from several threads."""

    def __init__(self, channel: socket.socket, pid: int) -> None:
        """Take the channel to the process ``pid``."""
        self._channel = channel
        self.pid = pid

    def unpack(self, layer: int, folder: int, limits: Limits) -> Layer:
        """Unpack the file ``layer`` into ``folder`` (descriptors); raises ImageError."""
        reader, writer = os.pipe()
        request = json.dumps([limits.is_base, limits.limit_bytes, limits.max_entries]).encode()
        try:
            socket.send_fds(self._channel, [request], [layer, folder, writer])
        finally:
            os.close(writer)
        with open(reader, "rb") as pipe:  # noqa: PTH123 - a descriptor, not a path
            answer = pipe.read(MAX_ANSWER)
        if not answer:
            raise ImageError(
                "the process that unpacks the layer was killed: the node may be short of memory"
            )
        document = json.loads(answer)
        if "error" in document:
            raise ImageError(document["error"])
        return Layer(
            diff_id=document["diff_id"],
            size_bytes=document["size_bytes"],
            inodes=document["inodes"],
            implied=tuple(os.fsencode(name) for name in document["implied"]),
        )

    def close(self) -> None:
        """End the process; children at work are killed."""
        self._channel.close()
        os.waitpid(self.pid, 0)


def start() -> Jail:
    """Fork the process. Call it while the caller has one thread and no secrets."""
    ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    parent = os.getpid()
    pid = os.fork()
    if pid:
        theirs.close()
        return Jail(ours, pid)
    ours.close()
    try:
        die_with(parent)
        null = os.open("/dev/null", os.O_RDWR)
        os.dup2(null, 0)
        os.dup2(null, 1)
        _serve(theirs)
    finally:
        os._exit(0)


def die_with(parent: int) -> None:
    """Be killed when ``parent`` ends, also where it has ended already."""
    _libc.prctl(_PR_SET_PDEATHSIG, signal.SIGKILL, 0, 0, 0)
    if os.getppid() != parent:
        os._exit(1)


def _serve(channel: socket.socket) -> None:
    from noderuntime.images import unpacking  # here: while the worker loads what it needs itself

    signal.signal(signal.SIGCHLD, signal.SIG_IGN)  # children need no wait
    me = os.getpid()
    while True:
        request, fds, _, _ = socket.recv_fds(channel, 4096, 3)
        if not request:
            return
        if os.fork() == 0:
            channel.close()
            try:
                die_with(me)
                _child(unpacking.unpack, json.loads(request), *fds)
            finally:
                os._exit(1)
        for fd in fds:
            os.close(fd)


def _child(
    unpack: Callable[[int, Limits], dict[str, object]],
    request: list[int],
    layer: int,
    folder: int,
    answer: int,
) -> NoReturn:
    """Unpack in the jail and answer; never returns."""
    limits = Limits(is_base=bool(request[0]), limit_bytes=request[1], max_entries=request[2])
    document: dict[str, object]
    try:
        _enter(folder)
        document = unpack(layer, limits)
    except ImageError as error:
        document = {"error": str(error)}
    except MemoryError:
        document = {"error": "the layer needs more memory to unpack than it may have"}
    except Exception as error:  # noqa: BLE001 - the answer is the only way out of the jail
        document = {"error": f"the layer cannot be unpacked: {error!r}"}
    data = memoryview(json.dumps(document).encode())
    while data:
        data = data[os.write(answer, data) :]
    os._exit(0)


def _enter(folder: int) -> None:
    """Make ``folder`` the root and give up everything that unpacking does not need."""
    _libc.prctl(_PR_SET_DUMPABLE, 0, 0, 0, 0)
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    resource.setrlimit(resource.RLIMIT_AS, (MAX_MEMORY, MAX_MEMORY))
    resource.setrlimit(resource.RLIMIT_NOFILE, (64, 64))
    threading.stack_size(1 << 20)
    sys.setswitchinterval(0.0005)  # the decompressing thread waits this long for Python's lock
    os.fchdir(folder)
    os.chroot(".")
    os.chdir("/")
    os.close(folder)
    _drop_capabilities()
    if _libc.prctl(_PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0):
        raise OSError(ctypes.get_errno(), "prctl")
    sys.path.clear()
    sys.meta_path.clear()
    sys.path_hooks.clear()
    sys.path_importer_cache.clear()


def _drop_capabilities() -> None:
    header = struct.pack("=Ii", _CAPABILITY_VERSION_3, 0)
    current = ctypes.create_string_buffer(24)
    if _libc.capget(header, current):
        raise OSError(ctypes.get_errno(), "capget")
    words = struct.unpack("=6I", current.raw)
    low = words[1] & _KEPT & 0xFFFFFFFF
    if _libc.capset(header, struct.pack("=6I", low, low, 0, 0, 0, 0)):
        raise OSError(ctypes.get_errno(), "capset")
