"""StopContainer: the stop signal, the grace, SIGKILL, the end; and always an end of the call."""

from __future__ import annotations

import asyncio
import logging
import signal
from functools import partial
from typing import Final

from noderuntime.engine.exits import wait_ended
from noderuntime.engine.jobs import describe
from noderuntime.engine.node import Node
from noderuntime.engine.signals import stop_signal
from noderuntime.engine.state import ContainerState
from noderuntime.engine.steps import Step, Verb, carry_through
from noderuntime.engine.work import ContainerWork
from noderuntime.errors import DeadlineExceededError, HostError

_log = logging.getLogger(__name__)

LONGEST_GRACE_S = 365 * 24 * 3600.0
OBEYS_S = 3.0  # after the OCI runtime's SIGKILL: then the cgroup's processes are killed without it
KILLED_S = 15.0  # after SIGKILL only a process that hangs in the kernel is still there


async def stop_container(
    node: Node, container_id: str, timeout_s: float, *, covered: bool = False
) -> None:
    """Stop it; unknown, created or ended is success. A shorter grace hurries a stop under way.

    ``covered``: by the intent of the verb that this is a part of (see ``carry_through``).
    """
    record = node.store.containers.find(container_id)
    if record is None or record.state is ContainerState.EXITED:
        return
    deadline = asyncio.get_running_loop().time() + min(max(timeout_s, 0.0), LONGEST_GRACE_S)
    known = node.stop_deadlines.get(record.id, deadline)
    node.stop_deadlines[record.id] = min(known, deadline)
    work = partial(_stop, node, record.id, covered=covered)
    await node.jobs.join(("stop_container", record.id), work)


async def _stop(node: Node, container_id: str, *, covered: bool) -> None:
    try:
        async with node.locks.of(container_id):  # a start under way ends first
            record = node.store.containers.get(container_id)
        if record is not None and record.state is ContainerState.RUNNING:
            left_s = node.stop_deadlines.get(container_id, 0.0) - asyncio.get_running_loop().time()
            until_ns = node.now_ns() + int(max(left_s, 0.0) * 1e9)
            work = ContainerWork(node=node, record=record, until_ns=until_ns)
            await carry_through(STOP_CONTAINER, work, covered=covered)
    finally:
        node.stop_deadlines.pop(container_id, None)


async def _signal(work: ContainerWork) -> None:
    deadline = work.node.stop_deadlines.get(work.record.id, 0.0)
    if deadline > asyncio.get_running_loop().time():
        await _send(work, stop_signal(work.record.stop_signal))


async def _wait(work: ContainerWork) -> None:
    deadlines, container_id = work.node.stop_deadlines, work.record.id
    await wait_ended(work.node, container_id, lambda: deadlines.get(container_id, 0.0))


async def _kill(work: ContainerWork) -> None:
    record = work.node.store.containers.get(work.record.id)
    if record is None or record.state is not ContainerState.RUNNING:
        return
    was_sent = await _send(work, signal.SIGKILL)
    if await _wait_ended(work, OBEYS_S if was_sent else 0.0):
        return
    await work.node.parts.cgroups.kill(record.cgroup_path)
    if not await _wait_ended(work, KILLED_S):
        raise DeadlineExceededError(
            f"container {record.id} has not ended {KILLED_S:g} s after SIGKILL; its process "
            "hangs in the kernel or its monitor does not answer"
        )


async def _wait_ended(work: ContainerWork, timeout_s: float) -> bool:
    deadline = asyncio.get_running_loop().time() + timeout_s
    return await wait_ended(work.node, work.record.id, lambda: deadline)


async def _send(work: ContainerWork, number: int) -> bool:
    """Send a signal by the OCI runtime; False where it could not."""
    try:
        if not await work.node.parts.monitor.signal(work.record.id, number):
            await work.node.runtime(work.record.oci_runtime).kill(work.record.id, number)
    except (HostError, DeadlineExceededError) as error:
        # It may just have ended: whether it has is seen by waiting.
        _log.warning(
            "a signal could not be sent",
            extra={"container_id": work.record.id, "error": describe(error)},
        )
        return False
    return True


STOP_CONTAINER: Final[Verb[ContainerWork]] = Verb(
    name="stop_container",
    steps=(
        Step(name="signal", do=_signal),
        Step(name="wait", do=_wait, deadline_s=LONGEST_GRACE_S + 60.0),
        Step(name="kill", do=_kill),
    ),
)
