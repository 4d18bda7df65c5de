"""How each kind of thing that ``up`` records is undone.

Every undo is idempotent and does not mind that the thing was never made. They are run last first;
one that fails keeps its entry in the state, and ``down`` says so and ends with an error.
"""

from __future__ import annotations

import shutil
import subprocess
import time
from collections.abc import Callable, Mapping
from functools import partial
from pathlib import Path
from typing import Final

from e2e.cluster import cgroups, debian, firewall, network, processes
from e2e.cluster.layout import RUNTIME_ETC, RUNTIME_RUN, RUNTIME_STATE, Layout
from e2e.cluster.state import ClusterError, Entry, State


def mounts_below(*folders: Path) -> list[str]:
    """Mount points at or below the folders, deepest and latest first."""
    found: list[str] = []
    for line in Path("/proc/self/mountinfo").read_text().splitlines():
        # proc(5): octal escapes for space, tab, newline and backslash.
        target = line.split()[4].encode().decode("unicode_escape")
        if any(target == str(f) or target.startswith(f"{f}/") for f in folders):
            found.append(target)
    return found[::-1]


def unmount_below(*folders: Path) -> None:
    """Unmount all; raises ClusterError when one stays."""
    for _ in range(5):
        targets = mounts_below(*folders)
        if not targets:
            return
        for target in targets:
            subprocess.run(["umount", target], check=False, capture_output=True)
        if mounts_below(*folders):
            for target in mounts_below(*folders):
                subprocess.run(["umount", "--lazy", target], check=False, capture_output=True)
    left = mounts_below(*folders)
    if left:
        raise ClusterError(f"still mounted: {', '.join(left)}")


def remove_tree(path: Path) -> None:
    """Remove a file or a folder with all in it, but never across a mount."""
    unmount_below(path)
    if path.is_dir() and not path.is_symlink():
        shutil.rmtree(path)
    else:
        path.unlink(missing_ok=True)


def end_pods() -> None:
    """End the monitors and the containers, whoever of the components still lives."""
    processes.end(monitors(), term_s=0)
    cgroups.remove_pods()
    processes.end(monitors(), term_s=0)


def monitors() -> list[int]:
    """The conmon and OCI runtime processes that work below our run folder."""
    names = {"conmon", "crun", "runc"}
    found: list[int] = []
    for pid in processes.all_pids():
        words = processes.command_of(pid).split()
        if words and Path(words[0]).name in names and any(str(RUNTIME_RUN) in w for w in words):
            found.append(pid)
    return found


def _process(_layout: Layout, entry: Entry) -> None:
    if processes.is_alive(entry["pid"], entry["started"]):
        processes.end([entry["pid"]])


def _path(_layout: Layout, entry: Entry) -> None:
    remove_tree(Path(entry["path"]))


def _folder(_layout: Layout, entry: Entry) -> None:
    """A folder that others may use as well: removed if it is empty."""
    try:
        Path(entry["path"]).rmdir()
    except OSError:
        return


def _pod_log_links(layout: Layout, entry: Entry) -> None:
    """The links that the kubelet puts into /var/log/containers, which cannot be moved."""
    folder = Path(entry["path"])
    if not folder.is_dir():
        return
    for link in folder.iterdir():
        if link.is_symlink() and str(link.readlink()).startswith(str(layout.pod_logs)):
            link.unlink()
    if entry["made"]:
        _folder(layout, entry)


def _link(layout: Layout, entry: Entry) -> None:
    name = entry["name"]
    for port in Path(f"/sys/class/net/{name}/brif").glob("*"):
        subprocess.run(["ip", "link", "delete", port.name], check=False, capture_output=True)
    if Path(f"/sys/class/net/{name}").exists():
        processes.run(["ip", "link", "delete", name], layout)


def _setting(_layout: Layout, entry: Entry) -> None:
    if network.read_setting(entry["key"]) not in {entry["value"], None}:
        network.write_setting(entry["key"], entry["value"])


def _mount(_layout: Layout, entry: Entry) -> None:
    target = Path(entry["target"])
    deadline = time.monotonic() + 10
    while target.is_mount():
        # A cgroup hierarchy is busy for a moment after its last group went.
        subprocess.run(["umount", str(target)], check=False, capture_output=True)
        if time.monotonic() > deadline:
            raise ClusterError(f"cannot unmount {target}")
        time.sleep(0.05)
    if entry["folder"] and target.exists():
        target.rmdir()


def _cgroups(_layout: Layout, _entry: Entry) -> None:
    end_pods()


def _modules(_layout: Layout, entry: Entry) -> None:
    for name in reversed(entry["names"]):
        subprocess.run(["modprobe", "-q", "-r", name], check=False, capture_output=True)


def _chains(layout: Layout, entry: Entry) -> None:
    firewall.remove_chains(layout, set(entry["before"]))


def _tables(layout: Layout, entry: Entry) -> None:
    firewall.remove_tables(layout, set(entry["before"]))


UNDO: Final[Mapping[str, Callable[[Layout, Entry], None]]] = {
    "process": _process,
    "path": _path,
    "folder": _folder,
    "pod-log-links": _pod_log_links,
    "link": _link,
    "setting": _setting,
    "mount": _mount,
    "cgroups": _cgroups,
    "modules": _modules,
    "chains": _chains,
    "tables": _tables,
    "packages": debian.purge,
}


def undo_all(layout: Layout, state: State) -> list[str]:
    """Undo everything recorded; returns what could not be undone."""
    problems: list[str] = []

    def attempt(what: str, act: Callable[[], None]) -> bool:
        try:
            act()
        except (ClusterError, OSError, subprocess.SubprocessError) as error:
            problems.append(f"{what}: {error}")
            return False
        return True

    own = [entry for entry in reversed(state.entries) if entry["kind"] == "process"]
    attempt("processes", lambda: processes.end([e["pid"] for e in own if _is_ours(e)]))
    attempt("strays", lambda: processes.end(processes.marked_pids(layout.root), term_s=2))
    if state.find("cgroups"):
        attempt("Pods", end_pods)
        folders = (RUNTIME_RUN, RUNTIME_STATE, RUNTIME_ETC, layout.root)
        attempt("mounts", lambda: unmount_below(*folders))
    for entry in reversed(list(state.entries)):
        what = " ".join(str(entry.get(key, "")) for key in ("kind", "name", "path", "key"))
        if attempt(what.strip(), partial(UNDO[entry["kind"]], layout, entry)):
            state.forget(entry)
    return problems


def _is_ours(entry: Entry) -> bool:
    return processes.is_alive(entry["pid"], entry["started"])
