"""Processes beside a container's own, its streams and its log, and ports of a sandbox."""

from __future__ import annotations

import asyncio
import json
from collections.abc import Mapping
from typing import cast

from noderuntime.engine import sessions
from noderuntime.engine.decisions import EXEC, EXEC_SYNC
from noderuntime.engine.node import Node
from noderuntime.engine.sandbox_run import attachment_of
from noderuntime.engine.state import (
    ContainerRecord,
    ContainerState,
    SandboxRecord,
    SandboxState,
)
from noderuntime.errors import FailedPreconditionError, InvalidArgumentError, StateError
from noderuntime.host.ports import AttachStream, ExecRequest, ExecResult, ExecStream
from noderuntime.policy import spec
from noderuntime.telemetry.trace import span


async def exec_sync(
    node: Node, container_id: str, argv: tuple[str, ...], timeout_s: float
) -> ExecResult:
    """Run a process to its end. Raises DeadlineExceededError past ``timeout_s`` (0 = none)."""
    record = require_running(node, container_id)
    request = await _request(node, record, argv, verb=EXEC_SYNC)
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
    record = require_running(node, container_id)
    await _require_monitor(node, record)
    await sessions.admit_attach(node, record)
    return await node.parts.monitor.attach(record.id)


async def reopen_log(node: Node, container_id: str) -> None:
    """Make the monitor write to a new log file; the kubelet has renamed the old one."""
    record = require_running(node, container_id)
    if record.log_path:
        await _require_monitor(node, record)
        await node.parts.monitor.reopen_log(record.id)


async def admit_port_forward(node: Node, sandbox_id: str) -> SandboxRecord:
    """Ask the gate about a session, of whatever ports. Raises FailedPreconditionError, DeniedError."""
    record = _require_ready(node, sandbox_id)
    await sessions.admit_forward(node, record)
    return record


async def port_forward(
    node: Node, sandbox_id: str, port: int
) -> tuple[asyncio.StreamReader, asyncio.StreamWriter]:
    """Connect to a port on localhost inside the sandbox; a session makes many connections."""
    record = _require_ready(node, sandbox_id)
    if not 0 < port < 65536:
        raise InvalidArgumentError(f"port {port} is not a TCP port")
    attachment = attachment_of(node, record)
    netns = None if attachment is None else attachment.netns
    return await node.parts.port_forward.connect(netns, port)


def _require_ready(node: Node, sandbox_id: str) -> SandboxRecord:
    record = node.store.sandboxes.require(sandbox_id)
    if record.state is not SandboxState.READY:
        raise FailedPreconditionError(
            f"sandbox {record.id} is not ready; there is nothing to reach"
        )
    return record


def require_running(node: Node, container_id: str) -> ContainerRecord:
    """Return the record. Raises NotFoundError, FailedPreconditionError."""
    record = node.store.containers.require(container_id)
    if record.state is not ContainerState.RUNNING:
        raise FailedPreconditionError(f"container {record.id} is not running ({record.state})")
    return record


async def _require_monitor(node: Node, record: ContainerRecord) -> None:
    if not await node.parts.monitor.is_alive(record.id):
        raise FailedPreconditionError(
            f"container {record.id} has lost its monitor, and with it its streams and its log; "
            "delete the Pod to have it started anew"
        )


async def _request(
    node: Node,
    record: ContainerRecord,
    argv: tuple[str, ...],
    *,
    verb: str = EXEC,
    tty: bool = False,
    stdin: bool = False,
) -> ExecRequest:
    if not argv or any("\0" in word for word in argv):
        raise InvalidArgumentError("cmd: a command is needed, without NUL characters")
    path = node.paths.spec(record.id)
    try:
        document = json.loads(await node.disk.read(path))
        own = cast("Mapping[str, object]", document["process"])
        admitted = await sessions.admit_exec(node, record, own, verb)
        process = spec.exec_process(admitted, argv, tty=tty)
    except (ValueError, KeyError, TypeError) as error:
        raise StateError(f"{path} is not an OCI configuration any more") from error
    # As it is now: an update sets it on the processes, not in the file.
    process["oomScoreAdj"] = record.config.resources.oom_score_adj
    return ExecRequest(container_id=record.id, process=process, terminal=tty, stdin=stdin)
