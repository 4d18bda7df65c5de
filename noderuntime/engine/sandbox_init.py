"""The first process of a sandbox, for Pods that share a PID namespace: started, found, ended.

A sandbox lives no longer than it: the kernel ends everything in its PID namespace with it. Then the
sandbox is NotReady, and the kubelet makes a new one.

A Pod with a user namespace has one too, until its namespaces are pinned: only a process without
threads can enter a user namespace, and what it makes there belongs to it. user_namespaces(7).
"""

from __future__ import annotations

import logging
from dataclasses import replace

from noderuntime.engine.node import Node
from noderuntime.engine.state import SandboxRecord, SandboxState
from noderuntime.engine.work import SandboxWork
from noderuntime.host.ports import InitRequest
from noderuntime.policy.init_spec import build_init
from noderuntime.policy.model import NamespaceMode

_log = logging.getLogger(__name__)


def shares_pid(record: SandboxRecord) -> bool:
    """Tell whether the sandbox lives as long as its first process."""
    return record.config.namespaces.pid is NamespaceMode.POD


def needs_init(record: SandboxRecord) -> bool:
    """Tell whether a first process makes the sandbox's namespaces."""
    return shares_pid(record) or record.config.namespaces.user is not None


async def start_init(work: SandboxWork) -> None:
    """Start the first process, with the Pod's namespaces made for it."""
    node, record = work.node, work.record
    if not needs_init(record):
        return
    directory = node.paths.init(record.id)
    config = build_init(
        str(directory / "rootfs"),
        cgroups_path=_cgroup_path(node, record),
        namespaces=_namespaces(record),
        user=record.config.namespaces.user,
    )
    request = InitRequest(sandbox_id=record.id, directory=directory, config=config)
    work.init = await node.parts.inits.start(node.runtime(record.oci_runtime), request)


async def remove_init(work: SandboxWork) -> None:
    """End the first process, and with it all that is left in its PID namespace."""
    node, record = work.node, work.record
    if not needs_init(record):
        return
    runtime = node.runtime(record.oci_runtime)
    await node.parts.inits.remove(runtime, record.id, node.paths.init(record.id))
    await node.parts.cgroups.remove(_cgroup_path(node, record))


async def look_for_init(node: Node, record: SandboxRecord) -> None:
    """Mark the sandbox NotReady where its first process has ended."""
    if record.state is not SandboxState.READY or not shares_pid(record):
        return
    if await node.parts.inits.find(node.paths.init(record.id)) is not None:
        return
    current = node.store.sandboxes.get(record.id)
    if current is not None and record.id not in node.store.closing:
        _log.warning("the first process of a sandbox has ended", extra={"sandbox_id": record.id})
        await mark_not_ready(node, current)


async def mark_not_ready(node: Node, record: SandboxRecord) -> None:
    """Mark a sandbox that is ready NotReady. Not `released`: its addresses are still to be freed."""
    if record.state is SandboxState.READY:
        await node.store.sandboxes.put_end(replace(record, state=SandboxState.NOT_READY))


def _cgroup_path(node: Node, record: SandboxRecord) -> str:
    return node.parts.cgroups.oci_path(record.config.cgroup_parent, record.id)


def _namespaces(record: SandboxRecord) -> tuple[str, ...]:
    options = record.config.namespaces
    kinds = ["pid"]
    if options.network is NamespaceMode.POD:
        kinds += ["network", "uts"]
    if options.ipc is NamespaceMode.POD:
        kinds.append("ipc")
    return tuple(kinds)
