"""What the engine asks of the Pod network. Errors are ``NetworkError`` unless said otherwise."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

from noderuntime.policy.model import PodIdentity, PortMapping


@dataclass(frozen=True, slots=True, kw_only=True)
class Attachment:
    """One sandbox's attachment to the network; its ID is the CNI container ID.

    ``cni_conf_dir`` is the handler's own folder of CNI configurations, None for the node's.
    """

    sandbox_id: str
    netns: Path
    pod: PodIdentity
    port_mappings: tuple[PortMapping, ...] = ()
    cni_conf_dir: Path | None = None


class Network(Protocol):
    """CNI, as the spec 1.1 has it, or the built-in bridge: the caller needs only the addresses."""

    async def attach(self, attachment: Attachment) -> tuple[str, ...]:
        """ADD; returns the addresses, the primary first. A failed ADD is followed by its DEL."""
        ...

    async def detach(self, attachment: Attachment) -> None:
        """DEL; idempotent, also where ADD never ran or the netns is gone."""
        ...

    def attached(self) -> tuple[str, ...]:
        """Return the IDs of all sandboxes that hold, or may hold, something of the network."""
        ...

    async def collect(self, sandbox_ids: Iterable[str]) -> None:
        """Take back what no sandbox of these holds (DEL, GC); never while one is being attached."""
        ...

    async def check_status(self) -> None:
        """Ask the network itself (STATUS); the answer is what ``not_ready_because`` tells."""
        ...

    def not_ready_because(self) -> str:
        """Return why Pods cannot be attached now (a sentence), or "" when they can."""
        ...

    def served_by(self) -> str:
        """Return what attaches Pods now, for people."""
        ...
