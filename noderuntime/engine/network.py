"""Letting go of the Pod network, also when its plugins do not, and asking how it is.

A plugin that fails for ever must not keep a Pod on the node for ever. What it holds (an address, a
port) stays written down as the sandbox's attachment, so nobody else gets it, and the DEL is tried
again until it succeeds: every while, and at each start.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Iterator
from functools import partial
from typing import Final

from noderuntime.engine.jobs import describe
from noderuntime.engine.node import Node
from noderuntime.engine.sandbox_run import detach
from noderuntime.engine.state import SandboxId
from noderuntime.engine.work import SandboxWork
from noderuntime.errors import NetworkError
from noderuntime.network.ports import Attachment
from noderuntime.policy.model import PodIdentity

_log = logging.getLogger(__name__)

# Rules that two plugins change at once, a lock that is held: over within a second or so.
PAUSES_S: Final = (0.2, 1.0)
PATIENCE_S: Final = 5.0  # a plugin that takes this long to fail is not asked again now
AT_START_S: Final = 20.0
TRY_AGAIN_S: Final = 30.0
NOBODY: Final = PodIdentity(name="unknown", namespace="unknown", uid="unknown")


async def release(work: SandboxWork) -> None:
    """Detach the sandbox; where the plugins do not let go, leave that for later, with a warning."""
    clock = asyncio.get_running_loop()
    begun = clock.time()
    for pause_s in (*PAUSES_S, None):
        try:
            await detach(work)
        except NetworkError as error:
            if pause_s is None or clock.time() - begun > PATIENCE_S:
                _log.warning(
                    "the network does not let go of a sandbox; its addresses stay taken until it does",
                    extra={"sandbox": work.record.id, "error": describe(error)},
                )
                return
            await asyncio.sleep(pause_s)
        else:
            return


async def collect(node: Node) -> None:
    """Before the socket answers: take from the network what belongs to no sandbox.

    Later there would be ADDs under way, of which a plugin's GC must not know less than they do.
    """
    async with asyncio.timeout(AT_START_S):
        await node.parts.network.collect(set(node.parts.network.attached()) - set(_orphans(node)))


async def watch(node: Node) -> None:
    """Ask the network how it is, and release what was left, every while until cancelled."""
    while True:
        await node.parts.network.check_status()
        for sandbox_id in _orphans(node):
            node.jobs.start(("release", sandbox_id), partial(_release_orphan, node, sandbox_id))
        await asyncio.sleep(TRY_AGAIN_S)


def _orphans(node: Node) -> Iterator[SandboxId]:
    """Yield sandboxes that have an attachment and should not: released or unknown, nothing begun."""
    for name in node.parts.network.attached():
        record = node.store.sandboxes.get(name)
        if (record is None or record.released) and not node.journal.is_open(name):
            yield SandboxId(name)


async def _release_orphan(node: Node, sandbox_id: SandboxId) -> None:
    async with node.locks.of(sandbox_id):
        if sandbox_id in _orphans(node):
            netns = node.paths.namespaces(sandbox_id) / "net"
            attachment = Attachment(sandbox_id=sandbox_id, netns=netns, pod=NOBODY)
            await node.parts.network.detach(attachment)
            _log.info("the network let go of a sandbox", extra={"sandbox": sandbox_id})
