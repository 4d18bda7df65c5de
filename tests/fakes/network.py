"""An in-memory fake of network/ports.py."""

from __future__ import annotations

from collections.abc import Iterable

from noderuntime.errors import NetworkError
from noderuntime.network.ports import Attachment


class FakeNetwork:
    """``Network``: hands out 10.88.0.2, 10.88.0.3, ...; ``faults`` are used up one by one."""

    def __init__(self) -> None:
        self.attachments: dict[str, tuple[str, ...]] = {}
        self.calls: list[tuple[str, str]] = []
        self.faults: dict[str, BaseException] = {}
        self.not_ready = ""
        self._next = 2

    def _at(self, call: str, sandbox_id: str) -> None:
        self.calls.append((call, sandbox_id))
        if (fault := self.faults.pop(call, None)) is not None:
            raise fault

    async def attach(self, attachment: Attachment) -> tuple[str, ...]:
        self._at("network.attach", attachment.sandbox_id)
        if self.not_ready:
            raise NetworkError(self.not_ready)
        addresses = (f"10.88.0.{self._next}",)
        self._next += 1
        self.attachments[attachment.sandbox_id] = addresses
        return addresses

    async def detach(self, attachment: Attachment) -> None:
        self._at("network.detach", attachment.sandbox_id)
        self.attachments.pop(attachment.sandbox_id, None)

    def attached(self) -> tuple[str, ...]:
        return tuple(sorted(self.attachments))

    async def collect(self, sandbox_ids: Iterable[str]) -> None:
        self._at("network.collect", "")
        known = set(sandbox_ids)
        self.attachments = {k: v for k, v in self.attachments.items() if k in known}

    async def check_status(self) -> None:
        self._at("network.check_status", "")

    def not_ready_because(self) -> str:
        return self.not_ready

    def served_by(self) -> str:
        return "a fake network"

    def census(self) -> frozenset[str]:
        """Return everything that exists."""
        return frozenset(f"attachment {sandbox_id}" for sandbox_id in self.attachments)
