"""Each runtime in a cgroup of its own, so that its CPU time and its processes can be told apart.

What a runtime starts (monitors, shims, plugins, the OCI runtime) inherits the cgroup; containers
leave it for the one that the Pod names. cgroup v1 (cpuacct) and v2.
"""

from __future__ import annotations

import os
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Final

ROOT: Final = Path("/sys/fs/cgroup")
WORKLOAD: Final = "sleep"
REMOVE_S: Final = 20.0


@dataclass(frozen=True, slots=True, kw_only=True)
class Group:
    """``daemon`` is the runtime's own; ``pods`` is what Pods name as their parent, below each root."""

    daemon: Path
    pods: str

    def make(self) -> None:
        self.daemon.mkdir(exist_ok=True)

    def cpu_ms(self) -> float:
        """CPU time of the runtime and all that it started, what containers use left out."""
        usage = self.daemon / "cpuacct.usage"
        if usage.exists():
            return int(usage.read_text()) / 1e6
        words = (self.daemon / "cpu.stat").read_text().split()
        return int(words[words.index("usage_usec") + 1]) / 1e3

    def processes(self) -> list[int]:
        """Everything but the workload: the daemon, monitors, shims, and pause processes."""
        found = _members(self.daemon)
        pods = self.daemon.parent / self.pods.lstrip("/")
        for file in pods.rglob("cgroup.procs"):
            found += [pid for pid in _members(file.parent) if _name(pid) != WORKLOAD]
        return found


def group(token: str, who: str) -> Group:
    """The group of one runtime, not made yet."""
    root = ROOT / "cpuacct" if (ROOT / "cpuacct").is_dir() else ROOT
    if (ROOT / "cpu,cpuacct").is_dir():
        root = ROOT / "cpu,cpuacct"
    return Group(daemon=root / f"{token}-{who}", pods=f"/{token}/{who}")


def remove(token: str) -> None:
    """Remove every cgroup with the token, in every hierarchy; what was in them is gone already."""
    tops = [path for pattern in (f"{token}*", f"*/{token}*") for path in ROOT.glob(pattern)]
    until = time.monotonic() + REMOVE_S
    for top in tops:
        folders = [Path(parent) for parent, _, _ in os.walk(top, topdown=False)]
        for folder in folders:
            while True:
                try:
                    folder.rmdir()
                except FileNotFoundError:
                    break
                except OSError:
                    if time.monotonic() > until:
                        raise
                    time.sleep(0.02)
                else:
                    break


def _members(folder: Path) -> list[int]:
    try:
        return [int(line) for line in (folder / "cgroup.procs").read_text().split() if line != "0"]
    except OSError:
        return []


def _name(pid: int) -> str:
    try:
        return (Path("/proc") / str(pid) / "comm").read_text().strip()
    except OSError:
        return ""


@dataclass(frozen=True, slots=True, kw_only=True)
class Memory:
    """MiB. ``whole`` counts file pages once and whole, though other programs share them."""

    pss: float
    whole: float


def memory(pids: list[int]) -> Memory:
    """What the processes use together. proc_pid_smaps(5).

    PSS divides a page by all who map it, so a machine with other Python programs on it flatters ours:
    hence the second figure.
    """
    pss = anonymous = 0
    files: dict[tuple[str, str], int] = {}
    for pid in pids:
        try:
            rollup = (Path("/proc") / str(pid) / "smaps_rollup").read_text()
            mappings = (Path("/proc") / str(pid) / "smaps").read_text()
        except OSError:
            continue
        fields = {line.split(":")[0]: line.split() for line in rollup.splitlines()[1:]}
        pss += int(fields["Pss"][1])
        anonymous += int(fields["Pss_Anon"][1]) + int(fields["Pss_Shmem"][1])
        _add_files(mappings, files)
    return Memory(pss=pss / 1024, whole=(anonymous + sum(files.values())) / 1024)


def _add_files(text: str, files: dict[tuple[str, str], int]) -> None:
    key: tuple[str, str] | None = None
    rss = 0
    for line in text.splitlines():
        words = line.split()
        if "-" in words[0] and not words[0].endswith(":"):
            key = (words[4], words[2]) if words[4] != "0" else None
        elif key is not None and words[0] == "Rss:":
            rss = int(words[1])
        elif key is not None and words[0] == "Anonymous:":
            files[key] = max(files.get(key, 0), rss - int(words[1]))
