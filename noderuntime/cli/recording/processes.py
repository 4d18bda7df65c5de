"""What /proc tells of a process that waits for the recorder's answer. proc(5), getauxval(3)."""

from __future__ import annotations

import struct
from contextlib import suppress
from pathlib import Path
from typing import Final

from noderuntime.cli.recording.seen import Ids

_PAIR: Final = struct.Struct("@LL")
_AT_SECURE: Final = 23
_OVERFLOW: Final = 65534  # an ID that the user namespace does not map


def is_there(thread: int) -> bool:
    """Tell whether there is such a thread."""
    return Path(f"/proc/{thread}").exists()


def has_gained(thread: int) -> bool:
    """Tell whether its program started with more privileges than who started it: AT_SECURE."""
    with suppress(OSError):
        data = Path(f"/proc/{thread}/auxv").read_bytes()
        whole = data[: len(data) // _PAIR.size * _PAIR.size]
        return any(key == _AT_SECURE and value for key, value in _PAIR.iter_unpack(whole))
    return False


def ids_of(thread: int) -> Ids | None:
    """Return its effective IDs as its own user namespace has them; None when it is gone."""
    try:
        proc = Path(f"/proc/{thread}")
        status = dict(
            line.split(":", 1) for line in (proc / "status").read_text().splitlines() if ":" in line
        )
        uids, gids = ((proc / name).read_text() for name in ("uid_map", "gid_map"))
    except OSError:
        return None
    return Ids(
        _inside(uids, int(status["Uid"].split()[1])),
        _inside(gids, int(status["Gid"].split()[1])),
        tuple(sorted(_inside(gids, int(group)) for group in status["Groups"].split())),
    )


def _inside(table: str, number: int) -> int:
    """Return an ID of ours as a namespace has it, by its uid_map: user_namespaces(7)."""
    for line in table.splitlines():
        inner, outer, length = map(int, line.split())
        if outer <= number < outer + length:
            return number - outer + inner
    return _OVERFLOW
