"""What containers and Pods use, read when it is asked for."""

from __future__ import annotations

from contextlib import suppress
from dataclasses import dataclass
from typing import TYPE_CHECKING

from noderuntime.engine.state import ContainerState
from noderuntime.errors import HostError, NotFoundError
from noderuntime.host.netstat import network_usage
from noderuntime.host.ports import CgroupStats, NetworkUsage
from noderuntime.policy.model import NamespaceMode

if TYPE_CHECKING:
    from pathlib import Path

    from noderuntime.engine.node import Node
    from noderuntime.engine.state import SandboxRecord
    from noderuntime.images.ports import FsUsage


@dataclass(frozen=True, slots=True, kw_only=True)
class ContainerStats:
    """One reading of a container."""

    cgroup: CgroupStats
    writable_layer: FsUsage


@dataclass(frozen=True, slots=True, kw_only=True)
class SandboxStats:
    """One reading of a Pod; ``network`` is empty with the host's network."""

    cgroup: CgroupStats
    network: tuple[NetworkUsage, ...]


async def container_stats(node: Node, container_id: str) -> ContainerStats:
    """Read one container; one that does not run uses no CPU and no memory."""
    record = node.store.containers.require(container_id)
    cgroup = CgroupStats(timestamp_ns=node.now_ns())
    if record.state is ContainerState.RUNNING:
        with suppress(NotFoundError):  # it ends right now
            cgroup = await node.parts.cgroups.stats(record.cgroup_path)
    return ContainerStats(cgroup=cgroup, writable_layer=await node.parts.images.usage(record.id))


async def sandbox_stats(node: Node, sandbox_id: str) -> SandboxStats:
    """Read one Pod: the kubelet's cgroup of it, and its interfaces."""
    record = node.store.sandboxes.require(sandbox_id)
    cgroup = CgroupStats(timestamp_ns=node.now_ns())
    if record.config.cgroup_parent:
        with suppress(NotFoundError):
            cgroup = await node.parts.cgroups.pod_stats(record.config.cgroup_parent)
    pins = node.paths.namespaces(record.id)
    return SandboxStats(cgroup=cgroup, network=await _network(record, pins))


async def _network(record: SandboxRecord, pins: Path) -> tuple[NetworkUsage, ...]:
    if record.config.namespaces.network is NamespaceMode.NODE or record.released:
        return ()
    try:
        return await network_usage(pins / "net")
    except HostError:
        return ()  # it is being stopped, or the node was restarted
