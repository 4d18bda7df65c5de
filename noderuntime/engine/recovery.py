"""Recovery: after a crash, a power loss or a reboot, before the socket answers.

1. what makes something and was cut off is undone; what takes something away is done again;
2. sandboxes and containers whose record no longer tells the truth get the truth;
3. what is there without a record is removed (``leftovers``).
Nothing in here keeps the runtime from starting: a failure is logged, its intent stays for later.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Awaitable
from functools import partial
from pathlib import Path

from noderuntime.engine import container_stop, leftovers, network
from noderuntime.engine.container_create import CREATE_CONTAINER
from noderuntime.engine.container_remove import REMOVE_CONTAINER
from noderuntime.engine.container_start import START_CONTAINER, release_process
from noderuntime.engine.container_stop import STOP_CONTAINER
from noderuntime.engine.exits import exited, look, vanished
from noderuntime.engine.jobs import describe
from noderuntime.engine.journal import Intent
from noderuntime.engine.node import Node
from noderuntime.engine.sandbox_init import look_for_init, mark_not_ready
from noderuntime.engine.sandbox_remove import REMOVE_SANDBOX
from noderuntime.engine.sandbox_run import RUN_SANDBOX
from noderuntime.engine.sandbox_stop import STOP_SANDBOX
from noderuntime.engine.state import ContainerRecord, ContainerState
from noderuntime.engine.steps import carry_through, take_back
from noderuntime.engine.work import ContainerWork, SandboxWork
from noderuntime.errors import NodeRuntimeError
from noderuntime.host import durable

_log = logging.getLogger(__name__)

BOOT_ID = Path("/proc/sys/kernel/random/boot_id")
# Starts are undone before stops and removes are done again; sandboxes come after their containers.
ORDER = (
    START_CONTAINER.name,
    CREATE_CONTAINER.name,
    RUN_SANDBOX.name,
    STOP_CONTAINER.name,
    REMOVE_CONTAINER.name,
    STOP_SANDBOX.name,
    REMOVE_SANDBOX.name,
)
UNDONE = (CREATE_CONTAINER.name, RUN_SANDBOX.name)  # nobody but us knows these IDs: no one retries
TRY_AGAIN_S = 30.0


async def recover(node: Node, boot_id: str) -> None:
    """Bring disk, kernel and records to one picture. ``boot_id`` is this boot's."""
    await node.disk.run(node.paths.run_dir.mkdir, 0o711, parents=True, exist_ok=True)
    await node.parts.namespaces.prepare(node.paths.run_dir)
    await node.parts.images.recover()
    corrupted = (await node.store.sandboxes.load(), await node.store.containers.load())
    await node.handlers.settle()
    await node.artifacts.recall(node.handlers.wanted_artifacts())
    node.handlers.offer_again()
    rebooted = await node.disk.run(is_rebooted, node, boot_id)
    for intent in sorted(await node.journal.load(), key=_order):
        await _settle_or_keep(node, intent)
    for program in sorted({record.oci_runtime for record in node.store.containers.all()}):
        # An exec whose client is gone with us would run on, unseen.
        await _tried("execs", program, node.parts.exec.sweep(node.runtime(program)))
    await _settle_sandboxes(node, rebooted=rebooted)
    await _settle_containers(node, rebooted=rebooted)
    await leftovers.remove_all(node, *corrupted)
    await _tried("the network", "", network.collect(node))
    await _tried("the boot ID", boot_id, node.disk.write(node.paths.boot_id, boot_id.encode()))


async def watch_unfinished(node: Node) -> None:
    """Try undos that failed again every while, until cancelled: they may hold an address."""
    while True:
        await asyncio.sleep(TRY_AGAIN_S)
        for intent in node.journal.unfinished():
            key = ("settle", intent.verb, intent.id)
            node.jobs.start(key, partial(_settle_or_keep, node, intent))


async def _settle_or_keep(node: Node, intent: Intent) -> None:
    if not await _tried("an intent", intent.id, _settle(node, intent)) and intent.verb in UNDONE:
        node.journal.keep(intent)


def is_rebooted(node: Node, boot_id: str) -> bool:
    """Tell whether what is in run_dir is of an earlier boot. Blocking.

    A run_dir that is a tmpfs is just empty; this is for one that is not. A file that is missing or
    torn says nothing: running containers are not given up for it.
    """
    data = durable.read(node.paths.boot_id)
    return bool(data) and data != boot_id.encode()


def _order(intent: Intent) -> int:
    return ORDER.index(intent.verb) if intent.verb in ORDER else len(ORDER)


async def _tried(what: str, object_id: str, work: Awaitable[None]) -> bool:
    try:
        await work
    except (NodeRuntimeError, OSError, ValueError) as error:
        _log.error(
            "recovery of an object failed; it is tried again",
            extra={"what": what, "id": object_id, "error": describe(error)},
        )
        return False
    return True


async def _settle(node: Node, intent: Intent) -> None:
    if intent.sandbox is not None:
        await _settle_sandbox_intent(node, intent, SandboxWork(node=node, record=intent.sandbox))
    elif intent.container is not None:
        work = ContainerWork(node=node, record=intent.container)
        await _settle_container_intent(node, intent, work)
    else:
        await node.journal.end(intent)


async def _settle_sandbox_intent(node: Node, intent: Intent, work: SandboxWork) -> None:
    record = node.store.sandboxes.get(work.record.id)
    if intent.verb == RUN_SANDBOX.name:
        if record is None:
            await take_back(RUN_SANDBOX, work)
    elif intent.verb == STOP_SANDBOX.name:
        if record is not None:
            await carry_through(STOP_SANDBOX, work)
    elif intent.verb == REMOVE_SANDBOX.name:
        await carry_through(REMOVE_SANDBOX, work)
    await node.journal.end(intent)


async def _settle_container_intent(node: Node, intent: Intent, work: ContainerWork) -> None:
    record = node.store.containers.get(work.record.id)
    if intent.verb == CREATE_CONTAINER.name:
        if record is None:
            await take_back(CREATE_CONTAINER, work)
    elif intent.verb == START_CONTAINER.name:
        # Any other state was written after the start: then it is for _settle_containers to judge.
        if record is None or record.state is ContainerState.CREATED:
            await take_back(START_CONTAINER, work)
    elif intent.verb == STOP_CONTAINER.name:
        await look(node, work.record.id)
        record = node.store.containers.get(work.record.id)
        if record is not None and record.state is ContainerState.RUNNING:
            _go_on_stopping(node, record, intent)
            return  # the intent is of the stop that goes on, and ends with it
    elif intent.verb == REMOVE_CONTAINER.name:
        await carry_through(REMOVE_CONTAINER, work)
    await node.journal.end(intent)


def _go_on_stopping(node: Node, record: ContainerRecord, intent: Intent) -> None:
    """Give the container the rest of its grace, without keeping the socket waiting for it."""
    left_s = max(intent.until_ns - node.now_ns(), 0) / 1e9
    stop = partial(container_stop.stop_container, node, record.id, left_s)
    node.jobs.start(("recovered_stop", record.id), stop)


async def _settle_sandboxes(node: Node, *, rebooted: bool) -> None:
    for record in node.store.sandboxes.all():
        gone = rebooted or not node.paths.sandbox(record.id).is_dir()
        if gone:
            await _tried("a sandbox", record.id, mark_not_ready(node, record))
        else:
            await _tried("a sandbox", record.id, look_for_init(node, record))


async def _settle_containers(node: Node, *, rebooted: bool) -> None:
    for record in node.store.containers.all():
        gone = rebooted or not node.paths.bundle(record.id).is_dir()
        if record.state is ContainerState.CREATED and gone:
            ended = vanished(node, record, "the node was restarted before it was started")
            await _tried("a container", record.id, node.store.containers.put_end(ended))
        elif record.state is ContainerState.RUNNING and gone:
            await _tried("a container", record.id, _end_with_the_boot(node, record))
        elif record.state is ContainerState.RUNNING:
            await _tried("a container", record.id, look(node, record.id))
            counted = node.parts.cgroups.count_oom_kills(record.cgroup_path)
            await _tried("a container", record.id, counted)


async def _end_with_the_boot(node: Node, record: ContainerRecord) -> None:
    exit_ = await node.parts.monitor.exit_of(record.id)
    ended = (
        vanished(node, record, "the node was restarted while it ran")
        if exit_ is None
        else exited(record, exit_)
    )
    await node.store.containers.put_end(ended)
    await release_process(ContainerWork(node=node, record=ended))
