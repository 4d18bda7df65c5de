"""What cgroups and interfaces tell of their use: plain data."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field


@dataclass(frozen=True, slots=True, kw_only=True)
class DiskUsage:
    """What a cgroup read from and wrote to a block device. ``device`` is its name if it has one."""

    device: str
    major: str
    minor: str
    read_bytes: int
    written_bytes: int
    reads: int
    writes: int


@dataclass(frozen=True, slots=True, kw_only=True)
class HugepageUsage:
    """Huge pages of a size, which is written as the kernel does (2MB); no most in v2."""

    page_size: str
    usage_bytes: int
    max_usage_bytes: int


@dataclass(frozen=True, slots=True, kw_only=True)
class ProcessCounts:
    """Processes of a cgroup and what they have open; the soft limit is of the first, None is none."""

    processes: int = 0
    files: int = 0
    sockets: int = 0
    files_soft_limit: int | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class CgroupMetrics:
    """All that a cgroup tells of its use; ``id`` is its path, as cAdvisor has it."""

    id: str
    cpu_usage_ns: int = 0
    cpu_user_ns: int = 0
    cpu_system_ns: int = 0
    cfs_periods: int = 0
    cfs_throttled_periods: int = 0
    cfs_throttled_ns: int = 0
    memory_usage_bytes: int = 0
    memory_working_set_bytes: int = 0
    memory_max_usage_bytes: int = 0
    memory_rss_bytes: int = 0
    memory_cache_bytes: int = 0
    memory_kernel_bytes: int = 0
    memory_mapped_file_bytes: int = 0
    memory_swap_bytes: int = 0
    memory_active_file_bytes: int = 0
    memory_inactive_file_bytes: int = 0
    memory_failures: int = 0  # how often the limit was met
    oom_kills: int = 0
    page_faults: int = 0
    major_page_faults: int = 0
    disks: tuple[DiskUsage, ...] = ()
    hugepages: tuple[HugepageUsage, ...] = ()
    # cpu, io, memory -> some, full -> microseconds of stall; empty where there is no PSI
    pressure_us: Mapping[str, Mapping[str, int]] = field(
        default_factory=dict[str, Mapping[str, int]]
    )
    threads: int = 0
    threads_max: int = 0  # 0 is no limit
    processes: ProcessCounts = ProcessCounts()


@dataclass(frozen=True, slots=True, kw_only=True)
class NetworkUsage:
    """Counters of a sandbox's interface."""

    interface: str
    rx_bytes: int
    rx_errors: int
    tx_bytes: int
    tx_errors: int
    rx_packets: int = 0
    rx_dropped: int = 0
    tx_packets: int = 0
    tx_dropped: int = 0
