"""Readings of containers and Pods as CRI's stats.

A container that ends while a list is made is left out of it, not an error: the kubelet's summary
asks for all at once. ``usage_nano_cores`` is left to the kubelet, which has the reading before.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from noderuntime.cri import answers, filters
from noderuntime.cri.runtime_v1 import api_pb2 as pb
from noderuntime.engine.state import ContainerState, SandboxState
from noderuntime.errors import HostError, NotFoundError

if TYPE_CHECKING:
    from collections.abc import AsyncIterator

    from noderuntime.engine.engine import ContainerStats, Engine
    from noderuntime.engine.state import ContainerRecord, SandboxRecord
    from noderuntime.host.ports import CgroupStats
    from noderuntime.host.readings import NetworkUsage

DEFAULT_INTERFACE = "eth0"


async def of_container(engine: Engine, record: ContainerRecord) -> pb.ContainerStats:
    """Read one container."""
    return container_message(record, await engine.container_stats(record.id))


async def of_containers(
    engine: Engine, wanted: pb.ContainerStatsFilter
) -> AsyncIterator[pb.ContainerStats]:
    """Read every running container that the filter takes."""
    asked = pb.ContainerFilter(
        id=wanted.id, pod_sandbox_id=wanted.pod_sandbox_id, label_selector=wanted.label_selector
    )
    for record in filters.containers(engine.containers(), asked):
        if record.state is ContainerState.RUNNING:
            try:
                yield await of_container(engine, record)
            except (NotFoundError, HostError):
                continue


async def of_sandbox(engine: Engine, record: SandboxRecord) -> pb.PodSandboxStats:
    """Read one Pod with its running containers."""
    reading = await engine.sandbox_stats(record.id)
    mine = pb.ContainerStatsFilter(pod_sandbox_id=record.id)
    cgroup = reading.cgroup
    return pb.PodSandboxStats(
        attributes=pb.PodSandboxAttributes(
            id=record.id,
            metadata=answers.sandbox_metadata(record.config.pod),
            labels=record.config.labels,
            annotations=record.config.annotations,
        ),
        linux=pb.LinuxPodSandboxStats(
            cpu=_cpu(cgroup),
            memory=_memory(cgroup, 0),
            network=_network(cgroup.timestamp_ns, reading.network) if reading.network else None,
            process=pb.ProcessUsage(
                timestamp=cgroup.timestamp_ns, process_count=_uint(cgroup.pids)
            ),
            containers=[stats async for stats in of_containers(engine, mine)],
        ),
    )


async def of_sandboxes(
    engine: Engine, wanted: pb.PodSandboxStatsFilter
) -> AsyncIterator[pb.PodSandboxStats]:
    """Read every ready Pod that the filter takes."""
    asked = pb.PodSandboxFilter(id=wanted.id, label_selector=wanted.label_selector)
    for record in filters.sandboxes(engine.sandboxes(), asked):
        if record.state is SandboxState.READY:
            try:
                yield await of_sandbox(engine, record)
            except (NotFoundError, HostError):
                continue


def container_message(record: ContainerRecord, reading: ContainerStats) -> pb.ContainerStats:
    """Return the message of one reading."""
    return pb.ContainerStats(
        attributes=pb.ContainerAttributes(
            id=record.id,
            metadata=pb.ContainerMetadata(name=record.config.name, attempt=record.config.attempt),
            labels=record.config.labels,
            annotations=record.config.annotations,
        ),
        cpu=_cpu(reading.cgroup),
        memory=_memory(reading.cgroup, record.config.resources.memory_limit_bytes),
        writable_layer=answers.filesystem(reading.writable_layer),
    )


def _cpu(cgroup: CgroupStats) -> pb.CpuUsage:
    return pb.CpuUsage(
        timestamp=cgroup.timestamp_ns, usage_core_nano_seconds=_uint(cgroup.cpu_usage_ns)
    )


def _memory(cgroup: CgroupStats, limit_bytes: int) -> pb.MemoryUsage:
    available = max(limit_bytes - cgroup.memory_working_set_bytes, 0)
    return pb.MemoryUsage(
        timestamp=cgroup.timestamp_ns,
        working_set_bytes=_uint(cgroup.memory_working_set_bytes),
        available_bytes=_uint(available) if limit_bytes else None,
        usage_bytes=_uint(cgroup.memory_usage_bytes),
        rss_bytes=_uint(cgroup.memory_rss_bytes),
        page_faults=_uint(cgroup.memory_page_faults),
        major_page_faults=_uint(cgroup.memory_major_page_faults),
    )


def _network(timestamp_ns: int, usages: tuple[NetworkUsage, ...]) -> pb.NetworkUsage:
    interfaces = [
        pb.NetworkInterfaceUsage(
            name=usage.interface,
            rx_bytes=_uint(usage.rx_bytes),
            rx_errors=_uint(usage.rx_errors),
            tx_bytes=_uint(usage.tx_bytes),
            tx_errors=_uint(usage.tx_errors),
        )
        for usage in usages
    ]
    default = next((one for one in interfaces if one.name == DEFAULT_INTERFACE), interfaces[0])
    others = [one for one in interfaces if one is not default]
    return pb.NetworkUsage(timestamp=timestamp_ns, default_interface=default, interfaces=others)


def _uint(value: int) -> pb.UInt64Value:
    return pb.UInt64Value(value=max(value, 0))
