"""What containers and Pods use, read when it is asked for."""

from __future__ import annotations

import os
from collections import defaultdict
from contextlib import suppress
from dataclasses import dataclass
from typing import TYPE_CHECKING

from noderuntime.engine.state import ContainerState, SandboxState
from noderuntime.errors import HostError, NotFoundError
from noderuntime.host.cgroup_metrics import device_name
from noderuntime.host.netstat import network_usage
from noderuntime.host.ports import CgroupStats
from noderuntime.policy.model import NamespaceMode

if TYPE_CHECKING:
    from collections.abc import AsyncIterator
    from pathlib import Path

    from noderuntime.engine.node import Node
    from noderuntime.engine.state import ContainerRecord, SandboxRecord
    from noderuntime.host.readings import CgroupMetrics, NetworkUsage
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


@dataclass(frozen=True, slots=True, kw_only=True)
class Filesystem:
    """The file system that writable layers are on."""

    device: str
    size_bytes: int
    inodes: int
    inodes_free: int


@dataclass(frozen=True, slots=True, kw_only=True)
class ContainerMetrics:
    """All that is known of a running container's use."""

    record: ContainerRecord
    cgroup: CgroupMetrics
    writable_layer: FsUsage
    filesystem: Filesystem


@dataclass(frozen=True, slots=True, kw_only=True)
class PodMetrics:
    """All that is known of a Pod's use; ``cgroup`` is None where the Pod has none of its own."""

    record: SandboxRecord
    cgroup: CgroupMetrics | None
    network: tuple[NetworkUsage, ...]
    containers: tuple[ContainerMetrics, ...]


async def pod_metrics(node: Node) -> AsyncIterator[PodMetrics]:
    """Read every ready Pod with its running containers; what goes meanwhile is left out."""
    filesystem = await node.disk.run(_filesystem, node.parts.config.state_dir)
    running = defaultdict[str, list["ContainerRecord"]](list)
    for container in node.store.containers.all():
        if container.state is ContainerState.RUNNING:
            running[container.sandbox_id].append(container)
    for record in node.store.sandboxes.all():
        if record.state is not SandboxState.READY:
            continue
        cgroup = None
        if record.config.cgroup_parent:
            with suppress(NotFoundError):
                cgroup = await node.parts.cgroups.pod_metrics(record.config.cgroup_parent)
        containers: list[ContainerMetrics] = []
        for each in running[record.id]:
            with suppress(NotFoundError, HostError):
                containers.append(await _container_metrics(node, each, filesystem))
        yield PodMetrics(
            record=record,
            cgroup=cgroup,
            network=await _network(record, node.paths.namespaces(record.id)),
            containers=tuple(containers),
        )


async def _container_metrics(
    node: Node, record: ContainerRecord, filesystem: Filesystem
) -> ContainerMetrics:
    return ContainerMetrics(
        record=record,
        cgroup=await node.parts.cgroups.metrics(record.cgroup_path),
        writable_layer=await node.parts.images.usage(record.id),
        filesystem=filesystem,
    )


def _filesystem(directory: Path) -> Filesystem:
    facts, device = os.statvfs(directory), directory.stat().st_dev
    return Filesystem(
        device=device_name(f"{os.major(device)}:{os.minor(device)}"),
        size_bytes=facts.f_blocks * facts.f_frsize,
        inodes=facts.f_files,
        inodes_free=facts.f_ffree,
    )


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
