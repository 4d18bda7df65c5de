"""RemoveContainer, also of a running one: process, monitor, root, writable layer, record."""

from __future__ import annotations

from functools import partial
from typing import Final

from noderuntime.engine.container_create import (
    discard_snapshot,
    drop_record,
    remove_bundle,
    unmount_root,
)
from noderuntime.engine.container_start import release_process, remove_monitor
from noderuntime.engine.container_stop import stop_container
from noderuntime.engine.image_volumes import remove_image_volumes
from noderuntime.engine.node import Node
from noderuntime.engine.steps import Step, Verb, carry_through
from noderuntime.engine.work import ContainerWork


async def remove_container(node: Node, container_id: str, *, covered: bool = False) -> None:
    """Remove it; unknown is success. ``covered``: by an intent around it (see ``carry_through``)."""
    record = node.store.containers.find(container_id)
    if record is not None:
        work = partial(_remove, node, record.id, covered=covered)
        await node.jobs.join(("remove_container", record.id), work)


async def _remove(node: Node, container_id: str, *, covered: bool) -> None:
    record = node.store.containers.get(container_id)
    if record is None:
        return
    node.store.closing.add(container_id)  # no start comes in between
    try:
        work = ContainerWork(node=node, record=record)
        await carry_through(REMOVE_CONTAINER, work, covered=covered)
    finally:
        node.store.closing.discard(container_id)


async def _stop(work: ContainerWork) -> None:
    await stop_container(work.node, work.record.id, 0.0, covered=True)
    async with work.node.locks.of(work.record.id):  # a start that failed, an end being recorded
        return


async def _forget(work: ContainerWork) -> None:
    await drop_record(work)
    await work.node.journal.end_others(work.intent(REMOVE_CONTAINER.name))
    work.node.stop_deadlines.pop(work.record.id, None)
    work.node.endings.wake(work.record.id)


REMOVE_CONTAINER: Final[Verb[ContainerWork]] = Verb(
    name="remove_container",
    steps=(
        Step(name="stop", do=_stop),
        Step(name="process", do=release_process),
        Step(name="monitor", do=remove_monitor),
        Step(name="rootfs", do=unmount_root),
        Step(name="image_volumes", do=remove_image_volumes),
        Step(name="snapshot", do=discard_snapshot),
        Step(name="bundle", do=remove_bundle),
        Step(name="record", do=_forget),
    ),
)
