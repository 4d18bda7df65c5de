"""What can still be known and said of a container whose monitor was killed.

Its end: init adopts the container's first process, and collects its status in place of the monitor.
The kernel tells that status to who holds a pidfd from before (``PIDFD_GET_INFO`` with
``PIDFD_INFO_EXIT``, Linux 6.15), and until init has collected it also as ``exit_code`` of
/proc/PID/stat. So one pidfd is held for each container that runs. Its log: nothing reads the
container's pipes any more, so a line says where the log ends.
Sources: ``include/uapi/linux/pidfd.h``, proc_pid_stat(5), CRI's log format (KEP-2411).
"""

from __future__ import annotations

import fcntl
import os
import struct
from datetime import UTC, datetime
from pathlib import Path
from typing import Final

from noderuntime.host import pids
from noderuntime.host.syscalls import host_error

# _IOWR(0xFF, 11, struct pidfd_info), whose first version has 64 bytes: the mask first, the status last.
_PIDFD_GET_INFO: Final = (3 << 30) | (64 << 16) | (0xFF << 8) | 11
_PIDFD_INFO_EXIT: Final = 1 << 3
_INFO: Final = struct.Struct("=Q52xi")


class ExitStatuses:
    """A pidfd for each running container's first process, kept until ``forget``."""

    def __init__(self) -> None:
        """Hold nothing yet."""
        self._held: dict[str, tuple[int, pids.ProcessIdentity]] = {}

    def hold(self, container_id: str, pid: int) -> None:
        """Keep what its end will be read from; nothing where it has ended or is another's process.

        The process is the container's when the container's ID is in the name of its cgroup.
        """
        if container_id in self._held:
            return
        try:
            descriptor = os.pidfd_open(pid)
        except OSError:
            return
        identity = pids.identify(pid)
        if identity is None or not _is_of(container_id, pid):
            os.close(descriptor)
            return
        self._held[container_id] = (descriptor, identity)

    def is_held(self, container_id: str) -> bool:
        """Tell whether an end would be known."""
        return container_id in self._held

    def code_of(self, container_id: str) -> int | None:
        """Return the exit code (128+N for signal N); None while it runs, or nobody knows."""
        held = self._held.get(container_id)
        if held is None:
            return None
        descriptor, identity = held
        status = _collected(descriptor)
        if status is None:
            status = _not_collected_yet(identity)
        if status is None:
            return None
        code = os.waitstatus_to_exitcode(status)
        return 128 - code if code < 0 else code

    def forget(self, container_id: str) -> None:
        """Let go; nothing held is success."""
        held = self._held.pop(container_id, None)
        if held is not None:
            os.close(held[0])

    def close(self) -> None:
        """Let go of all; none is known after."""
        for container_id in tuple(self._held):
            self.forget(container_id)


def end_log(log: Path, sentence: str) -> None:
    """Append a line of the runtime's own to a container's log. Blocking. Raises HostError."""
    now = datetime.now(UTC).strftime("%Y-%m-%dT%H:%M:%S.%f000Z")
    line = f"{now} stderr F noderuntime: {sentence}\n"
    try:
        # The newline ends a line that the monitor may have left half written.
        descriptor = os.open(log, os.O_RDWR | os.O_APPEND | os.O_NOFOLLOW | os.O_CLOEXEC)
        try:
            size = os.fstat(descriptor).st_size
            torn = size > 0 and os.pread(descriptor, 1, size - 1) != b"\n"
            os.write(descriptor, ("\n" if torn else "").encode() + line.encode())
        finally:
            os.close(descriptor)
    except OSError as error:
        raise host_error(f"cannot write to the log {log}", error.errno or 0) from error


def _is_of(container_id: str, pid: int) -> bool:
    try:
        return container_id in Path(f"/proc/{pid}/cgroup").read_text()
    except OSError:
        return False


def _collected(descriptor: int) -> int | None:
    """Return the wait status of a process that was collected by its parent."""
    request = bytearray(_INFO.pack(_PIDFD_INFO_EXIT, 0))
    try:
        fcntl.ioctl(descriptor, _PIDFD_GET_INFO, request)
    except OSError:
        return (
            None  # before Linux 6.13 there is no such call, before 6.15 none once it is collected
        )
    mask, status = _INFO.unpack(request)
    return int(status) if mask & _PIDFD_INFO_EXIT else None


def _not_collected_yet(identity: pids.ProcessIdentity) -> int | None:
    """Return the wait status of a zombie."""
    stat = pids.read_stat(identity.pid)
    if stat is None or stat.start_ticks != identity.start_ticks or stat.state != "Z":
        return None
    return stat.wait_status
