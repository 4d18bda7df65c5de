"""Processes that are not our children: found and signalled without hitting a recycled number.

A process is (pid, start time in clock ticks since boot): the pair is never used twice. A signal
goes through a pidfd opened before the identity was checked. pidfd_open(2), proc_pid_stat(5).
"""

from __future__ import annotations

import asyncio
import os
import signal
from collections.abc import Iterator
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

from noderuntime.errors import HostError
from noderuntime.host.pipes import wait_ready


@dataclass(frozen=True, slots=True, kw_only=True)
class ProcessIdentity:
    """One process for ever; ``start_ticks`` is field 22 of /proc/PID/stat."""

    pid: int
    start_ticks: int


@dataclass(frozen=True, slots=True, kw_only=True)
class Stat:
    """What is used of /proc/PID/stat."""

    pid: int
    state: str
    parent: int
    session: int
    start_ticks: int
    wait_status: int  # of a zombie, as wait(2) would give it; else 0


def read_stat(pid: int) -> Stat | None:
    """Return a process' stat; None when there is none."""
    try:
        text = Path(f"/proc/{pid}/stat").read_bytes()
    except (FileNotFoundError, ProcessLookupError):
        return None
    fields = text[text.rindex(b")") + 2 :].split()  # the name before it may hold anything
    return Stat(
        pid=pid,
        state=fields[0].decode(),
        parent=int(fields[1]),
        session=int(fields[3]),
        start_ticks=int(fields[19]),
        wait_status=int(fields[49]),
    )


def identify(pid: int) -> ProcessIdentity | None:
    """Return the identity of a running process; None when there is none, or only its zombie."""
    stat = read_stat(pid)
    if stat is None or stat.state in {"Z", "X"}:
        return None
    return ProcessIdentity(pid=pid, start_ticks=stat.start_ticks)


class Handle:
    """A pidfd whose process was checked to be the one that was meant."""

    def __init__(self, identity: ProcessIdentity, descriptor: int) -> None:
        """Own ``descriptor``."""
        self.identity = identity
        self._descriptor = descriptor

    def signal(self, number: int) -> None:
        """Send a signal; an ended process is success."""
        with suppress(ProcessLookupError):
            signal.pidfd_send_signal(self._descriptor, number)

    async def wait_end(self, timeout_s: float) -> bool:
        """Wait for the process to end; False when it has not within ``timeout_s``."""
        try:
            async with asyncio.timeout(timeout_s):
                await wait_ready(readable=(self._descriptor,))
        except TimeoutError:
            return False
        return True

    def close(self) -> None:
        """Let go of the pidfd."""
        os.close(self._descriptor)


def open_process(pid: int, start_ticks: int | None = None) -> Handle | None:
    """Open a running process; None when it ended or is not the one of ``start_ticks``."""
    try:
        descriptor = os.pidfd_open(pid)
    except ProcessLookupError:
        return None
    except OSError as error:
        raise HostError(
            f"pidfd of process {pid}: {error.strerror}", errno=error.errno or 0
        ) from error
    identity = identify(pid)
    if identity is None or start_ticks not in {None, identity.start_ticks}:
        os.close(descriptor)
        return None
    return Handle(identity, descriptor)


def command_line(pid: int) -> tuple[str, ...]:
    """Return a process' arguments; empty when it ended."""
    try:
        data = Path(f"/proc/{pid}/cmdline").read_bytes()
    except (FileNotFoundError, ProcessLookupError):
        return ()
    return tuple(os.fsdecode(part) for part in data.rstrip(b"\0").split(b"\0"))


def all_stats() -> Iterator[Stat]:
    """Yield every process of this PID namespace."""
    for entry in Path("/proc").iterdir():
        if entry.name.isdigit() and (stat := read_stat(int(entry.name))) is not None:
            yield stat


def tree(root: int) -> frozenset[ProcessIdentity]:
    """Return what descends from ``root`` (itself not), and all that shares a session with those.

    The second part finds what a shell left behind in the background and init adopted.
    """
    stats = list(all_stats())
    own_session = next((s.session for s in stats if s.pid == root), 0)
    found: set[int] = set()
    while more := {s.pid for s in stats if s.parent in {root, *found}} - found:
        found |= more
    sessions = {s.session for s in stats if s.pid in found} - {own_session, 0}
    return frozenset(
        ProcessIdentity(pid=s.pid, start_ticks=s.start_ticks)
        for s in stats
        if s.pid != root and (s.pid in found or s.session in sessions)
    )


def kill(processes: frozenset[ProcessIdentity]) -> None:
    """SIGKILL each that still is what it was."""
    for process in processes:
        handle = open_process(process.pid, process.start_ticks)
        if handle is not None:
            handle.signal(signal.SIGKILL)
            handle.close()
