"""Which capabilities threads of this machine use: the kernel's tracepoint ``capability:cap_capable``.

The kernel asks there for every privilege it knows, so nothing has to be guessed from system calls and
their arguments. It is in Linux 6.16 and newer. It is read with perf_event_open(2), which leaves
nothing behind however its owner ends; tracefs, which has the tracepoint's number, is mounted nowhere:
fsmount(2) gives a descriptor of it.

An event says that a capability was asked for and there. Whether the call would have failed without
is not always the same: what is told here is what was used, at most.

Source: perf_event_open(2) "MMAP layout"; linux/perf_event.h; include/trace/events/capability.h.
"""

from __future__ import annotations

import ctypes
import fcntl
import mmap
import os
import struct
import time
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path
from typing import Final, NamedTuple

from noderuntime.errors import HostError
from noderuntime.host.syscalls import host_error

_NR_FSOPEN: Final = 430
_NR_FSCONFIG: Final = 431
_NR_FSMOUNT: Final = 432
_NR_PERF_EVENT_OPEN: Final = {"x86_64": 298}.get(os.uname().machine, 241)
_FSCONFIG_CMD_CREATE: Final = 6
_EVENT: Final = "events/capability/cap_capable"
_TRACEPOINT: Final = 2  # PERF_TYPE_TRACEPOINT
# struct perf_event_attr up to its version 5.
_ATTRIBUTES: Final = struct.Struct("=IIQQQQQIIQQQQIiQIHH")
_SAMPLE_TYPE: Final = 1 << 1 | 1 << 2 | 1 << 5 | 1 << 10  # TID, TIME, CALLCHAIN, RAW
_FLAGS: Final = 1 << 22 | 1 << 25  # exclude_callchain_user, use_clockid
_FD_CLOEXEC: Final = 8  # PERF_FLAG_FD_CLOEXEC
_SET_FILTER: Final = 0x40082406  # PERF_EVENT_IOC_SET_FILTER
_MAX_STACK: Final = 8
_PAGES: Final = 256  # of each processor; a power of two
_HEAD, _TAIL = 1024, 1032  # in struct perf_event_mmap_page
_HEADER: Final = struct.Struct("=IHH")
_LOST, _SAMPLE = 2, 9  # PERF_RECORD_*
_WHO: Final = struct.Struct("=IIQ")
_CREDENTIALS_AT, _CAP_AT = 8, 32  # in the tracepoint's own fields
_SYS_ADMIN: Final = 21
# Asked for at every mmap(2), brk(2) and fork(2): only how much memory may be promised depends on it.
_NO_USE: Final = frozenset({"cap_vm_enough_memory", "security_vm_enough_memory_mm"})

_libc = ctypes.CDLL(None, use_errno=True)


class Use(NamedTuple):
    """A thread (its ID in this process' PID namespace) used a capability, by the kernel's number.

    ``at_ns`` is of time.monotonic_ns(). ``credentials`` tell whose capability it was (an address of
    the kernel's): not always the thread's own, as overlayfs goes on with those of who mounted it.
    """

    thread: int
    at_ns: int
    credentials: int
    capability: int


class CapabilityEvents:
    """Every use on this machine from now on. Not for several threads."""

    def __init__(self) -> None:
        """Begin. Raises HostError where the kernel does not tell, or not us."""
        self.lost = 0  # events that nobody will know
        self._no_use = tuple(_ranges_of(_NO_USE))
        self._rings: list[_Ring] = []
        number = _tracepoint()
        try:
            for cpu in sorted(_online()):
                self._rings.append(_Ring(number, cpu))
        except (HostError, OSError) as error:
            self.close()
            raise HostError(f"uses of capabilities cannot be seen: {error}") from error

    def drain(self) -> Iterator[Use]:
        """Yield what came since the last time; each processor's in order."""
        for ring in self._rings:
            for kind, record in ring.records():
                if kind == _LOST:
                    self.lost += int(struct.unpack_from("=Q", record, 8)[0])
                elif kind == _SAMPLE:
                    use = self._use(record)
                    if use is not None:
                        yield use

    def _use(self, record: bytes) -> Use | None:
        _, thread, at_ns = _WHO.unpack_from(record)
        (depth,) = struct.unpack_from("=Q", record, _WHO.size)
        chain = struct.unpack_from(f"={depth}Q", record, _WHO.size + 8)
        raw = _WHO.size + 8 + 8 * depth + 4
        (credentials,) = struct.unpack_from("=Q", record, raw + _CREDENTIALS_AT)
        (capability,) = struct.unpack_from("=i", record, raw + _CAP_AT)
        if capability == _SYS_ADMIN and any(a in each for each in self._no_use for a in chain):
            return None
        return Use(thread, at_ns, credentials, capability)

    def close(self) -> None:
        """Give everything back."""
        while self._rings:
            self._rings.pop().close()


class _Ring:
    """The events of one processor, in memory that the kernel writes."""

    def __init__(self, tracepoint: int, cpu: int) -> None:
        attributes = _ATTRIBUTES.pack(
            *(_TRACEPOINT, _ATTRIBUTES.size, tracepoint, 1, _SAMPLE_TYPE, 0, _FLAGS),
            *(0, 0, 0, 0, 0, 0, 0, time.CLOCK_MONOTONIC, 0, 0, _MAX_STACK, 0),
        )
        self._descriptor = int(
            _libc.syscall(
                ctypes.c_long(_NR_PERF_EVENT_OPEN),
                attributes,
                ctypes.c_int(-1),
                ctypes.c_int(cpu),
                ctypes.c_int(-1),
                ctypes.c_ulong(_FD_CLOEXEC),
            )
        )
        if self._descriptor < 0:
            raise host_error("perf_event_open", ctypes.get_errno())
        try:
            fcntl.ioctl(self._descriptor, _SET_FILTER, b"ret == 0\0")
            self._size = _PAGES * mmap.PAGESIZE
            self._memory = mmap.mmap(self._descriptor, mmap.PAGESIZE + self._size)
        except OSError:
            os.close(self._descriptor)
            raise

    def records(self) -> Iterator[tuple[int, bytes]]:
        """Yield type and body of each record, and take it out."""
        head, tail = struct.unpack_from("=QQ", self._memory, _HEAD)
        while tail < head:
            kind, _, size = _HEADER.unpack(self._bytes(tail, _HEADER.size))
            yield kind, self._bytes(tail + _HEADER.size, size - _HEADER.size)
            tail += size
        struct.pack_into("=Q", self._memory, _TAIL, tail)

    def _bytes(self, position: int, length: int) -> bytes:
        start = position % self._size
        first = min(length, self._size - start)
        base = mmap.PAGESIZE
        whole = self._memory[base + start : base + start + first]
        return whole + self._memory[base : base + length - first] if first < length else whole

    def close(self) -> None:
        self._memory.close()
        os.close(self._descriptor)


def _tracepoint() -> int:
    """Return the tracepoint's number, from a tracefs that is mounted nowhere."""
    context = _call("fsopen", _NR_FSOPEN, b"tracefs", ctypes.c_uint(1))
    try:
        none = ctypes.c_void_p(None)
        command = ctypes.c_uint(_FSCONFIG_CMD_CREATE)
        _call("fsconfig", _NR_FSCONFIG, ctypes.c_int(context), command, none, none, ctypes.c_int(0))
        root = _call(
            "fsmount", _NR_FSMOUNT, ctypes.c_int(context), ctypes.c_uint(1), ctypes.c_uint(0)
        )
    finally:
        os.close(context)
    try:
        descriptor = os.open(f"{_EVENT}/id", os.O_RDONLY | os.O_CLOEXEC, dir_fd=root)
        try:
            return int(os.read(descriptor, 32))
        finally:
            os.close(descriptor)
    except FileNotFoundError as error:
        raise HostError("this kernel does not tell of uses of capabilities (Linux 6.16)") from error
    except (OSError, ValueError) as error:
        raise HostError(f"{_EVENT}/id of tracefs cannot be read: {error}") from error
    finally:
        os.close(root)


def _call(name: str, number: int, *arguments: object) -> int:
    result = int(_libc.syscall(ctypes.c_long(number), *arguments))
    if result < 0:
        raise host_error(f"{name} of tracefs", ctypes.get_errno())
    return result


def _online() -> Iterator[int]:
    for part in Path("/sys/devices/system/cpu/online").read_text().strip().split(","):
        first, _, last = part.partition("-")
        yield from range(int(first), int(last or first) + 1)


def _ranges_of(functions: frozenset[str]) -> Iterator[range]:
    """Yield the addresses of functions of the kernel; none where it does not tell them."""
    start = 0
    with suppress(OSError), Path("/proc/kallsyms").open() as table:
        for line in table:
            address, _, name = line.split()[:3]
            if start and int(address, 16) > start:
                yield range(start, int(address, 16))
                start = 0
            if name in functions:
                start = int(address, 16)
