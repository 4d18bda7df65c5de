"""RemovePodSandbox: containers, network, files and record, in that order."""

from __future__ import annotations

from dataclasses import replace
from functools import partial
from typing import Final

from noderuntime.engine.container_remove import remove_container
from noderuntime.engine.jobs import every
from noderuntime.engine.node import Node
from noderuntime.engine.sandbox_run import drop_record, remove_files
from noderuntime.engine.sandbox_stop import RELEASE
from noderuntime.engine.state import SandboxRecord
from noderuntime.engine.steps import Step, Verb, carry_through
from noderuntime.engine.work import SandboxWork


async def remove_sandbox(node: Node, sandbox_id: str) -> None:
    """Remove it with its containers; unknown is success."""
    record = node.store.sandboxes.find(sandbox_id)
    if record is not None:
        await node.jobs.join(("remove_sandbox", record.id), partial(_remove, node, record))


async def _remove(node: Node, record: SandboxRecord) -> None:
    async with node.locks.of(record.id):
        current = node.store.sandboxes.get(record.id)
        if current is None:
            return
        node.store.closing.add(record.id)
        try:
            await carry_through(REMOVE_SANDBOX, SandboxWork(node=node, record=current))
        finally:
            node.store.closing.discard(record.id)


async def _remove_containers(work: SandboxWork) -> None:
    containers = work.node.store.containers_of(work.record.id)
    await every(remove_container(work.node, c.id, covered=True) for c in containers)


async def _forget(work: SandboxWork) -> None:
    await drop_record(work)
    await work.node.journal.end_others(work.intent(REMOVE_SANDBOX.name))


def _unless_released(step: Step[SandboxWork]) -> Step[SandboxWork]:
    """Return the step, without a thing to do where a stop has done it, as its record says."""

    async def do(work: SandboxWork) -> None:
        if not work.record.released:
            await step.do(work)

    return replace(step, do=do)


REMOVE_SANDBOX: Final[Verb[SandboxWork]] = Verb(
    name="remove_sandbox",
    steps=(
        *(_unless_released(step) for step in RELEASE),
        Step(name="remove_containers", do=_remove_containers, deadline_s=180.0),
        Step(name="files", do=remove_files),
        Step(name="record", do=_forget),
    ),
)
