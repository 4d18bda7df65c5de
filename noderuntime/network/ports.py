"""What the engine asks of the Pod network. Errors are ``NetworkError`` unless said otherwise."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

from noderuntime.policy.model import PodIdentity, PortMapping


@dataclass(frozen=True, slots=True, kw_only=True)
class Attachment:
    """One sandbox's attachment to the network; its ID is the CNI container ID."""

    sandbox_id: str
    netns: Path
    pod: PodIdentity
    port_mappings: tuple[PortMapping, ...] = ()


class Network(Protocol):
    """CNI, as the spec 1.1 has it: the caller needs only the addresses."""

    async def attach(self, attachment: Attachment) -> tuple[str, ...]:
        """ADD; returns the addresses, the primary first. A failed ADD is followed by its DEL."""
        ...

    async def detach(self, attachment: Attachment) -> None:
        """DEL; idempotent, also where ADD never ran or the netns is gone."""
        ...

    def not_ready_because(self) -> str:
        """Return why Pods cannot be attached now (a sentence), or "" when they can."""
        ...
