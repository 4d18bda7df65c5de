"""Booting a guest, giving it commands, cutting its power.

A guest is a process group of this machine: it ends with a signal, and with it everything in it. Its
root disk is a copy-on-write file over the kept one, thrown away at the end; a second disk is the
caller's and survives. Commands and results are files in a folder that both sides see.
"""

from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
import tempfile
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Final

from e2e.cluster import processes
from e2e.cluster.layout import Layout
from e2e.kernels import image, lane

BOOT_S: Final = 60.0
MEMORY: Final = "1G"
START: Final = "/usr/local/lib/guest/start"
PROJECT: Final = "/project"  # this repository, in the guest
_FAST: Final = Path("/dev/shm")  # memory: the guest's own, and what it writes
_FAST_BYTES: Final = 3 << 30
_POLL_S: Final = 0.02
_END_S: Final = 20.0


class GuestError(Exception):
    """The guest did not boot, ended by itself, or a command in it failed; with what was said."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Machine:
    """What is booted. ``disk``: a file with an ext4 file system, at ``/disk`` in the guest."""

    lsm: str = "apparmor"  # or selinux
    systemd: bool = True
    disk: Path | None = None
    arguments: tuple[str, ...] = ()  # more of the kernel's command line


@dataclass(frozen=True, slots=True)
class Done:
    """A command that has ended: its exit status and both its outputs."""

    code: int
    output: str


@dataclass(slots=True)
class Guest:
    """A running guest; ``share`` is the folder that is ``/share`` in it."""

    share: Path
    process: subprocess.Popen[bytes]
    console: Path
    commands: int = field(default=0)

    def run(
        self, argv: Sequence[str], *, timeout_s: float = 60, environment: Mapping[str, str] = {}
    ) -> str:
        """Run a command to its end and return what it said; raises GuestError if it failed."""
        done = self.wait(self.start(argv, timeout_s=timeout_s, environment=environment), timeout_s)
        if done.code != 0:
            raise GuestError(f"{' '.join(argv)} ended with {done.code}:\n{done.output}")
        return done.output

    def start(
        self, argv: Sequence[str], *, timeout_s: float = 600, environment: Mapping[str, str] = {}
    ) -> int:
        """Start a command; returns its number. It is killed in the guest at its limit."""
        number = self.commands
        self.commands += 1
        order = {
            "argv": list(argv),
            "environment": {"PYTHONPATH": f"{PROJECT}:{PROJECT}/operator"} | dict(environment),
            "folder": PROJECT,
            "timeout_s": timeout_s,
        }
        beside = self.share / f"{number}.new"
        beside.write_text(json.dumps(order))
        beside.rename(self.share / f"{number}.json")
        return number

    def output(self, number: int) -> str:
        """What a command has said so far."""
        with suppress(FileNotFoundError):
            return (self.share / f"{number}.out").read_text(errors="replace")
        return ""

    def wait(self, number: int, timeout_s: float) -> Done:
        """Wait for a command's end. Raises GuestError if it does not come."""
        status = self.share / f"{number}.rc"
        # The guest ends it at its limit; a guest that does not even do that hangs.
        self._until(status, timeout_s + 10, f"command {number}")
        return Done(int(status.read_text()), self.output(number))

    def has_ended(self, number: int) -> bool:
        """Whether a command has ended."""
        return (self.share / f"{number}.rc").exists()

    @contextmanager
    def frozen(self) -> Iterator[None]:
        """The guest stands still for as long as this lasts."""
        os.killpg(self.process.pid, signal.SIGSTOP)
        try:
            yield
        finally:
            os.killpg(self.process.pid, signal.SIGCONT)

    def wait_up(self) -> None:
        """Wait until the guest takes commands."""
        self._until(self.share / "up", BOOT_S, "the boot")

    def cut_power(self) -> None:
        """End it as a power loss does: what it had not given to its disks is lost."""
        group = self.process.pid
        with suppress(ProcessLookupError):
            os.killpg(group, signal.SIGKILL)
        self.process.wait(_END_S)
        deadline = time.monotonic() + _END_S
        while _is_group_alive(group):
            if time.monotonic() > deadline:
                raise GuestError(f"processes of the guest's group {group} do not end")
            time.sleep(_POLL_S)

    def _until(self, path: Path, timeout_s: float, what: str) -> None:
        deadline = time.monotonic() + timeout_s
        while not path.exists():
            if self.process.poll() is not None:
                raise GuestError(f"the guest ended during {what}:\n{self._said()}")
            if time.monotonic() > deadline:
                raise GuestError(f"{what} took more than {timeout_s:.0f} s:\n{self._said()}")
            time.sleep(_POLL_S)

    def _said(self) -> str:
        last = self.output(self.commands - 1)[-4000:] if self.commands else ""
        return f"{processes.tail(self.console, 40)}\n{last}"


def _is_group_alive(group: int) -> bool:
    """Whether a process of the group runs; one that only waits to be collected does not."""
    for pid in processes.all_pids():
        try:
            stat = Path(f"/proc/{pid}/stat").read_bytes()
        except OSError:
            continue
        state, _, found = stat.rpartition(b")")[2].split()[:3]
        if int(found) == group and state not in {b"Z", b"X"}:
            return True
    return False


@contextmanager
def kernel(layout: Layout, machine: Machine = Machine()) -> Iterator[Guest]:
    """A guest that has booted; at the end its power is cut and nothing of it is left."""
    program, disk = lane.kernel(layout), image.image(layout)
    folder = _folder()
    guest = None
    try:
        guest = _start(layout, machine, program, disk, folder)
        guest.wait_up()
        yield guest
    finally:
        if guest is not None:
            guest.cut_power()
        shutil.rmtree(folder)


def _folder() -> Path:
    """A folder of this process's own; those of processes that were killed are removed."""
    place = fast_folder()
    for old in place.glob("nr-kernel-*-*"):
        owner = int(old.name.split("-")[2])
        if not processes.start_time(owner):
            shutil.rmtree(old)
    return Path(tempfile.mkdtemp(prefix=f"nr-kernel-{os.getpid()}-", dir=place))


def fast_folder() -> Path:
    """Memory if there is enough of it, as a guest's memory and disks are files."""
    if _FAST.is_dir():
        found = os.statvfs(_FAST)
        if found.f_bavail * found.f_frsize > _FAST_BYTES:
            return _FAST
    return Path(tempfile.gettempdir())


def _start(
    layout: Layout, machine: Machine, program: lane.Kernel, disk: Path, folder: Path
) -> Guest:
    share = folder / "share"
    share.mkdir()
    argv = [
        *("setpriv", "--pdeathsig", "KILL"),  # a guest does not outlive who has started it
        str(program.program),
        *(f"mem={MEMORY}", "seccomp=on", "quiet", f"uml_dir={folder}/uml", "umid=guest"),
        *(f"ubd0={folder}/root.cow,{disk}", "root=/dev/ubda", "rw"),
        *("con=null", "con0=null,fd:1", f"lsm=yama,{machine.lsm}"),
        *(f"guest.share={share}", f"guest.project={layout.repository}"),
        f"guest.modules={program.modules}",
        *machine.arguments,
    ]
    if machine.disk is not None:
        argv += [f"ubd1={machine.disk}", "guest.disk=1"]
    if not machine.systemd:
        argv.append(f"init={START}")
    console = folder / "console"
    with console.open("wb") as out:
        process = subprocess.Popen(
            argv,
            stdin=subprocess.DEVNULL,
            stdout=out,
            stderr=out,
            cwd=folder,
            # Without the cluster's marker: a guest is no part of it, and `down` leaves it alone.
            env=os.environ | {"TMPDIR": str(folder)},
            start_new_session=True,
        )
    return Guest(share, process, console)
