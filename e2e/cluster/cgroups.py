"""The Pods' cgroups, on cgroup v1, v2 and the hybrid of both, and crun's need on a hybrid."""

from __future__ import annotations

import fcntl
import os
import shutil
import subprocess
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Final

from e2e.cluster import processes
from e2e.cluster.layout import Layout
from e2e.cluster.state import ClusterError, State

ROOT: Final = Path("/sys/fs/cgroup")
HUGETLB: Final = ROOT / "hugetlb"
OF_TESTS: Final = "noderuntime-tests"  # the source that the mount is given
POD_GROUPS: Final = ("kubepods", "kubepods.slice")


def hierarchies() -> list[Path]:
    """The root of each mounted cgroup hierarchy."""
    found: list[Path] = []
    for line in Path("/proc/self/mounts").read_text().splitlines():
        fields = line.split()
        if fields[2] in {"cgroup", "cgroup2"}:
            found.append(Path(fields[1]))
    return found


def set_up(layout: Layout, state: State) -> bool:
    """Write down that Pods' cgroups will be made; give crun 1.8 its hugetlb hierarchy."""
    state.record("cgroups")
    # That of tests goes with them: one more is mounted over it.
    if _hugetlb_source() != OF_TESTS and not needs_hugetlb(layout):
        return False
    state.record("mount", target=str(HUGETLB), folder=True)
    _mount_hugetlb(layout, "cgroup")
    return True


def _mount_hugetlb(layout: Layout, source: str) -> None:
    HUGETLB.mkdir(exist_ok=True)
    processes.run(["mount", "-t", "cgroup", "-o", "hugetlb", source, str(HUGETLB)], layout)


def _hugetlb_source() -> str:
    """Return who has mounted it; "" where nobody has."""
    lines = [line.split() for line in Path("/proc/self/mounts").read_text().splitlines()]
    return next((line[0] for line in reversed(lines) if line[1] == str(HUGETLB)), "")


def needs_hugetlb(layout: Layout) -> bool:
    """Whether crun < 1.9 would refuse this machine: it does while a hybrid's v2 has a controller."""
    unified = ROOT / "unified" / "cgroup.controllers"
    if HUGETLB in hierarchies() or not unified.exists() or not _has_hugetlb():
        return False
    words = processes.run(["crun", "--version"], layout).split()
    version = tuple(int(part) for part in words[2].split(".")[:2])
    return version < (1, 9)


def _has_hugetlb() -> bool:
    """Whether the kernel has the controller: after an unmount v2 lists it only some seconds later."""
    lines = [line.split() for line in Path("/proc/cgroups").read_text().splitlines()]
    return any(line[0] == "hugetlb" and line[3] == "1" for line in lines)


@contextmanager
def with_hugetlb(layout: Layout) -> Iterator[None]:
    """Give crun its hierarchy for as long as the block runs, where it needs one.

    Others may do so at the same time, with containers in it: the last one takes it away.
    """
    unified = ROOT / "unified"
    if not unified.is_dir():
        yield
        return
    with _opened(unified) as users:
        with _one_at_a_time():
            fcntl.flock(users, fcntl.LOCK_SH)
            if needs_hugetlb(layout):
                _mount_hugetlb(layout, OF_TESTS)
        try:
            yield
        finally:
            with _one_at_a_time():
                if _hugetlb_source() == OF_TESTS and _is_the_last(users):
                    processes.run(["umount", str(HUGETLB)], layout)
                    HUGETLB.rmdir()


@contextmanager
def _opened(folder: Path) -> Iterator[int]:
    descriptor = os.open(folder, os.O_RDONLY | os.O_DIRECTORY)
    try:
        yield descriptor
    finally:
        os.close(descriptor)  # and with it the lock


@contextmanager
def _one_at_a_time() -> Iterator[None]:
    with _opened(ROOT) as mutex:
        fcntl.flock(mutex, fcntl.LOCK_EX)
        yield


def _is_the_last(users: int) -> bool:
    try:
        fcntl.flock(users, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    return True


def pod_groups() -> list[Path]:
    """The topmost cgroups of Pods, in every hierarchy."""
    return [root / name for root in hierarchies() for name in POD_GROUPS if (root / name).is_dir()]


def members(group: Path) -> set[int]:
    """Every process in a cgroup and below."""
    pids: set[int] = set()
    for file in group.rglob("cgroup.procs"):
        try:
            pids.update(int(line) for line in file.read_text().split())
        except OSError:
            continue
    return pids


def remove_pods() -> None:
    """End what runs in the Pods' cgroups and remove these, children first."""
    if shutil.which("systemctl") and Path("/run/systemd/system").is_dir():
        subprocess.run(
            ["systemctl", "stop", "kubepods.slice"], check=False, capture_output=True, timeout=30
        )
    deadline = time.monotonic() + 15
    while True:
        processes.end({pid for group in pod_groups() for pid in members(group)}, term_s=0)
        left = [group for group in pod_groups() if not _remove(group)]
        if not left:
            return
        if time.monotonic() > deadline:
            raise ClusterError(f"cannot remove the cgroups {', '.join(map(str, left))}")
        time.sleep(0.05)


def _remove(group: Path) -> bool:
    folders = [group, *(path for path in group.rglob("*") if path.is_dir())]
    for folder in sorted(folders, key=lambda path: len(path.parts), reverse=True):
        try:
            folder.rmdir()
        except FileNotFoundError:
            continue
        except OSError:
            return False
    return True
