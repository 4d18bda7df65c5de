"""Cgroups: where the kubelet's and ours are, what they use, and their removal. cgroups(7).

Both hierarchies are read, v2 and v1 (also hybrid, where v2 holds no controller). The OCI runtime
makes a container's cgroup and writes its limits. Names follow what kubelet and cAdvisor
expect: the leaf is the container's ID.
"""

from __future__ import annotations

import errno
import os
import signal
import time
from collections.abc import Iterable, Iterator, Mapping
from contextlib import suppress
from pathlib import Path, PurePosixPath
from typing import Final

from noderuntime.errors import HostError, InvalidArgumentError, NotFoundError
from noderuntime.host import cgroup_metrics, mountinfo, oom
from noderuntime.host.cgroup_files import number, table, words
from noderuntime.host.oom_kills import OomKills
from noderuntime.host.ports import CgroupDriver, CgroupStats
from noderuntime.host.readings import CgroupMetrics
from noderuntime.host.syscalls import host_error
from noderuntime.host.threads import in_pool

SCOPE_PREFIX: Final = "cri-noderuntime"
DEFAULT_PARENT: Final = "/noderuntime"
DEFAULT_SLICE: Final = "system.slice"
_REMOVE_TRIES: Final = 50
_REMOVE_PAUSE_S: Final = 0.02
UNIFIED: Final = ""
# crun's cgroup below the scope, so that systemd, which writes to the scope, leaves limits alone.
SUBGROUP: Final = "container"


def hierarchies() -> Mapping[str, Path]:
    """Return controller (``UNIFIED`` for v2, name=X for a named one) -> mount point."""
    found: dict[str, Path] = {}
    for entry in mountinfo.mounts():
        if entry.kind == "cgroup2":
            found.setdefault(UNIFIED, entry.target)
        elif entry.kind == "cgroup":
            for option in entry.options.split(","):
                if option not in {"rw", "ro", "xattr", "noprefix", "clone_children"}:
                    found.setdefault(option, entry.target)
    return found


def is_systemd() -> bool:
    """Tell whether systemd is PID 1. sd_booted(3)."""
    return Path("/run/systemd/system").is_dir()


def expand_slice(name: str) -> str:
    """Return the folder of a slice: ``a-b.slice`` is ``a.slice/a-b.slice``. systemd.slice(5)."""
    stem = name.removesuffix(".slice")
    if not name.endswith(".slice") or not stem or "" in stem.split("-") or "/" in stem:
        raise InvalidArgumentError(f"cgroup parent {name!r} is not the name of a systemd slice")
    parts = stem.split("-")
    return "/".join("-".join(parts[: i + 1]) + ".slice" for i in range(len(parts)))


class KernelCgroups:
    """The ``Cgroups`` of ports.py."""

    def __init__(
        self, mounted: Mapping[str, Path] | None = None, driver: CgroupDriver | None = None
    ) -> None:
        """Read where the hierarchies are; the arguments are for tests."""
        self._mounted = dict(mounted if mounted is not None else hierarchies())
        self._driver = driver or (CgroupDriver.SYSTEMD if is_systemd() else CgroupDriver.CGROUPFS)
        self._oom = OomKills(self._mounted.get(UNIFIED, Path("/nonexistent")))

    def driver(self) -> CgroupDriver:
        """Return SYSTEMD where systemd is PID 1, else CGROUPFS."""
        return self._driver

    def is_unified(self) -> bool:
        """Tell whether every controller is in v2."""
        return set(self._mounted) == {UNIFIED}

    def has_controller(self, name: str) -> bool:
        """Tell whether the node has a controller, in whichever hierarchy."""
        if name in self._mounted:
            return True
        unified = self._mounted.get(UNIFIED)
        return unified is not None and name in words(unified / "cgroup.controllers")

    def can_limit_swap(self) -> bool:
        """Tell whether the kernel counts a cgroup's swap."""
        if self.is_unified():  # the root has no such file, any other has
            return any(self._mounted[UNIFIED].glob("*/memory.swap.max"))
        memory = self._mounted.get("memory")
        return memory is not None and (memory / "memory.memsw.limit_in_bytes").exists()

    def has_swap(self) -> bool:
        """Tell whether the node has swap at all."""
        return len(Path("/proc/swaps").read_text().splitlines()) > 1

    def oci_path(self, parent: str, container_id: str) -> str:
        """Return ``linux.cgroupsPath``: PARENT/ID, or SLICE:cri-noderuntime:ID for systemd."""
        if self._driver is CgroupDriver.SYSTEMD:
            name = PurePosixPath(parent).name if parent else DEFAULT_SLICE
            expand_slice(name)
            return f"{name}:{SCOPE_PREFIX}:{container_id}"
        path = _checked(parent or DEFAULT_PARENT)
        return f"{path}/{container_id}"

    def relative(self, oci_path: str) -> str:
        """Return where a cgroupsPath lies below each hierarchy's mount point."""
        if oci_path.startswith("/"):
            return _checked(oci_path).lstrip("/")
        parts = oci_path.split(":")
        if len(parts) != 3 or "/" in oci_path:
            raise InvalidArgumentError(f"cgroups path {oci_path!r} is neither absolute nor a scope")
        return f"{expand_slice(parts[0])}/{parts[1]}-{parts[2]}.scope"

    async def stats(self, oci_path: str) -> CgroupStats:
        """Read the container's cgroup; raises NotFoundError when it is gone."""
        return await in_pool(self._read, self.relative(oci_path))

    async def pod_stats(self, parent: str) -> CgroupStats:
        """Read the kubelet's Pod cgroup; raises NotFoundError when it is gone."""
        return await in_pool(self._read, self._relative_of_pod(parent))

    async def metrics(self, oci_path: str) -> CgroupMetrics:
        """Read everything of the container's cgroup; raises NotFoundError when it is gone."""
        return await in_pool(self._read_all, self.relative(oci_path))

    async def oom_kills(self, oci_path: str) -> int:
        """Read that number alone, as a container that was killed is asked for it; 0 when gone."""
        relative = self.relative(oci_path)
        if self._loses_counts(oci_path):
            return await in_pool(self._oom.of, relative)
        if self.is_unified():
            file = self._mounted[UNIFIED] / relative / "memory.events"
        elif "memory" in self._mounted:
            file = self._mounted["memory"] / relative / "memory.oom_control"
        else:
            return 0
        return (await in_pool(table, file)).get("oom_kill", 0)

    async def pod_metrics(self, parent: str) -> CgroupMetrics:
        """Read everything of the kubelet's Pod cgroup; raises NotFoundError when it is gone."""
        return await in_pool(self._read_all, self._relative_of_pod(parent))

    def _relative_of_pod(self, parent: str) -> str:
        if self._driver is CgroupDriver.SYSTEMD:
            return expand_slice(PurePosixPath(parent).name)
        return _checked(parent).lstrip("/")

    async def lift_cpu_quota(self, oci_path: str) -> None:
        """Take the CPU quota away. Raises HostError."""
        controller, file, text = (
            (UNIFIED, "cpu.max", "max") if self.is_unified() else ("cpu", "cpu.cfs_quota_us", "-1")
        )
        if mount := self._mounted.get(controller):
            await in_pool(_write, _limited(mount / self.relative(oci_path)) / file, text)

    async def count_oom_kills(self, oci_path: str) -> None:
        """Take note, before a container starts, of the kills that are not its own."""
        if self._loses_counts(oci_path):
            await in_pool(self._oom.begin, self.relative(oci_path))

    def _loses_counts(self, oci_path: str) -> bool:
        """Tell whether systemd takes the cgroup away; services in its own slice have kills too."""
        is_ours = not oci_path.startswith(f"{DEFAULT_SLICE}:")
        return is_ours and self._driver is CgroupDriver.SYSTEMD and self.is_unified()

    async def set_oom_score(self, oci_path: str, before: int, score: int) -> None:
        """Set oom_score_adj of each process of the container that has ``before``."""
        relative = self.relative(oci_path)
        any_one = self._mounted.get(UNIFIED) or next(iter(self._mounted.values()))
        await in_pool(_set_oom_scores, any_one / relative, before, score)

    async def kill(self, oci_path: str) -> None:
        """SIGKILL every process in the container's cgroup; none is success."""
        relative = self.relative(oci_path)
        for mount in set(self._mounted.values()):
            await in_pool(_kill_members, mount / relative)

    async def remove(self, oci_path: str) -> None:
        """Remove the container's cgroup, and what it made below, in every hierarchy.

        A process that is still in it is killed: nothing of a container outlives its cgroup.
        """
        relative = self.relative(oci_path)
        await in_pool(_remove_trees, [mount / relative for mount in set(self._mounted.values())])

    def _read(self, relative: str) -> CgroupStats:
        if self.is_unified():
            return _read_v2(_limited(self._mounted[UNIFIED] / relative))
        return _read_v1(self._below_each(relative))

    def _read_all(self, relative: str) -> CgroupMetrics:
        if self.is_unified():
            path = _present(_limited(self._mounted[UNIFIED] / relative))
            return cgroup_metrics.read_v2(path, f"/{relative}")
        paths = self._below_each(relative)
        if not any(path.is_dir() for path in paths.values()):
            raise NotFoundError(f"cgroup {relative} is not there")
        return cgroup_metrics.read_v1(paths, f"/{relative}")

    def _below_each(self, relative: str) -> Mapping[str, Path]:
        return {c: mount / relative for c, mount in self._mounted.items() if c != UNIFIED}


def _checked(path: str) -> str:
    parts = PurePosixPath(path).parts
    if not path.startswith("/") or len(parts) < 2 or ".." in parts:
        raise InvalidArgumentError(f"cgroup path {path!r} is not an absolute path below the root")
    return "/" + "/".join(parts[1:])


def _write(file: Path, text: str) -> None:
    try:
        with file.open("r+") as opened:
            opened.write(text)
    except OSError as error:
        raise host_error(f"cannot write {file}", error.errno or 0) from error


def _limited(path: Path) -> Path:
    """Return where the limits of a scope of v2 are, and the counts that come with them."""
    below = path / SUBGROUP
    return below if path.suffix == ".scope" and below.is_dir() else path


def _set_oom_scores(path: Path, before: int, score: int) -> None:
    """Twice: a process that was just forked off one not reached yet had the old value."""
    for directory in (*_directories(path), *_directories(path)):
        with suppress(FileNotFoundError):
            for pid in (directory / "cgroup.procs").read_text().split():
                oom.adjust(int(pid), before, score)


def _present(path: Path) -> Path:
    if not path.is_dir():
        raise NotFoundError(f"cgroup {path} is not there")
    return path


def _read_v2(path: Path) -> CgroupStats:
    memory = table(_present(path) / "memory.stat")
    usage = number(path / "memory.current")
    return CgroupStats(
        timestamp_ns=time.time_ns(),
        cpu_usage_ns=table(path / "cpu.stat").get("usage_usec", 0) * 1000,
        memory_usage_bytes=usage,
        memory_working_set_bytes=max(0, usage - memory.get("inactive_file", 0)),
        memory_rss_bytes=memory.get("anon", 0),
        memory_page_faults=memory.get("pgfault", 0),
        memory_major_page_faults=memory.get("pgmajfault", 0),
        pids=number(path / "pids.current"),
    )


def _read_v1(paths: Mapping[str, Path]) -> CgroupStats:
    if not any(path.is_dir() for path in paths.values()):
        where = next(iter(paths.values()), Path("/sys/fs/cgroup"))
        raise NotFoundError(f"cgroup {where} is not there")
    none = Path("/nonexistent")
    memory_path = paths.get("memory", none)
    memory = table(memory_path / "memory.stat")
    usage = number(memory_path / "memory.usage_in_bytes")
    return CgroupStats(
        timestamp_ns=time.time_ns(),
        cpu_usage_ns=number(paths.get("cpuacct", none) / "cpuacct.usage"),
        memory_usage_bytes=usage,
        memory_working_set_bytes=max(0, usage - memory.get("total_inactive_file", 0)),
        memory_rss_bytes=memory.get("total_rss", 0),
        memory_page_faults=memory.get("total_pgfault", 0),
        memory_major_page_faults=memory.get("total_pgmajfault", 0),
        pids=number(paths.get("pids", none) / "pids.current"),
    )


def _directories(path: Path) -> Iterator[Path]:
    for name, _, _ in os.walk(path, topdown=False):
        yield Path(name)


def _remove_trees(paths: Iterable[Path]) -> None:
    """Remove in one go: on v1 there are a dozen hierarchies, and a turn of a thread for each is dear."""
    for path in paths:
        try:
            path.rmdir()  # nearly always enough
        except FileNotFoundError:
            continue
        except OSError:
            _remove_tree(path)


def _remove_tree(path: Path) -> None:
    for attempt in range(_REMOVE_TRIES):
        try:
            for directory in _directories(path):
                directory.rmdir()
        except FileNotFoundError:
            continue
        except OSError as error:
            # A killed process counts until it is reaped, some milliseconds after its end.
            if error.errno != errno.EBUSY or attempt == _REMOVE_TRIES - 1:
                raise host_error(f"cannot remove cgroup {path}", error.errno or 0) from error
            _kill_members(path)
            time.sleep(_REMOVE_PAUSE_S)
        else:
            return
    raise HostError(f"cannot remove cgroup {path}: new ones appear below it all the time")


def _kill_members(path: Path) -> None:
    for directory in _directories(path):
        with suppress(FileNotFoundError):
            for pid in (directory / "cgroup.procs").read_text().split():
                with suppress(ProcessLookupError):
                    os.kill(int(pid), signal.SIGKILL)
