"""An in-memory fake of network/ports.py: attachments are names in the world."""

from __future__ import annotations

from collections.abc import Iterable

from noderuntime.network.ports import Attachment
from tests.fakes.world import World


class FakeNetwork:
    """``Network`` that always has the same address."""

    def __init__(self, world: World) -> None:
        self._world = world

    async def attach(self, attachment: Attachment) -> tuple[str, ...]:
        await self._world.call("network.attach")
        self._world.attachments.add(attachment.sandbox_id)
        self._world.networks.append(attachment.cni_conf_dir)
        return ("10.0.0.7",)

    async def detach(self, attachment: Attachment) -> None:
        await self._world.call("network.detach")
        self._world.attachments.discard(attachment.sandbox_id)
        self._world.networks.append(attachment.cni_conf_dir)

    def attached(self) -> tuple[str, ...]:
        return tuple(sorted(self._world.attachments))

    async def collect(self, sandbox_ids: Iterable[str]) -> None:
        await self._world.call("network.collect")
        self._world.attachments.intersection_update(sandbox_ids)

    async def check_status(self) -> None:
        await self._world.call("network.check_status")

    def served_by(self) -> str:
        return "a fake network"

    def not_ready_because(self) -> str:
        return ""
