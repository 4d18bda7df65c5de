"""oom_score_adj: how low this host lets us go. proc_pid_oom_score_adj(5).

Without CAP_SYS_RESOURCE (or in a user namespace) a value below one's own is refused with EACCES,
and an OCI runtime then fails the whole container. Less protection is better than no container.
"""

from __future__ import annotations

from collections.abc import Mapping
from contextlib import suppress
from functools import cache
from pathlib import Path
from typing import Final, cast

from noderuntime.host.syscalls import host_error

LOWEST: Final = -1000
_CAP_SYS_RESOURCE: Final = 24


@cache
def floor() -> int:
    """Return the lowest oom_score_adj that a process started by us may be given."""
    status = Path("/proc/self/status").read_text()
    effective = next(line for line in status.splitlines() if line.startswith("CapEff:"))
    whole = Path("/proc/self/uid_map").read_text().split() == ["0", "0", "4294967295"]
    if whole and int(effective.split()[1], 16) >> _CAP_SYS_RESOURCE & 1:
        return LOWEST
    return int(Path("/proc/self/oom_score_adj").read_text())


def adjust(pid: int, before: int, score: int) -> None:
    """Set a process' value if it is ``before``; one that has ended is success. Raises HostError."""
    lowest = floor()
    file = Path(f"/proc/{pid}/oom_score_adj")
    try:
        if int(file.read_text()) == max(before, lowest):
            file.write_text(str(max(score, lowest)))
    except (FileNotFoundError, ProcessLookupError):
        return
    except OSError as error:
        raise host_error(f"cannot write {file}", error.errno or 0) from error


def inherit(pid: int, score: int) -> None:
    """Give an OCI runtime that was just started the value that its exec is to have."""
    with suppress(OSError):  # it has ended already
        Path(f"/proc/{pid}/oom_score_adj").write_text(str(max(score, floor())))


def clamp(process: Mapping[str, object], lowest: int) -> Mapping[str, object]:
    """Return the OCI process with an ``oomScoreAdj`` of at least ``lowest``."""
    score = process.get("oomScoreAdj")
    if isinstance(score, int) and score < lowest:
        return {**process, "oomScoreAdj": lowest}
    return process


def clamp_config(config: Mapping[str, object], lowest: int) -> Mapping[str, object]:
    """Return config.json with its process clamped; the same object where nothing changes."""
    process = config.get("process")
    if not isinstance(process, dict):
        return config
    before = cast("Mapping[str, object]", process)
    after = clamp(before, lowest)
    return config if after is before else {**config, "process": after}
