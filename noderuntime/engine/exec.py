"""Processes beside a container's own, its streams and its log, and ports of a sandbox."""

from __future__ import annotations

import asyncio
import json
from collections.abc import Mapping
from dataclasses import replace
from typing import cast

from noderuntime.engine import admission, limits
from noderuntime.engine.node import Node
from noderuntime.engine.sandbox_run import attachment_of
from noderuntime.engine.state import ContainerRecord, ContainerState, SandboxState
from noderuntime.errors import FailedPreconditionError, InvalidArgumentError, StateError
from noderuntime.host.ports import AttachStream, ExecRequest, ExecResult, ExecStream
from noderuntime.policy import spec
from noderuntime.policy.model import Resources
from noderuntime.telemetry.trace import span


async def exec_sync(
    node: Node, container_id: str, argv: tuple[str, ...], timeout_s: float
) -> ExecResult:
    """Run a process to its end. Raises DeadlineExceededError past ``timeout_s`` (0 = none)."""
    record = require_running(node, container_id)
    request = await _request(node, record, argv, tty=False, stdin=False)
    with span("oci.exec", container_id=record.id):
        return await node.parts.exec.sync(node.runtime(record.oci_runtime), request, timeout_s)


async def open_exec(
    node: Node, container_id: str, argv: tuple[str, ...], *, tty: bool, stdin: bool
) -> ExecStream:
    """Start a process and hand out its streams."""
    record = require_running(node, container_id)
    request = await _request(node, record, argv, tty=tty, stdin=stdin)
    with span("oci.exec", container_id=record.id):
        return await node.parts.exec.open(node.runtime(record.oci_runtime), request)


async def attach(node: Node, container_id: str) -> AttachStream:
    """Connect to the container's own process."""
    return await node.parts.monitor.attach(require_running(node, container_id).id)


async def reopen_log(node: Node, container_id: str) -> None:
    """Make the monitor write to a new log file; the kubelet has renamed the old one."""
    record = require_running(node, container_id)
    if record.log_path:
        await node.parts.monitor.reopen_log(record.id)


async def update_resources(node: Node, container_id: str, resources: Resources) -> None:
    """Set new limits on a running container, through the policy's gate."""
    record = require_running(node, container_id)
    sandbox = node.store.sandboxes.require(record.sandbox_id)
    handler = admission.for_pod(node.handlers.get(sandbox.handler), sandbox.config, node.now_ns())
    granted = admission.admit_resources(handler, resources)
    async with node.locks.of(record.id):
        record = require_running(node, record.id)
        await _set(node, record, limits.honourable(node.parts.cgroups, granted))
        config = replace(record.config, resources=_merged(record.config.resources, granted))
        await node.store.containers.put(replace(record, config=config))


async def _set(node: Node, record: ContainerRecord, wanted: Resources) -> None:
    told, lifts_quota = limits.in_place(node.parts.cgroups, record.config.resources, wanted)
    await node.runtime(record.oci_runtime).update(record.id, told)
    if lifts_quota:
        await node.parts.cgroups.lift_cpu_quota(record.cgroup_path)


async def update_sandbox_resources(
    node: Node, sandbox_id: str, overhead: Resources, resources: Resources
) -> None:
    """Keep what the kubelet says of the Pod; its cgroup is the kubelet's own, and set already."""
    record = node.store.sandboxes.require(sandbox_id)
    async with node.locks.of(record.id):
        record = node.store.sandboxes.require(record.id)
        config = replace(record.config, overhead=overhead, resources=resources)
        await node.store.sandboxes.put(replace(record, config=config))


async def port_forward(
    node: Node, sandbox_id: str, port: int
) -> tuple[asyncio.StreamReader, asyncio.StreamWriter]:
    """Connect to a port on localhost inside the sandbox."""
    record = node.store.sandboxes.require(sandbox_id)
    if record.state is not SandboxState.READY:
        raise FailedPreconditionError(
            f"sandbox {record.id} is not ready; there is nothing to reach"
        )
    if not 0 < port < 65536:
        raise InvalidArgumentError(f"port {port} is not a TCP port")
    attachment = attachment_of(node, record)
    netns = None if attachment is None else attachment.netns
    return await node.parts.port_forward.connect(netns, port)


def require_running(node: Node, container_id: str) -> ContainerRecord:
    """Return the record. Raises NotFoundError, FailedPreconditionError."""
    record = node.store.containers.require(container_id)
    if record.state is not ContainerState.RUNNING:
        raise FailedPreconditionError(f"container {record.id} is not running ({record.state})")
    return record


async def _request(
    node: Node, record: ContainerRecord, argv: tuple[str, ...], *, tty: bool, stdin: bool
) -> ExecRequest:
    if not argv or any("\0" in word for word in argv):
        raise InvalidArgumentError("cmd: a command is needed, without NUL characters")
    path = node.paths.spec(record.id)
    try:
        document = json.loads(await node.disk.read(path))
        own = document["process"]
    except (ValueError, KeyError, TypeError) as error:
        raise StateError(f"{path} is not an OCI configuration any more") from error
    process = spec.exec_process(cast("Mapping[str, object]", own), argv, tty=tty)
    return ExecRequest(container_id=record.id, process=process, terminal=tty, stdin=stdin)


def _merged(old: Resources, new: Resources) -> Resources:
    """Return what holds after an update: 0 and "" leave a limit as it is."""
    return Resources(
        cpu_period_us=new.cpu_period_us or old.cpu_period_us,
        cpu_quota_us=new.cpu_quota_us or old.cpu_quota_us,
        cpu_shares=new.cpu_shares or old.cpu_shares,
        memory_limit_bytes=new.memory_limit_bytes or old.memory_limit_bytes,
        memory_swap_limit_bytes=new.memory_swap_limit_bytes or old.memory_swap_limit_bytes,
        oom_score_adj=old.oom_score_adj,
        cpuset_cpus=new.cpuset_cpus or old.cpuset_cpus,
        cpuset_mems=new.cpuset_mems or old.cpuset_mems,
        hugepage_limits_bytes={**old.hugepage_limits_bytes, **new.hugepage_limits_bytes},
        unified={**old.unified, **new.unified},
    )
