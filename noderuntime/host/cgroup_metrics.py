"""All that a cgroup's files tell of its use, for ListPodSandboxMetrics: both hierarchies.

Absent files read 0, as with cAdvisor; a list (disks, huge pages, pressure) is empty instead.
Source: cgroups(7), the kernel's cgroup-v1/{memory,blkio-controller,hugetlb}.rst and cgroup-v2.rst.
"""

from __future__ import annotations

import os
from collections.abc import Iterator, Mapping
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from noderuntime.host import cgroup_files as files
from noderuntime.host.readings import CgroupMetrics, DiskUsage, HugepageUsage, ProcessCounts

_NONE: Final = Path("/nonexistent")
_TICK_NS: Final = 10**9 // os.sysconf("SC_CLK_TCK")
PRESSURES: Final = ("cpu", "io", "memory")


def read_v2(path: Path, id_: str) -> CgroupMetrics:
    """Read a cgroup of the unified hierarchy."""
    cpu, memory = files.table(path / "cpu.stat"), files.table(path / "memory.stat")
    events = files.table(path / "memory.events")
    usage = files.number(path / "memory.current")
    return CgroupMetrics(
        id=id_,
        cpu_usage_ns=cpu.get("usage_usec", 0) * 1000,
        cpu_user_ns=cpu.get("user_usec", 0) * 1000,
        cpu_system_ns=cpu.get("system_usec", 0) * 1000,
        cfs_periods=cpu.get("nr_periods", 0),
        cfs_throttled_periods=cpu.get("nr_throttled", 0),
        cfs_throttled_ns=cpu.get("throttled_usec", 0) * 1000,
        memory_usage_bytes=usage,
        memory_working_set_bytes=max(0, usage - memory.get("inactive_file", 0)),
        memory_max_usage_bytes=files.number(path / "memory.peak"),
        memory_rss_bytes=memory.get("anon", 0),
        memory_cache_bytes=memory.get("file", 0),
        memory_kernel_bytes=memory.get("kernel", memory.get("kernel_stack", 0)),
        memory_mapped_file_bytes=memory.get("file_mapped", 0),
        memory_swap_bytes=files.number(path / "memory.swap.current"),
        memory_active_file_bytes=memory.get("active_file", 0),
        memory_inactive_file_bytes=memory.get("inactive_file", 0),
        memory_failures=events.get("max", 0),
        oom_kills=events.get("oom_kill", 0),
        page_faults=memory.get("pgfault", 0),
        major_page_faults=memory.get("pgmajfault", 0),
        disks=_disks_v2(path / "io.stat"),
        hugepages=tuple(_hugepages(path, "current", "")),
        pressure_us={
            kind: found
            for kind in PRESSURES
            if (found := files.pressure_us(path / f"{kind}.pressure"))
        },
        threads=files.number(path / "pids.current"),
        threads_max=files.number(path / "pids.max"),
        processes=count_processes(files.members(path)),
    )


def read_v1(paths: Mapping[str, Path], id_: str) -> CgroupMetrics:
    """Read a cgroup that is in a hierarchy for each controller."""
    memory_path, cpu_path = paths.get("memory", _NONE), paths.get("cpu", _NONE)
    accounts, pids = paths.get("cpuacct", _NONE), paths.get("pids", _NONE)
    throttled = files.table(cpu_path / "cpu.stat")
    ticks = files.table(accounts / "cpuacct.stat")
    memory = files.table(memory_path / "memory.stat")
    usage = files.number(memory_path / "memory.usage_in_bytes")
    hugetlb = paths.get("hugetlb", _NONE)
    return CgroupMetrics(
        id=id_,
        cpu_usage_ns=files.number(accounts / "cpuacct.usage"),
        cpu_user_ns=ticks.get("user", 0) * _TICK_NS,
        cpu_system_ns=ticks.get("system", 0) * _TICK_NS,
        cfs_periods=throttled.get("nr_periods", 0),
        cfs_throttled_periods=throttled.get("nr_throttled", 0),
        cfs_throttled_ns=throttled.get("throttled_time", 0),
        memory_usage_bytes=usage,
        memory_working_set_bytes=max(0, usage - memory.get("total_inactive_file", 0)),
        memory_max_usage_bytes=files.number(memory_path / "memory.max_usage_in_bytes"),
        memory_rss_bytes=memory.get("total_rss", 0),
        memory_cache_bytes=memory.get("total_cache", 0),
        memory_kernel_bytes=files.number(memory_path / "memory.kmem.usage_in_bytes"),
        memory_mapped_file_bytes=memory.get("total_mapped_file", 0),
        memory_swap_bytes=memory.get("total_swap", 0),
        memory_active_file_bytes=memory.get("total_active_file", 0),
        memory_inactive_file_bytes=memory.get("total_inactive_file", 0),
        memory_failures=files.number(memory_path / "memory.failcnt"),
        oom_kills=files.table(memory_path / "memory.oom_control").get("oom_kill", 0),
        page_faults=memory.get("total_pgfault", 0),
        major_page_faults=memory.get("total_pgmajfault", 0),
        disks=_disks_v1(paths.get("blkio", _NONE)),
        hugepages=tuple(_hugepages(hugetlb, "usage_in_bytes", "max_usage_in_bytes")),
        threads=files.number(pids / "pids.current"),
        threads_max=files.number(pids / "pids.max"),
        processes=count_processes(files.members(pids if pids.is_dir() else memory_path)),
    )


@dataclass(slots=True)
class _Counts:
    files: int = 0
    sockets: int = 0


def count_processes(pids: tuple[int, ...], proc: Path = Path("/proc")) -> ProcessCounts:
    """Count the processes' open files and sockets; one that ends meanwhile counts as far as read."""
    counts = _Counts()
    for pid in pids:
        with suppress(OSError), os.scandir(proc / str(pid) / "fd") as entries:
            for entry in entries:
                counts.files += 1
                with suppress(OSError):
                    counts.sockets += os.readlink(entry.path).startswith("socket:")  # noqa: PTH115 - thousands
    limit = _soft_limit_of_files(proc / str(pids[0]) / "limits") if pids else None
    return ProcessCounts(
        processes=len(pids), files=counts.files, sockets=counts.sockets, files_soft_limit=limit
    )


def _soft_limit_of_files(limits: Path) -> int | None:
    with suppress(OSError):
        for line in limits.read_text().splitlines():
            if line.startswith("Max open files"):
                soft = line.removeprefix("Max open files").split()[0]
                return int(soft) if soft.isdigit() else None
    return None


def _disks_v2(file: Path) -> tuple[DiskUsage, ...]:
    return tuple(
        _disk(
            device,
            use.get("rbytes", 0),
            use.get("wbytes", 0),
            use.get("rios", 0),
            use.get("wios", 0),
        )
        for device, use in files.by_device(file).items()
    )


def _disks_v1(path: Path) -> tuple[DiskUsage, ...]:
    """Read what the scheduler bfq counts for its disks, and what the throttle counts for the others.

    The throttle of a newer kernel (6.18 seen) counts only for a disk that a limit has been set on.
    """
    sizes, counts = (
        {
            **files.by_device(path / f"blkio.throttle.{name}"),
            **files.by_device(path / f"blkio.bfq.{name}"),
        }
        for name in ("io_service_bytes_recursive", "io_serviced_recursive")
    )
    return tuple(
        _disk(
            device,
            size.get("Read", 0),
            size.get("Write", 0),
            counts.get(device, {}).get("Read", 0),
            counts.get(device, {}).get("Write", 0),
        )
        for device, size in sizes.items()
    )


def _disk(device: str, read: int, written: int, reads: int, writes: int) -> DiskUsage:
    major, _, minor = device.partition(":")
    return DiskUsage(
        device=device_name(device),
        major=major,
        minor=minor,
        read_bytes=read,
        written_bytes=written,
        reads=reads,
        writes=writes,
    )


def device_name(number: str, sys_root: Path = Path("/sys")) -> str:
    """Return ``/dev/NAME`` of a block device ``MAJOR:MINOR``, or that where it has no name."""
    with suppress(OSError):
        for line in (sys_root / "dev/block" / number / "uevent").read_text().splitlines():
            if line.startswith("DEVNAME="):
                return "/dev/" + line.removeprefix("DEVNAME=")
    return number


def _hugepages(path: Path, usage: str, most: str) -> Iterator[HugepageUsage]:
    for file in files.named(path, "hugetlb.", f".{usage}"):
        size = file.name.split(".")[1]
        if file.name == f"hugetlb.{size}.{usage}":  # not hugetlb.SIZE.rsvd.*
            yield HugepageUsage(
                page_size=size,
                usage_bytes=files.number(file),
                max_usage_bytes=files.number(path / f"hugetlb.{size}.{most}") if most else 0,
            )
