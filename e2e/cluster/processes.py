"""Starting, finding and ending the cluster's processes.

A process is known by its PID and its start time, so a PID that was given to another program is
never taken for ours. Strays (an ``up`` that died between a start and its record, a monitor that
outlived the runtime) are found by the marker in their environment.
"""

from __future__ import annotations

import hashlib
import os
import signal
import subprocess
import time
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cache
from pathlib import Path
from typing import Final

from e2e.cluster.layout import MARKER, Layout
from e2e.cluster.state import ClusterError, State

TERM_S: Final = 3.0  # what the cluster stores is thrown away, so nobody needs long to end


def start_time(pid: int) -> int:
    """The start time in clock ticks since boot (proc(5), stat field 22); 0 when it is gone."""
    try:
        stat = Path(f"/proc/{pid}/stat").read_bytes()
    except OSError:
        return 0
    fields = stat.rpartition(b")")[2].split()
    return 0 if fields[0] in {b"Z", b"X"} else int(fields[19])


def is_alive(pid: int | None, started: int | None) -> bool:
    """Whether this very process still runs; a zombie does not."""
    return bool(pid and started and start_time(pid) == started)


def all_pids() -> Iterator[int]:
    """Every process that there is now."""
    return (int(entry.name) for entry in Path("/proc").iterdir() if entry.name.isdigit())


def command_of(pid: int) -> str:
    """The command line, for messages; empty for kernel threads and for what is gone."""
    try:
        return Path(f"/proc/{pid}/cmdline").read_bytes().replace(b"\0", b" ").decode().strip()
    except (OSError, UnicodeDecodeError):
        return ""


def marked_pids(root: Path) -> list[int]:
    """Processes that carry this cluster's marker, without this one and those it came from."""
    wanted = f"{MARKER}={root}".encode()
    own = ancestors()
    found: list[int] = []
    for pid in all_pids():
        try:
            environment = Path(f"/proc/{pid}/environ").read_bytes().split(b"\0")
        except OSError:
            continue
        if wanted in environment and pid not in own:
            found.append(pid)
    return found


@cache
def ancestors() -> frozenset[int]:
    """This process and all that were above it when first asked: one may end before we do."""
    line: set[int] = set()
    pid = os.getpid()
    while pid > 0 and pid not in line:
        line.add(pid)
        try:
            stat = Path(f"/proc/{pid}/stat").read_bytes()
        except OSError:
            break
        pid = int(stat.rpartition(b")")[2].split()[1])
    return frozenset(line)


def end(pids: Iterable[int], *, term_s: float = TERM_S) -> None:
    """SIGTERM, then after `term_s` seconds SIGKILL; returns when all are gone."""
    alive = {pid: start_time(pid) for pid in pids}
    for sign, limit_s in ((signal.SIGTERM, term_s), (signal.SIGKILL, 10.0)):
        alive = {pid: begun for pid, begun in alive.items() if is_alive(pid, begun)}
        if sign == signal.SIGTERM and term_s <= 0:
            continue
        for pid in alive:
            _signal(pid, sign)
        deadline = time.monotonic() + limit_s
        while time.monotonic() < deadline:
            if not any(is_alive(pid, begun) for pid, begun in alive.items()):
                break
            time.sleep(0.02)
    left = [f"{pid} ({command_of(pid)})" for pid, begun in alive.items() if is_alive(pid, begun)]
    if left:
        raise ClusterError(f"cannot end {', '.join(left)}")


def _signal(pid: int, sign: signal.Signals) -> None:
    try:
        os.kill(pid, sign)
    except ProcessLookupError:
        return


@dataclass(frozen=True, slots=True)
class Command:
    """A component: how it is started, and the files that it reads."""

    name: str
    argv: tuple[str, ...]
    files: Mapping[Path, str] = field(default_factory=dict[Path, str])
    environment: Mapping[str, str] = field(default_factory=dict[str, str])

    def digest(self) -> str:
        """Of all that decides how it runs."""
        files = {str(path): content for path, content in self.files.items()}
        return hashlib.sha256(repr((self.argv, files, self.environment)).encode()).hexdigest()


def start(state: State, layout: Layout, command: Command) -> bool:
    """Start a component unless it runs as it should; True when it was started.

    Its output goes to ``.cluster/logs/NAME.log``. It has a session of its own, so that closing
    the terminal does not end it.
    """
    entry = state.find("process", name=command.name)
    if entry and is_alive(entry["pid"], entry["started"]):
        if entry["digest"] == command.digest():
            return False
        end([entry["pid"]])
    if entry:
        state.forget(entry)
    for path, content in command.files.items():
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(content)
    entry = state.record(
        "process", name=command.name, digest=command.digest(), pid=None, started=None
    )
    layout.logs.mkdir(parents=True, exist_ok=True)
    with (layout.logs / f"{command.name}.log").open("ab") as log:
        child = subprocess.Popen(
            command.argv,
            stdin=subprocess.DEVNULL,
            stdout=log,
            stderr=log,
            cwd=layout.root,
            env=layout.environment() | dict(command.environment),
            start_new_session=True,
        )
    child.returncode = 0  # it outlives us and is known by its PID: no warning that it still runs
    state.update(entry, pid=child.pid, started=start_time(child.pid))
    return True


def require_alive(state: State, layout: Layout, name: str) -> None:
    """Raises ClusterError with the end of its log when a component has ended."""
    entry = state.find("process", name=name)
    if entry and is_alive(entry["pid"], entry["started"]):
        return
    log = layout.logs / f"{name}.log"
    raise ClusterError(f"{name} has ended; the end of {log}:\n{tail(log)}")


def tail(path: Path, lines: int = 15) -> str:
    """The last lines of a log."""
    try:
        return "\n".join(path.read_text(errors="replace").splitlines()[-lines:])
    except OSError:
        return "(no log)"


def run(
    argv: Sequence[str],
    layout: Layout,
    *,
    timeout_s: float = 120,
    text: str | None = None,
    environment: Mapping[str, str] | None = None,
    folder: Path | None = None,
) -> str:
    """Run a program, in a folder, to its end and return what it printed.

    Raises ClusterError with its stderr.
    """
    try:
        done = subprocess.run(
            argv,
            input=text,
            capture_output=True,
            text=True,
            timeout=timeout_s,
            cwd=folder,
            env=layout.environment() | dict(environment or {}),
            check=False,
        )
    except FileNotFoundError:
        raise ClusterError(f"{argv[0]} is not installed") from None
    except subprocess.TimeoutExpired:
        raise ClusterError(f"{' '.join(argv)} took more than {timeout_s:.0f} s") from None
    if done.returncode != 0:
        raise ClusterError(f"{' '.join(argv)} failed: {(done.stderr or done.stdout).strip()}")
    return done.stdout
