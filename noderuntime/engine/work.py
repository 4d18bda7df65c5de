"""What the steps of a verb share: one class for sandboxes, one for containers."""

from __future__ import annotations

import secrets
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from noderuntime.engine.journal import Intent
from noderuntime.policy.model import LsmFacts

if TYPE_CHECKING:
    from noderuntime.engine.handlers import Handler
    from noderuntime.engine.node import Node
    from noderuntime.engine.state import ContainerRecord, SandboxRecord
    from noderuntime.host.pids import ProcessIdentity
    from noderuntime.images.ports import Image, Snapshot
    from noderuntime.policy.model import SandboxGrant, SelinuxLabels


@dataclass(slots=True, kw_only=True)
class SandboxWork:
    """A sandbox in the making or going. ``record`` grows; the rest is there only while making."""

    node: Node
    record: SandboxRecord
    grant: SandboxGrant | None = None
    init: ProcessIdentity | None = None

    def intent(self, verb: str) -> Intent:
        """Return what a restart needs."""
        return Intent(verb=verb, sandbox=self.record)


@dataclass(slots=True, kw_only=True)
class ContainerWork:
    """A container in the making, starting or going; most fields are there only while making."""

    node: Node
    record: ContainerRecord
    sandbox: SandboxRecord | None = None
    handler: Handler | None = None
    image: Image | None = None
    snapshot: Snapshot | None = None
    lsm: LsmFacts = field(default_factory=LsmFacts)
    labels: SelinuxLabels | None = None
    image_volumes: dict[str, str] = field(default_factory=dict[str, str])  # key -> path
    started_pid: int = 0
    until_ns: int = (
        0  # end of a stop's grace, since the epoch: a restart goes on with the rest of it
    )

    def intent(self, verb: str) -> Intent:
        """Return what a restart needs."""
        return Intent(verb=verb, container=self.record, until_ns=self.until_ns)


def new_id() -> str:
    """Return a fresh ID as other runtimes have it: 64 hexadecimal digits."""
    return secrets.token_hex(32)
