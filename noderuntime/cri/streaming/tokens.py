"""URLs that stand for what was asked: unguessable, good for one use and one minute.

Exec, Attach and PortForward answer with such a URL; who comes with it gets exactly what the RPC
asked for and nothing that is in the URL or a header. The number of open ones is bounded.
Source: ``k8s.io/cri-streaming`` v0.37.2 ``request_cache.go`` (the same bounds).
"""

from __future__ import annotations

import secrets
import time
from dataclasses import dataclass
from typing import TYPE_CHECKING, Final

from noderuntime.errors import ResourceExhaustedError

if TYPE_CHECKING:
    from collections.abc import Callable

LIFETIME_S: Final = 60.0
MAX_OPEN: Final = 1000
_BYTES: Final = 24


@dataclass(frozen=True, slots=True, kw_only=True)
class RemoteCommand:
    """Exec, or attach when ``argv`` is None."""

    container_id: str
    argv: tuple[str, ...] | None
    stdin: bool
    stdout: bool
    stderr: bool
    tty: bool

    @property
    def kind(self) -> str:
        """The first part of the URL's path."""
        return "attach" if self.argv is None else "exec"


@dataclass(frozen=True, slots=True, kw_only=True)
class Forward:
    """Port-forward; no ports means every port (the kubelet names none)."""

    sandbox_id: str
    ports: tuple[int, ...]

    @property
    def kind(self) -> str:
        """The first part of the URL's path."""
        return "portforward"


Ticket = RemoteCommand | Forward


class Tokens:
    """The open tokens of one server, oldest first."""

    def __init__(self, clock: Callable[[], float] = time.monotonic) -> None:
        """Take ``clock`` for tests."""
        self._clock = clock
        self._open: dict[str, tuple[float, Ticket]] = {}

    def issue(self, ticket: Ticket) -> str:
        """Return a new token; raises ResourceExhaustedError when too many are open."""
        self._expire()
        if len(self._open) >= MAX_OPEN:
            raise ResourceExhaustedError(
                f"{MAX_OPEN} streaming requests were made and not used within the last minute"
            )
        token = secrets.token_urlsafe(_BYTES)
        self._open[token] = (self._clock() + LIFETIME_S, ticket)
        return token

    def redeem(self, kind: str, token: str) -> Ticket | None:
        """Return what it stands for, once; None when used, old, unknown or of another kind."""
        self._expire()
        _, ticket = self._open.pop(token, (0.0, None))
        return ticket if ticket is not None and ticket.kind == kind else None

    def _expire(self) -> None:
        now = self._clock()
        while self._open:
            oldest = next(iter(self._open))
            if self._open[oldest][0] > now:
                return
            del self._open[oldest]
