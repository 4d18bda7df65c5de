"""StopPodSandbox: its containers end, its network and namespaces go; it stays listed, NotReady."""

from __future__ import annotations

from dataclasses import replace
from functools import partial
from typing import Final

from noderuntime.engine.container_stop import stop_container
from noderuntime.engine.jobs import Key, every
from noderuntime.engine.network import release
from noderuntime.engine.node import Node
from noderuntime.engine.sandbox_init import remove_init
from noderuntime.engine.sandbox_run import remove_namespaces, unmount_shm
from noderuntime.engine.state import SandboxRecord, SandboxState
from noderuntime.engine.steps import Step, Verb, carry_through
from noderuntime.engine.work import SandboxWork
from noderuntime.telemetry.trace import span

CREATING_S = 120.0


async def stop_sandbox(node: Node, sandbox_id: str) -> None:
    """Stop it; unknown or stopped is success."""
    record = node.store.sandboxes.find(sandbox_id)
    if record is not None and not record.released:
        await node.jobs.join(("stop_sandbox", record.id), partial(_stop, node, record))


async def _stop(node: Node, record: SandboxRecord) -> None:
    async with node.locks.of(record.id):
        current = node.store.sandboxes.get(record.id)
        if current is not None and not current.released:
            work = SandboxWork(node=node, record=current)
            node.store.closing.add(record.id)
            try:
                await carry_through(STOP_SANDBOX, work)
            finally:
                node.store.closing.discard(record.id)


async def stop_containers(work: SandboxWork) -> None:
    """End every container of the sandbox at once, after those that are being made."""
    node, sandbox_id = work.node, work.record.id

    def is_creating(key: Key) -> bool:
        return key[:2] == ("create_container", sandbox_id)

    await node.jobs.settle(is_creating, CREATING_S)
    containers = node.store.containers_of(sandbox_id)
    await every(stop_container(node, c.id, 0.0, covered=True) for c in containers)


async def stop_and_detach(work: SandboxWork) -> None:
    """End the containers and take the network down, both at once.

    What still runs in a Pod that is stopped gets no grace, and neither waits for the other: ending
    takes a monitor and the OCI runtime, detaching takes the plugins.
    """
    await every((stop_containers(work), _release(work)))


async def _release(work: SandboxWork) -> None:
    with span("network.detach"):
        await release(work)


async def _mark_not_ready(work: SandboxWork) -> None:
    work.record = replace(work.record, state=SandboxState.NOT_READY, released=True)
    await work.node.store.sandboxes.put_end(work.record)


RELEASE: Final[tuple[Step[SandboxWork], ...]] = (
    Step(name="containers_and_network", do=stop_and_detach, deadline_s=180.0),
    Step(name="namespaces", do=remove_namespaces),
    Step(name="init", do=remove_init),
    Step(name="shm", do=unmount_shm),
)

STOP_SANDBOX: Final[Verb[SandboxWork]] = Verb(
    name="stop_sandbox", steps=(*RELEASE, Step(name="record", do=_mark_not_ready))
)
