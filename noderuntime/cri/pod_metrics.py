"""ListPodSandboxMetrics: the names and labels that the kubelet's cAdvisor has, from our readings.

The kubelet with PodAndContainerStatsFromCRI serves them at /metrics/cadvisor in cAdvisor's place, so
that dashboards go on. Values are whole numbers in CRI: seconds are cut. Timestamps stay 0, which is
'read for this call'. What a node cannot tell (PSI, huge pages) has a descriptor but no value.
Source: KEP-2371; kubelet ``pkg/kubelet/metrics/collectors/cri_metrics.go``; cAdvisor
``docs/storage/prometheus.md``.
"""

from __future__ import annotations

import time
from dataclasses import dataclass
from typing import TYPE_CHECKING, Final

from noderuntime.cri.runtime_v1 import api_pb2 as pb

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from noderuntime.engine.stats import ContainerMetrics, PodMetrics
    from noderuntime.host.readings import CgroupMetrics, DiskUsage, HugepageUsage, NetworkUsage

_S: Final = 10**9
_US: Final = 10**6
LABELS: Final = ("container", "id", "image", "name", "namespace", "pod")
UNLIMITED: Final = 2**64 - 1


@dataclass(frozen=True, slots=True)
class Descriptor:
    """A metric's name without ``container_``, its help, and what it has beside ``LABELS``."""

    name: str
    help: str
    labels: tuple[str, ...] = ()
    kind: pb.MetricType.ValueType = pb.GAUGE


def _counter(name: str, text: str, *labels: str) -> Descriptor:
    return Descriptor(name, text, labels, pb.COUNTER)


# One number of a cgroup each.
CGROUP: Final[tuple[tuple[Descriptor, Callable[[CgroupMetrics], int]], ...]] = (
    (_counter("cpu_usage_seconds_total", "CPU time used."), lambda m: m.cpu_usage_ns // _S),
    (_counter("cpu_user_seconds_total", "CPU time used as user."), lambda m: m.cpu_user_ns // _S),
    (
        _counter("cpu_system_seconds_total", "CPU time used in the kernel."),
        lambda m: m.cpu_system_ns // _S,
    ),
    (_counter("cpu_cfs_periods_total", "Enforcement periods gone by."), lambda m: m.cfs_periods),
    (
        _counter("cpu_cfs_throttled_periods_total", "Periods in which it was throttled."),
        lambda m: m.cfs_throttled_periods,
    ),
    (
        _counter("cpu_cfs_throttled_seconds_total", "Time for which it was throttled."),
        lambda m: m.cfs_throttled_ns // _S,
    ),
    (
        Descriptor("memory_usage_bytes", "Memory in use, caches too."),
        lambda m: m.memory_usage_bytes,
    ),
    (
        Descriptor("memory_working_set_bytes", "Memory in use without inactive files."),
        lambda m: m.memory_working_set_bytes,
    ),
    (
        Descriptor("memory_max_usage_bytes", "Most memory ever in use."),
        lambda m: m.memory_max_usage_bytes,
    ),
    (Descriptor("memory_rss", "Anonymous memory and swap cache."), lambda m: m.memory_rss_bytes),
    (Descriptor("memory_cache", "Page cache."), lambda m: m.memory_cache_bytes),
    (Descriptor("memory_kernel_usage", "Memory of the kernel."), lambda m: m.memory_kernel_bytes),
    (
        Descriptor("memory_mapped_file", "Files mapped into memory."),
        lambda m: m.memory_mapped_file_bytes,
    ),
    (Descriptor("memory_swap", "Swap in use."), lambda m: m.memory_swap_bytes),
    (
        Descriptor("memory_total_active_file_bytes", "Page cache that is active."),
        lambda m: m.memory_active_file_bytes,
    ),
    (
        Descriptor("memory_total_inactive_file_bytes", "Page cache that is inactive."),
        lambda m: m.memory_inactive_file_bytes,
    ),
    (
        _counter("memory_failcnt", "Times that the memory limit was met."),
        lambda m: m.memory_failures,
    ),
    (_counter("oom_events_total", "Kills for want of memory."), lambda m: m.oom_kills),
    (Descriptor("processes", "Processes inside."), lambda m: m.processes.processes),
    (Descriptor("file_descriptors", "Open file descriptors."), lambda m: m.processes.files),
    (Descriptor("sockets", "Open sockets."), lambda m: m.processes.sockets),
    (Descriptor("threads", "Threads inside."), lambda m: m.threads),
    (Descriptor("threads_max", "Most threads allowed; 0 is no limit."), lambda m: m.threads_max),
)
FAULTS: Final = _counter("memory_failures_total", "Page faults.", "failure_type", "scope")
DISK: Final[tuple[tuple[Descriptor, Callable[[DiskUsage], int]], ...]] = (
    (_counter("fs_reads_bytes_total", "Bytes read.", "device"), lambda d: d.read_bytes),
    (_counter("fs_reads_total", "Reads done.", "device"), lambda d: d.reads),
    (_counter("fs_writes_bytes_total", "Bytes written.", "device"), lambda d: d.written_bytes),
    (_counter("fs_writes_total", "Writes done.", "device"), lambda d: d.writes),
)
BLKIO: Final = _counter(
    "blkio_device_usage_total",
    "Bytes to and from a device.",
    "device",
    "major",
    "minor",
    "operation",
)
HUGEPAGES: Final[tuple[tuple[Descriptor, Callable[[HugepageUsage], int]], ...]] = (
    (
        Descriptor("hugetlb_usage_bytes", "Huge pages in use.", ("pagesize",)),
        lambda h: h.usage_bytes,
    ),
    (
        Descriptor("hugetlb_max_usage_bytes", "Most huge pages ever in use.", ("pagesize",)),
        lambda h: h.max_usage_bytes,
    ),
)
PRESSURE: Final = tuple(
    (_counter(f"pressure_{what}_{name}_seconds_total", text), what, key)
    for what in ("cpu", "io", "memory")
    for name, key, text in (
        ("waiting", "some", f"Time in which some tasks waited for {what}."),
        ("stalled", "full", f"Time in which all tasks waited for {what}."),
    )
)
CONTAINER: Final[tuple[tuple[Descriptor, Callable[[ContainerMetrics], int]], ...]] = (
    (Descriptor("last_seen", "When it was read."), lambda _: int(time.time())),
    (Descriptor("start_time_seconds", "Its start."), lambda c: c.record.started_at_ns // _S),
    (
        Descriptor("spec_cpu_period", "CPU period in microseconds."),
        lambda c: c.record.config.resources.cpu_period_us,
    ),
    (
        Descriptor("spec_cpu_quota", "CPU quota in microseconds; 0 is none."),
        lambda c: max(c.record.config.resources.cpu_quota_us, 0),
    ),
    (Descriptor("spec_cpu_shares", "CPU shares."), lambda c: c.record.config.resources.cpu_shares),
    (
        Descriptor("spec_memory_limit_bytes", "Memory limit; 0 is none."),
        lambda c: c.record.config.resources.memory_limit_bytes,
    ),
    (
        Descriptor("spec_memory_reservation_limit_bytes", "Memory reservation; 0 is none."),
        lambda _: 0,  # CRI has none
    ),
    (
        Descriptor("spec_memory_swap_limit_bytes", "Memory and swap limit; 0 is none."),
        lambda c: max(c.record.config.resources.memory_swap_limit_bytes, 0),
    ),
)
FILESYSTEM: Final[tuple[tuple[Descriptor, Callable[[ContainerMetrics], int]], ...]] = (
    (
        Descriptor("fs_usage_bytes", "Bytes of the writable layer.", ("device",)),
        lambda c: c.writable_layer.used_bytes,
    ),
    (
        Descriptor("fs_limit_bytes", "Bytes of the file system.", ("device",)),
        lambda c: c.filesystem.size_bytes,
    ),
    (
        Descriptor("fs_inodes_free", "Free inodes.", ("device",)),
        lambda c: c.filesystem.inodes_free,
    ),
    (Descriptor("fs_inodes_total", "Inodes.", ("device",)), lambda c: c.filesystem.inodes),
)
ULIMIT: Final = Descriptor("ulimits_soft", "Soft limits of the first process.", ("ulimit",))


def _network(direction: str, prefix: str, what: str) -> Iterator[tuple[Descriptor, str]]:
    for noun, attribute in (
        ("bytes", "bytes"),
        ("packets", "packets"),
        ("packets_dropped", "dropped"),
        ("errors", "errors"),
    ):
        text = f"{noun.replace('_', ' ').capitalize()} {what}."
        descriptor = _counter(f"network_{direction}_{noun}_total", text, "interface")
        yield descriptor, f"{prefix}_{attribute}"


NETWORK: Final = (*_network("receive", "rx", "received"), *_network("transmit", "tx", "sent"))


def descriptors() -> Iterator[pb.MetricDescriptor]:
    """Return every metric there can be; the list never changes."""
    tables = (CGROUP, DISK, HUGEPAGES, PRESSURE, CONTAINER, FILESYSTEM, NETWORK)
    for descriptor in (*(row[0] for table in tables for row in table), FAULTS, BLKIO, ULIMIT):
        yield pb.MetricDescriptor(
            name=f"container_{descriptor.name}",
            help=descriptor.help,
            label_keys=[*LABELS, *descriptor.labels],
        )


def of_pod(pod: PodMetrics) -> pb.PodSandboxMetrics:
    """Return a Pod's: its own cgroup and network without a container's name, as cAdvisor has it."""
    identity, metrics = pod.record.config.pod, list[pb.Metric]()
    path = pod.cgroup.id if pod.cgroup is not None else ""
    labels = ["", path, "", pod.record.id, identity.namespace, identity.name]
    if pod.cgroup is not None:
        metrics += _of_cgroup(pod.cgroup, labels)
    for usage in pod.network:
        metrics += _of_interface(usage, labels)
    return pb.PodSandboxMetrics(
        pod_sandbox_id=pod.record.id,
        metrics=metrics,
        container_metrics=[
            _of_container(each, [identity.namespace, identity.name]) for each in pod.containers
        ],
    )


def _of_container(container: ContainerMetrics, pod_labels: list[str]) -> pb.ContainerMetrics:
    record, cgroup = container.record, container.cgroup
    image = record.config.image_reference or record.image_reference or record.image_id
    labels = [record.config.name, cgroup.id, image, record.id, *pod_labels]
    metrics = [*_of_cgroup(cgroup, labels)]
    metrics += [_metric(row, labels, read(container)) for row, read in CONTAINER]
    device = container.filesystem.device
    metrics += [_metric(row, labels, read(container), device) for row, read in FILESYSTEM]
    soft = cgroup.processes.files_soft_limit
    limit = UNLIMITED if soft is None else soft
    metrics.append(_metric(ULIMIT, labels, limit, "max_open_files"))
    return pb.ContainerMetrics(container_id=record.id, metrics=metrics)


def _of_cgroup(cgroup: CgroupMetrics, labels: list[str]) -> Iterator[pb.Metric]:
    for row, read in CGROUP:
        yield _metric(row, labels, read(cgroup))
    yield _metric(FAULTS, labels, cgroup.page_faults, "pgfault", "container")
    yield _metric(FAULTS, labels, cgroup.major_page_faults, "pgmajfault", "container")
    for disk in cgroup.disks:
        for row, count in DISK:
            yield _metric(row, labels, count(disk), disk.device)
        for operation, value in (("Read", disk.read_bytes), ("Write", disk.written_bytes)):
            yield _metric(BLKIO, labels, value, disk.device, disk.major, disk.minor, operation)
    for pages in cgroup.hugepages:
        for row, size in HUGEPAGES:
            yield _metric(row, labels, size(pages), pages.page_size)
    for row, what, key in PRESSURE:
        if (stalled_us := cgroup.pressure_us.get(what, {}).get(key)) is not None:
            yield _metric(row, labels, stalled_us // _US)


def _of_interface(usage: NetworkUsage, labels: list[str]) -> Iterator[pb.Metric]:
    for row, attribute in NETWORK:
        yield _metric(row, labels, int(getattr(usage, attribute)), usage.interface)


def _metric(row: Descriptor, labels: list[str], value: int, *more: str) -> pb.Metric:
    return pb.Metric(
        name=f"container_{row.name}",
        metric_type=row.kind,
        label_values=[*labels, *more],
        value=pb.UInt64Value(value=max(value, 0)),
    )
