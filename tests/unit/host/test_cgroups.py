from __future__ import annotations

from pathlib import Path

import pytest

from noderuntime.errors import HostError, InvalidArgumentError, NotFoundError
from noderuntime.host.cgroups import UNIFIED, KernelCgroups, expand_slice
from noderuntime.host.ports import CgroupDriver

POD = "/kubepods/burstable/pod1"
SLICE = "/kubepods.slice/kubepods-burstable.slice/kubepods-burstable-pod1.slice"


def cgroups(root: Path, driver: CgroupDriver = CgroupDriver.CGROUPFS) -> KernelCgroups:
    return KernelCgroups({UNIFIED: root}, driver)


@pytest.mark.parametrize(
    ("driver", "parent", "path", "folder"),
    [
        pytest.param("CGROUPFS", POD, f"{POD}/c1", f"{POD[1:]}/c1", id="cgroupfs"),
        pytest.param("CGROUPFS", POD + "/", f"{POD}/c1", f"{POD[1:]}/c1", id="cgroupfs, slash"),
        pytest.param("CGROUPFS", "", "/noderuntime/c1", "noderuntime/c1", id="cgroupfs, none"),
        pytest.param(
            "SYSTEMD",
            SLICE,
            "kubepods-burstable-pod1.slice:cri-noderuntime:c1",
            f"{SLICE[1:]}/cri-noderuntime-c1.scope",
            id="systemd",
        ),
        pytest.param(
            "SYSTEMD",
            "",
            "system.slice:cri-noderuntime:c1",
            "system.slice/cri-noderuntime-c1.scope",
            id="systemd, none",
        ),
    ],
)
def test_paths_are_where_the_kubelet_looks(
    tmp_path: Path, driver: str, parent: str, path: str, folder: str
) -> None:
    one = cgroups(tmp_path, CgroupDriver(driver))
    assert one.driver() == driver
    assert one.oci_path(parent, "c1") == path
    assert one.relative(path) == folder


@pytest.mark.parametrize(
    ("driver", "parent"),
    [
        pytest.param("CGROUPFS", "/", id="the root"),
        pytest.param("CGROUPFS", "/a/../../b", id="climbing out"),
        pytest.param("CGROUPFS", "relative", id="relative"),
        pytest.param("SYSTEMD", "/kubepods/burstable/pod1", id="no slice"),
        pytest.param("SYSTEMD", "a--b.slice", id="an empty part"),
    ],
)
def test_a_parent_that_is_none_is_refused(tmp_path: Path, driver: str, parent: str) -> None:
    with pytest.raises(InvalidArgumentError, match="cgroup"):
        cgroups(tmp_path, CgroupDriver(driver)).oci_path(parent, "c1")


@pytest.mark.parametrize("path", ["", "a:b", "a.slice:b/../..:c", "relative"])
def test_a_path_that_is_none_is_refused(tmp_path: Path, path: str) -> None:
    with pytest.raises(InvalidArgumentError):
        cgroups(tmp_path).relative(path)


def test_a_slice_lies_within_its_parents() -> None:
    assert expand_slice("a-b-c.slice") == "a.slice/a-b.slice/a-b-c.slice"


def fill(directory: Path, files: dict[str, str]) -> None:
    directory.mkdir(parents=True)
    for name, text in files.items():
        (directory / name).write_text(text)


async def test_v2_is_read(tmp_path: Path) -> None:
    fill(
        tmp_path / POD[1:] / "c1",
        {
            "cpu.stat": "usage_usec 5\nuser_usec 3\n",
            "memory.current": "1000\n",
            "memory.stat": "anon 300\ninactive_file 200\npgfault 7\npgmajfault 2\n",
            "pids.current": "4\n",
        },
    )
    stats = await cgroups(tmp_path).stats(f"{POD}/c1")
    assert stats.cpu_usage_ns == 5000
    assert (stats.memory_usage_bytes, stats.memory_working_set_bytes) == (1000, 800)
    assert (stats.memory_rss_bytes, stats.pids) == (300, 4)
    assert (stats.memory_page_faults, stats.memory_major_page_faults) == (7, 2)
    assert (await cgroups(tmp_path).pod_stats(POD)).memory_usage_bytes == 0
    with pytest.raises(NotFoundError):
        await cgroups(tmp_path).stats(f"{POD}/c2")
    systemd = cgroups(tmp_path, CgroupDriver.SYSTEMD)
    with pytest.raises(NotFoundError, match="kubepods-burstable-pod1"):
        await systemd.pod_stats(SLICE)


async def test_v1_is_read_and_hybrid_is_v1(tmp_path: Path) -> None:
    fill(tmp_path / "cpuacct/p/c1", {"cpuacct.usage": "9\n"})
    fill(
        tmp_path / "memory/p/c1",
        {
            "memory.usage_in_bytes": "100\n",
            "memory.stat": "rss 1\ntotal_rss 50\ntotal_inactive_file 300\ntotal_pgfault 6\n",
        },
    )
    fill(tmp_path / "pids/p/c1", {"pids.current": "2\n"})
    mounted = {name: tmp_path / name for name in ("cpuacct", "memory", "pids")}
    one = KernelCgroups({**mounted, UNIFIED: tmp_path / "unified"}, CgroupDriver.CGROUPFS)
    stats = await one.stats("/p/c1")
    assert (stats.cpu_usage_ns, stats.memory_usage_bytes, stats.memory_rss_bytes) == (9, 100, 50)
    assert (stats.memory_working_set_bytes, stats.memory_page_faults, stats.pids) == (0, 6, 2)
    with pytest.raises(NotFoundError):
        await one.stats("/p/c2")


async def test_removal_takes_what_is_below_and_is_idempotent(tmp_path: Path) -> None:
    (tmp_path / "p" / "c1" / "deep" / "er").mkdir(parents=True)
    (tmp_path / "p" / "c2").mkdir()
    one = cgroups(tmp_path)
    await one.remove("/p/c1")
    await one.remove("/p/c1")
    assert [d.name for d in (tmp_path / "p").iterdir()] == ["c2"]


async def test_controllers_are_found_in_whichever_hierarchy(tmp_path: Path) -> None:
    (tmp_path / "cgroup.controllers").write_text("cpu memory\n")
    unified = cgroups(tmp_path)
    hybrid = KernelCgroups({UNIFIED: tmp_path, "hugetlb": tmp_path}, CgroupDriver.CGROUPFS)
    assert (unified.is_unified(), hybrid.is_unified()) == (True, False)
    assert [unified.has_controller(name) for name in ("cpu", "hugetlb")] == [True, False]
    assert hybrid.has_controller("hugetlb")


async def test_a_quota_is_lifted_in_either_hierarchy(tmp_path: Path) -> None:
    fill(tmp_path / "p/c1", {"cpu.max": "50000 100000", "cpu.cfs_quota_us": "50000"})
    await cgroups(tmp_path).lift_cpu_quota("/p/c1")
    assert (tmp_path / "p/c1/cpu.max").read_text().startswith("max")
    legacy = KernelCgroups({"cpu": tmp_path}, CgroupDriver.CGROUPFS)
    await legacy.lift_cpu_quota("/p/c1")
    assert (tmp_path / "p/c1/cpu.cfs_quota_us").read_text().startswith("-1")
    with pytest.raises(HostError):
        await legacy.lift_cpu_quota("/p/c2")


async def test_limits_of_crun_are_one_cgroup_below_its_scope(tmp_path: Path) -> None:
    scope = tmp_path / SLICE[1:] / "cri-noderuntime-c1.scope"
    fill(scope, {"memory.current": "1", "pids.max": "max", "cpu.max": "max 100000"})
    below = {"memory.current": "2", "pids.max": "5", "cpu.max": "5 100000"}
    fill(scope / "container", below | {"memory.events": "oom_kill 3"})
    one = cgroups(tmp_path, CgroupDriver.SYSTEMD)
    path = one.oci_path(SLICE, "c1")
    assert (await one.stats(path)).memory_usage_bytes == 2
    found = await one.metrics(path)
    assert (found.threads_max, found.oom_kills) == (5, 3)
    assert found.id.endswith("cri-noderuntime-c1.scope")
    await one.lift_cpu_quota(path)
    assert (scope / "container/cpu.max").read_text().startswith("max")


async def test_oom_kills_are_read_where_the_cgroup_stays(tmp_path: Path) -> None:
    fill(tmp_path / "p/c1", {"memory.events": "oom_kill 2\n"})
    one = cgroups(tmp_path)
    await one.count_oom_kills("/p/c1")
    assert [await one.oom_kills(f"/p/{name}") for name in ("c1", "c2")] == [2, 0]


async def test_oom_kills_under_systemd_are_those_of_the_slice(tmp_path: Path) -> None:
    fill(tmp_path / SLICE[1:], {"memory.events": "oom_kill 1\n"})
    one = cgroups(tmp_path, CgroupDriver.SYSTEMD)
    path = one.oci_path(SLICE, "c1")
    await one.count_oom_kills(path)
    (tmp_path / SLICE[1:] / "memory.events").write_text("oom_kill 2\n")
    assert await one.oom_kills(path) == 1
    # Services in systemd's own slice are killed too.
    assert await one.oom_kills(one.oci_path("", "c1")) == 0
