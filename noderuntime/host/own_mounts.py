"""What the OCI runtime mounted of its own on /dev and below /proc, before the process starts.

An image whose links lead to /dev, or a volume that changes while it is mounted, can put a volume where
the runtime takes /dev/null from to mask files of /proc, or over /proc itself, through which the runtime
sets what confines the process. Which links there are is the attacker's choice, so what became of them is
asked of the kernel: in the container's mount namespace, once everything is mounted and before its
process starts. A container that is privileged is not looked at: nothing is masked there.
Source: CVE-2019-16884, CVE-2025-31133, CVE-2025-52565, CVE-2025-52881; proc_pid_mountinfo(5).
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Final

from noderuntime.host import mountinfo

_ONCE: Final = ("/dev", "/dev/pts", "/proc")
_PROC: Final = Path("/proc")


def misplaced(table: bytes, declared: Iterable[str] = ()) -> str:
    """Return the path of what is mounted there and is not the runtime's own; "" where nothing is.

    ``table`` is the container's mountinfo; ``declared`` are paths that the Pod may mount upon.
    """
    # A container that binds "/" has thousands of mounts: only the lines that matter are parsed.
    lines = [line for line in table.split(b"\n") if b" /proc" in line or b" /dev" in line]
    entries = mountinfo.parse(b"\n".join(lines))
    return next(_misplaced(entries, frozenset(declared)), "")


def _misplaced(
    entries: tuple[mountinfo.MountEntry, ...], declared: frozenset[str]
) -> Iterator[str]:
    times = Counter(str(entry.target) for entry in entries)
    yield from (path for path in _ONCE if times[path] > 1)
    devices = {entry.device for entry in entries if str(entry.target) == "/dev"}
    for entry in entries:
        path = str(entry.target)
        if _PROC not in entry.target.parents or path in declared:
            continue
        if times[path] > 1 or not _is_the_runtimes(entry, devices):
            yield path


def _is_the_runtimes(entry: mountinfo.MountEntry, devices: set[str]) -> bool:
    """Tell whether it is a read-only part of /proc, or a mask: /dev/null, or an empty tmpfs."""
    if entry.kind == "proc":
        return entry.root == str(entry.target).removeprefix("/proc")
    if entry.root == "/null":
        return entry.kind == "devtmpfs" or entry.device in devices
    options = entry.options.split(",")
    return entry.kind == "tmpfs" and entry.root == "/" and ("ro" in options or "size=0k" in options)
