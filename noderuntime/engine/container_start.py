"""StartContainer: monitor and OCI create, OCI start, record.

A start that fails leaves the container Exited with code 128 and reason StartError, as the kubelet
knows it. A start that was cut off by a crash is undone: the container is Created again.
"""

from __future__ import annotations

from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Final

from noderuntime.engine.container_create import require_ready
from noderuntime.engine.jobs import describe
from noderuntime.engine.node import Node
from noderuntime.engine.state import ContainerRecord, ContainerState
from noderuntime.engine.steps import Step, Verb, perform
from noderuntime.engine.work import ContainerWork
from noderuntime.errors import FailedPreconditionError
from noderuntime.host.ports import MonitorRequest

START_ERROR = "StartError"
START_ERROR_CODE = 128
NO_LOG = Path()  # what the monitor takes for "keep no log"


async def start_container(node: Node, container_id: str) -> None:
    """Start it; one that runs is success. Raises FailedPreconditionError for one that has ended."""
    record = node.store.containers.require(container_id)
    await node.jobs.join(("start_container", record.id), partial(_start, node, record.id))


async def _start(node: Node, container_id: str) -> None:
    async with node.locks.of(container_id):
        record = node.store.containers.require(container_id)
        if record.state is ContainerState.RUNNING:
            return
        if record.state is not ContainerState.CREATED or record.id in node.store.closing:
            raise FailedPreconditionError(
                f"container {record.id} is {record.state}; only a created one can be started"
            )
        await require_ready(node, record.sandbox_id)
        work = ContainerWork(node=node, record=record)
        try:
            await perform(START_CONTAINER, work)
        except Exception as error:
            await node.store.containers.put_end(_failed(node, record, error))
            node.endings.wake(record.id)
            raise


def _failed(node: Node, record: ContainerRecord, error: Exception) -> ContainerRecord:
    return replace(
        record,
        state=ContainerState.EXITED,
        exit_code=START_ERROR_CODE,
        reason=START_ERROR,
        message=describe(error),
        finished_at_ns=node.now_ns(),
    )


async def _make_log_directory(work: ContainerWork) -> None:
    if work.record.log_path:
        parent = Path(work.record.log_path).parent
        await work.node.disk.run(parent.mkdir, 0o755, parents=True, exist_ok=True)


async def _oci_create(work: ContainerWork) -> None:
    record = work.record
    request = MonitorRequest(
        container_id=record.id,
        bundle=work.node.paths.bundle(record.id),
        log_path=Path(record.log_path) if record.log_path else NO_LOG,
        terminal=record.config.tty,
        stdin=record.config.stdin,
        stdin_once=record.config.stdin_once,
    )
    runtime = work.node.runtime(record.oci_runtime)
    await work.node.parts.cgroups.count_oom_kills(record.cgroup_path)
    work.started_pid = await work.node.parts.monitor.create(runtime, request)


async def release_process(work: ContainerWork) -> None:
    """Kill and forget what the OCI runtime has of the container, and its cgroup."""
    await work.node.runtime(work.record.oci_runtime).delete(work.record.id)
    await work.node.parts.cgroups.remove(work.record.cgroup_path)


async def remove_monitor(work: ContainerWork) -> None:
    """End the monitor and remove its files."""
    await work.node.parts.monitor.remove(work.record.id)


async def _undo_create(work: ContainerWork) -> None:
    # The monitor first: until it is gone it may still be starting what the rest takes away.
    try:
        await remove_monitor(work)
    finally:
        await release_process(work)


async def _oci_start(work: ContainerWork) -> None:
    await work.node.runtime(work.record.oci_runtime).start(work.record.id)


async def _mark_running(work: ContainerWork) -> None:
    work.record = replace(
        work.record,
        state=ContainerState.RUNNING,
        pid=work.started_pid,
        started_at_ns=work.node.now_ns(),
    )
    await work.node.store.containers.put(work.record)


async def mark_created(work: ContainerWork) -> None:
    """Write the record as it was before the start, where there still is one."""
    if work.node.store.containers.get(work.record.id) is None:
        return
    created = replace(
        work.record, state=ContainerState.CREATED, pid=0, started_at_ns=0, finished_at_ns=0
    )
    await work.node.store.containers.put_end(created)


START_CONTAINER: Final[Verb[ContainerWork]] = Verb(
    name="start_container",
    steps=(
        Step(name="log", do=_make_log_directory),
        Step(name="create", do=_oci_create, undo=_undo_create, span="oci.create"),
        Step(name="start", do=_oci_start, span="oci.start"),
        Step(name="record", do=_mark_running, undo=mark_created),
    ),
)
