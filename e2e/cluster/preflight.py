"""What must be so before anything is started; every failed check says what to do."""

from __future__ import annotations

import os
import re
import shutil
import socket
import subprocess
import sys
from pathlib import Path
from typing import Final

from e2e.cluster import build, cgroups, processes
from e2e.cluster.layout import (
    KUBERNETES_VERSION,
    NODE_LINK,
    POD_LINK,
    PORTS,
    RUNTIME_ETC,
    RUNTIME_RUN,
    RUNTIME_STATE,
    Layout,
)
from e2e.cluster.state import ClusterError, State

GO_WANTED: Final = (1, 26)
PYTHON_WANTED: Final = (3, 11)
DISK_BUILT_GB: Final = 5  # images, the runtime's store, logs
DISK_UNBUILT_GB: Final = 15  # Go's module and build caches besides


def check(layout: Layout, state: State) -> None:
    """Raises ClusterError with every problem found, one a line."""
    problems = [
        *_user(),
        *build_problems(layout),
        *_disk(layout),
    ]
    if not problems:
        problems = [*_foreign_runtime(state), *_links(state), *_ports(state), *_cgroups(state)]
    if problems:
        listed = "\n".join(f"  - {problem}" for problem in problems)
        raise ClusterError(f"this machine is not ready; nothing was started:\n{listed}")


def _user() -> list[str]:
    problems: list[str] = []
    if os.geteuid() != 0:
        problems.append("a node needs root: run it with sudo")
    if sys.platform != "linux" or os.uname().machine != "x86_64":
        problems.append(f"it is made for Linux on x86-64, not {sys.platform} {os.uname().machine}")
    if sys.version_info < PYTHON_WANTED:
        problems.append(f"Python 3.11 or newer is needed, this is {sys.version.split()[0]}")
    if not shutil.which("apt-get"):
        problems.append("apt-get is missing: it is made for Debian 12 and Ubuntu")
    return problems


def build_problems(layout: Layout) -> list[str]:
    """Why the programs cannot be built here; empty if they can, or are built."""
    if build.is_built(layout):
        return []
    go = shutil.which("go") or shutil.which("/usr/local/go/bin/go")
    if not go:
        return ["Go is missing: install Go 1.26 or newer (https://go.dev/dl)"]
    text = subprocess.run([go, "version"], capture_output=True, text=True, check=False).stdout
    problem = go_problem(text, os.environ.get("GOTOOLCHAIN", ""))
    return [problem] if problem else []


def go_problem(version: str, toolchain: str) -> str | None:
    """What is wrong with this Go, if anything; Go ≥ 1.21 fetches a newer one itself if let."""
    match = re.search(r"go(\d+)\.(\d+)", version)
    if not match:
        return f"'go version' answered {version!r}: install Go 1.26 or newer"
    found = (int(match[1]), int(match[2]))
    if found >= GO_WANTED:
        return None
    fetches = found >= (1, 21) and toolchain not in {"local", "path"}
    if fetches:
        return None
    return (
        f"Go {found[0]}.{found[1]} is too old for Kubernetes {KUBERNETES_VERSION}: install Go 1.26 "
        "or newer, or unset GOTOOLCHAIN so that Go 1.21+ fetches it"
    )


def _disk(layout: Layout) -> list[str]:
    wanted = DISK_BUILT_GB if build.is_built(layout) else DISK_UNBUILT_GB
    free = shutil.disk_usage(layout.repository).free / 1e9
    if free >= wanted:
        return []
    return [f"{wanted} GB of disk are needed at {layout.repository}, {free:.1f} are free"]


def _foreign_runtime(state: State) -> list[str]:
    return [
        f"{path} is there already and was not made by this cluster: if another node runtime uses "
        "it, stop and remove that first; if nobody does, remove the folder"
        for path in (RUNTIME_STATE, RUNTIME_RUN, RUNTIME_ETC)
        if path.exists() and any(path.iterdir()) and not state.find("path", path=str(path))
    ]


def _links(state: State) -> list[str]:
    return [
        f"a link named {name} is there already: remove it (ip link delete {name}), or end what "
        "made it"
        for name in (NODE_LINK, POD_LINK)
        if Path(f"/sys/class/net/{name}").exists() and not state.find("link", name=name)
    ]


def _cgroups(state: State) -> list[str]:
    if state.find("cgroups") or not cgroups.pod_groups():
        return []
    return ["a kubelet has its Pods on this machine already (cgroup kubepods): use another machine"]


def _ports(state: State) -> list[str]:
    ours = {entry["name"] for entry in state.entries if entry["kind"] == "process"}
    problems: list[str] = []
    for port, address, user in PORTS:
        if user in ours or _is_free(port, address):
            continue
        holder = holder_of(port)
        problems.append(
            f"port {port}, which {user} needs, is taken{' by ' + holder if holder else ''}: end it"
        )
    return problems


def _is_free(port: int, address: str) -> bool:
    # The node's address is not there yet, so what is on any address is looked for instead.
    with socket.socket() as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind((address if address.startswith("127.") else "0.0.0.0", port))  # noqa: S104
        except OSError:
            return False
    return True


def holder_of(port: int) -> str:
    """Which process listens on a port: its command and PID; empty if it cannot be told."""
    inodes: set[str] = set()
    for table in ("/proc/net/tcp", "/proc/net/tcp6"):
        try:
            lines = Path(table).read_text().splitlines()[1:]
        except OSError:
            continue
        for line in lines:
            fields = line.split()
            if fields[3] == "0A" and int(fields[1].rpartition(":")[2], 16) == port:
                inodes.add(f"socket:[{fields[9]}]")
    for pid in processes.all_pids():
        try:
            for descriptor in Path(f"/proc/{pid}/fd").iterdir():
                if str(descriptor.readlink()) in inodes:
                    return f"{processes.command_of(pid)[:60]} (PID {pid})"
        except OSError:
            continue
    return ""
