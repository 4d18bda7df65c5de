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
from noderuntime.policy.mounts import is_kubelets

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


async def _leave_out(work: ContainerWork) -> None:
    """Take other containers' mounts out of what this one has bound, before its process starts.

    One that binds "/" or run_dir, with all below it, would else keep the disk space of others, and
    their network namespaces, for as long as it runs.
    """
    pod = work.node.store.sandboxes.require(work.record.sandbox_id).config.pod
    folders = await work.node.disk.run(_of_run_dir, work.node.paths.run_dir, work.record, pod.uid)
    if folders:
        await work.node.parts.mounts.leave_out(work.started_pid, folders)


def _of_run_dir(run_dir: Path, record: ContainerRecord, pod_uid: str) -> list[Path]:
    """Return where the container sees run_dir, or a part of it. Blocking."""
    ours, found = run_dir.resolve(), list[Path]()
    for mount in record.config.mounts:
        if mount.image or is_kubelets(mount.host_path, pod_uid):
            continue
        real, inside = Path(mount.host_path).resolve(), Path(mount.container_path)
        if ours.is_relative_to(real):
            found.append(inside / ours.relative_to(real))
        elif real.is_relative_to(ours):
            found.append(inside)
    return found


def _copies(work: ContainerWork) -> list[Path]:
    paths, container_id = work.node.paths, work.record.id
    numbers = range(len(work.record.config.mounts))
    images = [n for n in numbers if work.record.config.mounts[n].image]
    return [
        paths.rootfs(container_id),
        *(paths.image_volumes(container_id) / str(n) for n in images),
        *(paths.volume(container_id, n) for n in numbers if n not in images),
    ]


async def _seal(work: ContainerWork) -> None:
    """Keep the mounts in the bundle, which the OCI runtime has taken, out of what is cloned later."""
    await work.node.parts.mounts.set_bindable(_copies(work), bindable=False)


async def _unseal(work: ContainerWork) -> None:
    await work.node.parts.mounts.set_bindable(_copies(work), bindable=True)


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
        Step(name="mounts", do=_leave_out),
        Step(name="start", do=_oci_start, span="oci.start"),
        Step(name="seal", do=_seal, undo=_unseal),
        Step(name="record", do=_mark_running, undo=mark_created),
    ),
)
