"""What the engine asks of running processes' streams: attach, exec, port-forward; see ``ports``."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Protocol

if TYPE_CHECKING:
    from noderuntime.host.ports import OciRuntime


class AttachStream(Protocol):
    """The streams of a running process. Reading gives (2 = stdout or 3 = stderr, data)."""

    def __aiter__(self) -> AsyncIterator[tuple[int, bytes]]:
        """Yield output as it comes; ends when the process closed its outputs."""
        ...

    async def write(self, data: bytes) -> None:
        """Write to stdin, waiting while the process does not read."""
        ...

    async def close_stdin(self) -> None:
        """Half-close: the process reads end-of-file."""
        ...

    async def resize(self, width: int, height: int) -> None:
        """Set the terminal's size in columns and rows; nothing without a terminal."""
        ...

    async def close(self) -> None:
        """Let go; the process of a container goes on, that of an exec is killed."""
        ...


class ExecStream(AttachStream, Protocol):
    """An exec's streams, which also has an end of its own."""

    async def wait(self) -> int:
        """Wait for the process and return its exit code (128+N for signal N).

        Raises HostError when it was not started: there is no such program, or it may not be run.
        """
        ...


@dataclass(frozen=True, slots=True, kw_only=True)
class ExecResult:
    """ExecSyncResponse: outputs are cut at 16 MiB each, as the kubelet wants."""

    stdout: bytes
    stderr: bytes
    exit_code: int


@dataclass(frozen=True, slots=True, kw_only=True)
class ExecRequest:
    """A process beside the container's own. ``process`` is the OCI process object."""

    container_id: str
    process: Mapping[str, object]
    terminal: bool
    stdin: bool


class Exec(Protocol):
    """``RUNTIME exec`` and its pipes or terminal."""

    async def open(self, runtime: OciRuntime, request: ExecRequest) -> ExecStream:
        """Start it; ``close`` kills what is left of it."""
        ...

    async def sweep(self, runtime: OciRuntime) -> None:
        """End the execs that an earlier run of ours left behind."""
        ...

    async def sync(self, runtime: OciRuntime, request: ExecRequest, timeout_s: float) -> ExecResult:
        """Run it to its end. Past ``timeout_s`` (0 = none) it is killed: DeadlineExceededError."""
        ...


class PortForward(Protocol):
    """A TCP connection made inside a network namespace."""

    async def connect(
        self, netns: Path | None, port: int
    ) -> tuple[asyncio.StreamReader, asyncio.StreamWriter]:
        """Connect to localhost:``port`` (IPv4, then IPv6) in ``netns``; None is the host's."""
        ...
