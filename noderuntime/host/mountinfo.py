"""The mounts of this process, as /proc/self/mountinfo lists them. proc_pid_mountinfo(5)."""

from __future__ import annotations

import errno
import os
import re
from dataclasses import dataclass
from pathlib import Path
from typing import Final

_OCTAL: Final = re.compile(rb"\\([0-7]{3})")
_ESCAPED: Final = re.compile(rb"[ \t\n\\]")  # seq_path in show_mountinfo of the kernel
_MNT_ID: Final = re.compile(r"^mnt_id:\s*(\d+)$", re.MULTILINE)


@dataclass(frozen=True, slots=True, kw_only=True)
class MountEntry:
    """One line; ``root`` is inside the file system, ``options`` are those of the superblock.

    ``shared``: mounts and unmounts below it are also made in its peers.
    """

    id: int
    parent: int
    root: str
    target: Path
    kind: str
    source: str
    options: str
    shared: bool = False


def _text(field: bytes) -> str:
    return os.fsdecode(_OCTAL.sub(lambda match: bytes([int(match[1], 8)]), field))


def parse(table: bytes) -> tuple[MountEntry, ...]:
    """Parse the whole file, oldest mount first; targets may hold any byte but NUL."""
    entries: list[MountEntry] = []
    for line in table.split(b"\n"):
        fields = line.split(b" ")
        if len(fields) < 10:
            continue
        end = fields.index(b"-", 6)
        tail = fields[end + 1 :]
        entries.append(
            MountEntry(
                id=int(fields[0]),
                parent=int(fields[1]),
                root=_text(fields[3]),
                target=Path(_text(fields[4])),
                kind=_text(tail[0]),
                source=_text(tail[1]),
                options=_text(tail[2]) if len(tail) > 2 else "",
                shared=any(field.startswith(b"shared:") for field in fields[6:end]),
            )
        )
    return tuple(entries)


def mounts() -> tuple[MountEntry, ...]:
    """Read this process' mounts."""
    return parse(Path("/proc/self/mountinfo").read_bytes())


def mounts_at(path: Path) -> tuple[MountEntry, ...]:
    """Return the mounts on ``path`` and below it. Only these lines are parsed: a node has thousands."""
    name = _ESCAPED.sub(lambda match: b"\\%03o" % match[0][0], os.fsencode(path))
    table = Path("/proc/self/mountinfo").read_bytes()
    lines = [line for line in table.split(b"\n") if name in line] if name in table else []
    return tuple(e for e in parse(b"\n".join(lines)) if e.target.is_relative_to(path))


def _mount_id(path: Path) -> int:
    descriptor = os.open(path, os.O_PATH | os.O_NOFOLLOW | os.O_CLOEXEC)
    try:
        info = Path(f"/proc/self/fdinfo/{descriptor}").read_text()
    finally:
        os.close(descriptor)
    match = _MNT_ID.search(info)
    if match is None:
        raise OSError(errno.ENODATA, "no mnt_id in fdinfo")
    return int(match[1])


def is_mount_point(path: Path) -> bool:
    """Tell whether something is mounted exactly on ``path``; raises FileNotFoundError.

    Costs the same however many mounts there are: the mount of a path differs from its folder's.
    """
    return _mount_id(path) != _mount_id(path.parent)
