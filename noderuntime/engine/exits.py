"""Ends of containers: from the monitor's word, or from looking, to the record.

A monitor reports once. So that no end is lost (a report before we listened, a monitor that was
killed), every running container is also looked at every few seconds, and by who waits for it.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable
from dataclasses import replace
from functools import partial

from noderuntime.engine.container_start import release_process
from noderuntime.engine.jobs import describe
from noderuntime.engine.node import Node
from noderuntime.engine.sandbox_init import look_for_init, shares_pid
from noderuntime.engine.state import ContainerRecord, ContainerState, SandboxState
from noderuntime.engine.work import ContainerWork
from noderuntime.errors import NodeRuntimeError
from noderuntime.host.ports import Exit

_log = logging.getLogger(__name__)

UNKNOWN_CODE = 255
KILLED_CODE = 128 + 9
UNKNOWN = "Unknown"
LOST = (
    "the container's monitor was killed: the container runs on, but nothing that it writes is kept "
    "from here on; delete the Pod to have it started anew"
)
LOST_BEFORE_ITS_END = (
    "the container's monitor was killed before it ended: the exit code is the kernel's, and the end "
    "of the log is missing"
)
LOST_WITH_ITS_END = (
    "the container's monitor was killed, and the exit code is not known: Linux before 6.15 does not "
    "tell it, nor does any to a runtime that was not there"
)
LOOK_EVERY_S = 5.0
FIRST_POLL_S = 0.01
LONGEST_POLL_S = 1.0
RELEASE_S = 30.0


async def watch_exits(node: Node) -> None:
    """Record every end that a monitor reports, until cancelled."""
    async for container_id in node.parts.monitor.exits():
        node.jobs.start(("exit", container_id), partial(look, node, container_id))


async def watch_running(node: Node) -> None:
    """Look at every first process and running container now and every few seconds."""
    while True:
        for sandbox in node.store.sandboxes.all():
            if sandbox.state is SandboxState.READY and shares_pid(sandbox):
                node.jobs.start(("init", sandbox.id), partial(look_for_init, node, sandbox))
        for record in node.store.containers.all():
            if record.state is ContainerState.RUNNING:
                node.jobs.start(("exit", record.id), partial(look, node, record.id))
        node.jobs.start(("flush",), partial(flush, node))
        await asyncio.sleep(LOOK_EVERY_S)


async def flush(node: Node) -> None:
    """Write, and remove, what a full disk did not take."""
    for record_id in node.store.containers.unwritten():
        async with node.locks.of(record_id):
            await node.store.containers.flush(record_id)
    for record_id in node.store.sandboxes.unwritten():
        async with node.locks.of(record_id):
            await node.store.sandboxes.flush(record_id)
    await node.journal.sweep()


async def look(node: Node, container_id: str) -> None:
    """Record the container's end, if it has ended."""
    async with node.locks.of(container_id):
        record = node.store.containers.get(container_id)
        if record is None or record.state is not ContainerState.RUNNING:
            return
        ended = await end_of(node, record)
        if ended is None:
            return
        await node.store.containers.put_end(ended)
        _log.info(
            "a container ended",
            extra={
                "container_id": record.id,
                "exit_code": ended.exit_code,
                "reason": ended.reason,
            },
        )
        # Who waits for the end need not wait for what is taken away after it; who removes waits for
        # the lock.
        node.endings.wake(container_id)
        await _release(node, ended)


async def wait_ended(node: Node, container_id: str, deadline: Callable[[], float]) -> bool:
    """Wait for the end of the container; False when ``deadline()`` (loop time) has passed.

    Asked again each time, as a second StopContainer with a shorter grace moves it nearer.
    """
    loop = asyncio.get_running_loop()
    poll_s = FIRST_POLL_S
    while True:
        record = node.store.containers.get(container_id)
        if record is None or record.state is not ContainerState.RUNNING:
            return True
        left = deadline() - loop.time()
        if left <= 0:
            return False
        await node.endings.wait(container_id, min(left, poll_s))
        poll_s = min(poll_s * 2, LONGEST_POLL_S)
        await look(node, container_id)


async def end_of(node: Node, record: ContainerRecord) -> ContainerRecord | None:
    """Return the record as it is when the container has ended, None while it runs.

    Without the monitor's word a container is over only when neither its monitor nor its process is
    there: one whose monitor was killed runs on, without a log (``_lost``); its exit code comes from
    the kernel then.
    """
    monitor = node.parts.monitor
    exit_ = await monitor.exit_of(record.id)
    if exit_ is None:
        if await monitor.is_alive(record.id):
            return None
        exit_ = await monitor.exit_of(record.id)  # written just before the monitor ended
    if exit_ is not None:
        return exited(record, await _with_oom(node, record, exit_))
    if await node.runtime(record.oci_runtime).state(record.id) == "running":
        await _lost(node, record)
        return None
    exit_ = await monitor.lost_exit_of(record.id)
    if exit_ is None:
        return vanished(node, record, LOST_WITH_ITS_END)
    ended = exited(record, await _with_oom(node, record, exit_))
    return replace(ended, message=LOST_BEFORE_ITS_END, monitor_lost=True)


async def _lost(node: Node, record: ContainerRecord) -> None:
    """Say once that nothing writes the container's log any more.

    It is not ended for that: a program that writes to its outputs ends by SIGPIPE, and is started
    again by the kubelet, with a monitor; one that does not is of more use as it is.
    """
    if record.monitor_lost:
        return
    _log.error(
        "the monitor of a running container was killed; the container runs on without a log",
        extra={"container_id": record.id, "container": record.config.name},
    )
    try:
        await node.parts.monitor.end_log(record.id, LOST)
    except NodeRuntimeError as error:
        _log.warning(
            "the end of a log could not be written to it",
            extra={"container_id": record.id, "error": describe(error)},
        )
    await node.store.containers.put_end(replace(record, message=LOST, monitor_lost=True))


async def _with_oom(node: Node, record: ContainerRecord, exit_: Exit) -> Exit:
    """Ask the cgroup as well: a monitor may not hear of a kill that ends the container with it."""
    if exit_.oom_killed or exit_.code != KILLED_CODE:
        return exit_
    kills = await node.parts.cgroups.oom_kills(record.cgroup_path)
    return replace(exit_, oom_killed=kills > 0)


def exited(record: ContainerRecord, exit_: Exit) -> ContainerRecord:
    """Return the record of a container that ended as its monitor says."""
    reason = "Completed" if exit_.code == 0 else "Error"
    if exit_.oom_killed:
        reason = "OOMKilled"
    return replace(
        record,
        state=ContainerState.EXITED,
        exit_code=exit_.code,
        reason=reason,
        finished_at_ns=exit_.finished_at_ns,
        pid=0,
    )


def vanished(node: Node, record: ContainerRecord, message: str) -> ContainerRecord:
    """Return the record of a container of whose end nobody knows."""
    return replace(
        record,
        state=ContainerState.EXITED,
        exit_code=UNKNOWN_CODE,
        reason=UNKNOWN,
        message=message,
        finished_at_ns=node.now_ns(),
        pid=0,
    )


async def _release(node: Node, record: ContainerRecord) -> None:
    """Free the OCI runtime's state and the cgroup; removing the container does it again."""
    try:
        async with asyncio.timeout(RELEASE_S):
            if record.reason == UNKNOWN:
                await release_process(ContainerWork(node=node, record=record))
            else:  # its monitor has collected it
                bundle = node.paths.bundle(record.id)
                await node.runtime(record.oci_runtime).forget(record.id, bundle)
                await node.parts.cgroups.remove(record.cgroup_path)
    except (NodeRuntimeError, TimeoutError) as error:
        _log.warning(
            "an ended container could not be released",
            extra={"container_id": record.id, "error": describe(error)},
        )
