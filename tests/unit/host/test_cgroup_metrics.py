"""Readings of whole cgroups, from files as the kernel writes them."""

from __future__ import annotations

import os
from typing import TYPE_CHECKING

import pytest

from noderuntime.errors import NotFoundError
from noderuntime.host.cgroup_files import members, named
from noderuntime.host.cgroup_metrics import count_processes, device_name
from noderuntime.host.cgroups import UNIFIED, KernelCgroups
from noderuntime.host.ports import CgroupDriver
from noderuntime.host.readings import HugepageUsage

if TYPE_CHECKING:
    from pathlib import Path

ME = f"{os.getpid()}\n"


def fill(directory: Path, files: dict[str, str]) -> None:
    directory.mkdir(parents=True)
    for name, text in files.items():
        (directory / name).write_text(text)


async def test_v2_is_read_whole(tmp_path: Path) -> None:
    fill(
        tmp_path / "p/c1",
        {
            "cpu.stat": "usage_usec 5\nuser_usec 3\nsystem_usec 2\nnr_throttled 1\nthrottled_usec 4\n",
            "memory.current": "1000\n",
            "memory.peak": "1500\n",
            "memory.stat": "anon 300\nfile 200\nkernel 30\ninactive_file 200\npgmajfault 2\n",
            "memory.events": "max 6\noom 1\noom_kill 1\n",
            "io.stat": "0:7 rbytes=10 wbytes=20 rios=1 wios=2 dbytes=0 dios=0\n",
            "cpu.pressure": "some avg10=0.00 avg60=0.00 avg300=0.00 total=77\nfull avg10=0 total=5\n",
            "hugetlb.2MB.current": "4194304\n",
            "hugetlb.2MB.rsvd.current": "9\n",
            "pids.current": "4\n",
            "pids.max": "max\n",
            "cgroup.procs": ME,
        },
    )
    one = KernelCgroups({UNIFIED: tmp_path}, CgroupDriver.CGROUPFS)
    found = await one.metrics("/p/c1")
    assert found.id == "/p/c1"
    assert (found.cpu_usage_ns, found.cpu_user_ns, found.cpu_system_ns) == (5000, 3000, 2000)
    assert (found.cfs_throttled_periods, found.cfs_throttled_ns) == (1, 4000)
    assert (found.memory_max_usage_bytes, found.memory_working_set_bytes) == (1500, 800)
    assert (found.memory_failures, found.oom_kills, found.memory_kernel_bytes) == (6, 1, 30)
    (disk,) = found.disks
    assert (disk.device, disk.read_bytes, disk.written_bytes, disk.reads) == ("0:7", 10, 20, 1)
    assert found.pressure_us == {"cpu": {"some": 77, "full": 5}}
    assert found.hugepages == (
        HugepageUsage(page_size="2MB", usage_bytes=4 << 20, max_usage_bytes=0),
    )
    assert (found.threads, found.threads_max) == (4, 0)
    assert found.processes.processes == 1
    assert found.processes.files > 2
    with pytest.raises(NotFoundError):
        await one.metrics("/p/c2")


async def test_v1_is_read_whole(tmp_path: Path) -> None:
    mounted = {
        name: tmp_path / name for name in ("cpu", "cpuacct", "memory", "blkio", "hugetlb", "pids")
    }
    fill(
        mounted["cpuacct"] / "p/c1", {"cpuacct.usage": "9\n", "cpuacct.stat": "user 1\nsystem 2\n"}
    )
    fill(mounted["cpu"] / "p/c1", {"cpu.stat": "nr_periods 3\nnr_throttled 2\nthrottled_time 8\n"})
    fill(
        mounted["memory"] / "p/c1",
        {
            "memory.usage_in_bytes": "100\n",
            "memory.max_usage_in_bytes": "120\n",
            "memory.stat": "rss 1\ntotal_rss 50\ntotal_cache 7\ntotal_swap 3\n",
            "memory.oom_control": "oom_kill_disable 0\nunder_oom 0\noom_kill 2\n",
            "memory.failcnt": "5\n",
        },
    )
    fill(
        mounted["blkio"] / "p/c1",
        {
            "blkio.throttle.io_service_bytes_recursive": "0:7 Read 10\n0:7 Write 20\nTotal 30\n",
            "blkio.throttle.io_serviced_recursive": "0:7 Read 1\n0:7 Write 2\nTotal 3\n",
            # A disk of the scheduler bfq, which the throttle does not know, or knows less of.
            "blkio.bfq.io_service_bytes_recursive": "0:8 Read 4\n0:8 Write 5\nTotal 9\n",
            "blkio.bfq.io_serviced_recursive": "0:8 Read 6\n0:8 Write 7\nTotal 13\n",
        },
    )
    fill(
        mounted["hugetlb"] / "p/c1",
        {"hugetlb.2MB.usage_in_bytes": "1\n", "hugetlb.2MB.max_usage_in_bytes": "2\n"},
    )
    fill(mounted["pids"] / "p/c1", {"pids.current": "2\n", "pids.max": "7\n", "cgroup.procs": ME})
    found = await KernelCgroups(mounted, CgroupDriver.CGROUPFS).metrics("/p/c1")
    assert (found.cpu_usage_ns, found.cpu_system_ns) == (9, 2 * found.cpu_user_ns)
    assert (found.cfs_periods, found.cfs_throttled_ns) == (3, 8)
    assert (found.memory_rss_bytes, found.memory_cache_bytes, found.memory_swap_bytes) == (50, 7, 3)
    assert (found.oom_kills, found.memory_failures) == (2, 5)
    throttled, scheduled = found.disks
    assert (throttled.reads, throttled.writes, throttled.written_bytes) == (1, 2, 20)
    assert (scheduled.reads, scheduled.writes, scheduled.read_bytes) == (6, 7, 4)
    assert found.hugepages[0].max_usage_bytes == 2
    assert (found.threads, found.threads_max, found.processes.processes) == (2, 7, 1)


def test_a_cgroup_that_goes_while_it_is_walked_has_the_members_of_the_rest(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name, pid in (("p", "1"), ("p/c1", "2"), ("p/c2", "3")):
        fill(tmp_path / name, {"cgroup.procs": f"{pid}\n"})
    scan = os.scandir

    def gone(path: str) -> object:
        if str(path).endswith("c1"):
            raise FileNotFoundError(2, "No such file or directory", str(path))
        return scan(path)

    monkeypatch.setattr("os.scandir", gone)
    assert sorted(members(tmp_path / "p")) == [1, 3]
    assert members(tmp_path / "none") == ()
    assert named(tmp_path / "none", "hugetlb.", ".current") == ()


def test_sockets_are_counted_among_the_open_files(tmp_path: Path) -> None:
    directory = tmp_path / "7" / "fd"
    directory.mkdir(parents=True)
    (directory / "0").symlink_to("/dev/null")
    (directory / "3").symlink_to("socket:[123]")
    (tmp_path / "7" / "limits").write_text(
        "Limit Soft\nMax open files            1024 4096 files\n"
    )
    counts = count_processes((7, 8), tmp_path)
    assert (counts.processes, counts.files, counts.sockets) == (2, 2, 1)
    assert counts.files_soft_limit == 1024


def test_a_device_has_its_name_where_the_kernel_knows_it(tmp_path: Path) -> None:
    fill(
        tmp_path / "dev/block/8:1",
        {"uevent": "MAJOR=8\nMINOR=1\nDEVNAME=sda1\nDEVTYPE=partition\n"},
    )
    assert device_name("8:1", tmp_path) == "/dev/sda1"
    assert device_name("0:9", tmp_path) == "0:9"
