"""The recorder: a thread that answers each system call of all containers with "go on", and notes it.

A program waits for each answer, so a call that was seen before costs two ioctls and a few lines. One
thread serves every container: nothing waits for another but for that long. It ends with everything
that it has: when ``stop`` is called, with the process, or with an error, which ``stop`` raises. From
then on calls of what still runs fail with ENOSYS, and programs end by that sooner or later.
"""

from __future__ import annotations

import logging
import os
import select
import socket
import threading
import time
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Final

from noderuntime.cli.recording import processes
from noderuntime.cli.recording.seen import Recording, Seen
from noderuntime.errors import HostError
from noderuntime.host.capability_events import CapabilityEvents
from noderuntime.host.notifications import Call, Handover, Listener, Names, Notification

_TICK_S: Final = 0.2
_PRUNE_S: Final = 1.0  # a thread's ID is not given out anew so soon
_BACKLOG: Final = 128
_EXEC: Final = frozenset({"execve", "execveat"})
_log = logging.getLogger(__name__)

OnStart = Callable[[str], None]
"""Called with a container's ID when its first process waits to start its program."""


@dataclass(slots=True)
class _Source:
    """A listener, and what is known of the processes below it.

    The first call is the OCI runtime's own; its thread is the container's from its execve(2) on.
    """

    listener: Listener
    seen: Seen
    container_id: str
    is_exec: bool
    threads: dict[int, int] = field(default_factory=dict[int, int])  # since when, monotonic ns
    executing: set[int] = field(default_factory=set[int])
    starter: int = 0
    started: bool = False


class Recorder:
    """Serves a socket that OCI runtimes hand filters to. Used by one thread, but for its own."""

    def __init__(self, path: Path, on_start: OnStart) -> None:
        """Listen, and look for uses of capabilities. Raises HostError."""
        self._on_start = on_start
        self._names = Names()
        self._seen: dict[str, Seen] = {}
        self._sources: dict[int, _Source] = {}
        self._handovers: dict[int, Handover] = {}
        self._by_thread: dict[int, _Source] = {}
        self._execs: dict[Call, bool] = {}
        self._poll = select.epoll()
        self._wake = os.eventfd(0, os.EFD_CLOEXEC)
        self._server = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        self._error: BaseException | None = None
        self._blind, self._lost = "", 0
        self._events: CapabilityEvents | None = None
        try:
            self._events = CapabilityEvents()
        except HostError as error:
            self._blind = str(error)
        try:
            self._server.bind(str(path))
            self._server.listen(_BACKLOG)
        except OSError as error:
            self._close()
            raise HostError(f"cannot listen at {path}: {error.strerror}") from error
        self._server.setblocking(False)
        for descriptor in (self._server.fileno(), self._wake):
            self._poll.register(descriptor, select.EPOLLIN)
        self._thread = threading.Thread(target=self._run, name="recorder", daemon=True)

    def start(self) -> None:
        """Answer from now on."""
        self._thread.start()

    @property
    def is_alive(self) -> bool:
        """Whether calls are answered."""
        return self._thread.is_alive()

    def of(self, container_id: str) -> Seen | None:
        """Return what was seen of a container."""
        return self._seen.get(container_id)

    def wait(self) -> None:
        """Return when calls are answered no more. Blocking."""
        self._thread.join()

    def stop(self) -> Recording:
        """End, and return everything. Raises the error that ended it before."""
        if self._thread.ident is None:
            self._close()
        else:
            os.eventfd_write(self._wake, 1)
            self._thread.join()
        os.close(self._wake)
        if self._error is not None:
            raise HostError(f"the recorder failed: {self._error}") from self._error
        return Recording(containers=self._seen, blind=self._blind)

    def _run(self) -> None:
        try:
            self._serve()
        except BaseException as error:  # noqa: BLE001 - told by stop()
            self._error = error
        finally:
            self._close()

    def _close(self) -> None:
        if self._events is not None:
            self._events.close()
        for source in self._sources.values():
            source.listener.close()
        for handover in self._handovers.values():
            handover.close()
        self._server.close()
        self._poll.close()

    def _serve(self) -> None:
        sources, poll = self._sources, self._poll.poll
        tick = prune = time.monotonic()
        while True:
            for descriptor, happened in poll(_TICK_S):
                source = sources.get(descriptor)
                if source is not None and happened & select.EPOLLIN:
                    self._answer(source)
                elif source is not None:
                    self._drop(source)
                elif descriptor == self._wake:
                    self._look_at_capabilities()
                    return
                else:
                    self._accept(descriptor)
            now = time.monotonic()
            if now - tick >= _TICK_S:
                self._look_at_capabilities()
                tick = now
            if now - prune >= _PRUNE_S:
                self._prune()
                prune = now

    def _answer(self, source: _Source) -> None:
        notification = source.listener.receive()
        if notification is None:
            return
        thread, call = notification.thread, notification.call
        is_known = thread in source.threads and not source.executing
        if is_known and call in source.seen.calls:
            source.seen.calls[call] += 1
        else:
            self._note(source, notification)
        source.listener.let(notification)

    def _note(self, source: _Source, notification: Notification) -> None:
        """Note what is new: a thread, a call, or that a program was started."""
        thread, call = notification.thread, notification.call
        if not source.starter:
            source.starter = thread
            if not source.is_exec:
                self._on_start(source.container_id)
        if thread in source.executing and not self._is_exec(call):
            source.executing.discard(thread)
            self._has_started(source, thread)
        if source.started and thread not in source.threads:
            source.threads[thread] = time.monotonic_ns()
            self._by_thread[thread] = source
        if self._is_exec(call):
            source.executing.add(thread)
        counter = source.seen.calls if thread in source.threads else source.seen.of_runtime
        counter[call] += 1

    def _has_started(self, source: _Source, thread: int) -> None:
        """A program is in memory, and waits to do its first call."""
        source.seen.gained = source.seen.gained or processes.has_gained(thread)
        if thread == source.starter and not source.started:
            source.started = True
            ids = processes.ids_of(thread)
            if ids is not None:
                source.seen.starts.add(ids)

    def _is_exec(self, call: Call) -> bool:
        known = self._execs.get(call)
        if known is None:
            known = self._execs[call] = self._names.name(call) in _EXEC
        return known

    def _accept(self, descriptor: int) -> None:
        """Take a connection, or what comes over one."""
        if descriptor == self._server.fileno():
            with suppress(BlockingIOError):
                handover = Handover(self._server.accept()[0])
                self._handovers[handover.connection.fileno()] = handover
                self._poll.register(handover.connection.fileno(), select.EPOLLIN)
            return
        handover = self._handovers[descriptor]
        try:
            handed = handover.read()
        except HostError as error:
            _log.warning("a filter was not handed over", extra={"error": str(error)})
        else:
            if handed is None:
                return
            seen = self._seen.setdefault(handed.container_id, Seen())
            seen.execs += handed.is_exec
            source = _Source(handed.listener, seen, handed.container_id, handed.is_exec)
            self._sources[handed.listener.descriptor] = source
            self._poll.register(handed.listener.descriptor, select.EPOLLIN)
        self._poll.unregister(descriptor)
        del self._handovers[descriptor]
        handover.close()

    def _drop(self, source: _Source) -> None:
        """All that were below the filter have ended."""
        self._look_at_capabilities()
        for thread in source.threads:
            self._by_thread.pop(thread, None)
        self._poll.unregister(source.listener.descriptor)
        del self._sources[source.listener.descriptor]
        source.listener.close()

    def _look_at_capabilities(self) -> None:
        if self._events is None:
            return
        for use in self._events.drain():
            source = self._by_thread.get(use.thread)
            if source is not None and use.at_ns >= source.threads[use.thread]:
                source.seen.uses.add((use.credentials, use.capability))
        if self._events.lost != self._lost:
            self._lost = self._events.lost
            self._blind = f"the kernel had to drop {self._lost} uses of capabilities"

    def _prune(self) -> None:
        """Forget threads that have ended: their IDs will be others'."""
        self._look_at_capabilities()
        for thread in [thread for thread in self._by_thread if not processes.is_there(thread)]:
            del self._by_thread.pop(thread).threads[thread]
