"""Where a run may be: numbered places on the machine, each held by one run at a time.

The number is in the name of everything that a run makes outside of its own folders (the bridge, its
subnets, the cgroup), so runs side by side never meet. A lock tells whether a place is held: the run and
its runtime have it both, and the kernel lets go of it when both have ended, however they end. The
``config.toml`` of a run that is no more tells the next one what there is to take away. The images stay
with the place, so that a second run has them.
"""

from __future__ import annotations

import fcntl
import os
from collections.abc import Generator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from noderuntime.cli.places import FOLDER_MODE, prepare
from noderuntime.errors import ConfigError, ResourceExhaustedError

RUN: Final = Path("/run/noderuntime-run")
MOST: Final = 64
_CONFIG: Final = "config.toml"
_TRIES: Final = 100


@dataclass(frozen=True, slots=True, kw_only=True)
class Place:
    """One place. ``state`` outlives a run, ``run`` does not; ``lock`` is a descriptor."""

    number: int
    run: Path
    state: Path
    lock: int = -1

    def let_go(self) -> None:
        """Give the place to others, as far as this process holds it."""
        root = self.run.parent
        path = root / f"{self.number}.lock"
        with suppress(OSError):
            if _is_at(self.lock, path):  # else it is of who has the place now
                path.unlink()
        os.close(self.lock)
        with suppress(OSError):  # other runs are in it
            root.rmdir()

    @property
    def config(self) -> Path:
        """The settings of the runtime; there while there is something to take away."""
        return self.run / _CONFIG

    @property
    def socket(self) -> Path:
        """Where the runtime answers."""
        return self.run / "noderuntime.sock"

    @property
    def recorder(self) -> Path:
        """Where a recorder listens, if there is one."""
        return self.run / "recorder.sock"

    def upper(self, container_id: str) -> Path:
        """Return the writable layer of a container's root."""
        return self.state / "state" / "snapshots" / container_id / "upper"

    @property
    def pods(self) -> Path:
        """Where volumes and logs of the Pod are, as in a kubelet's folder; gone with the run."""
        return self.state / "pods"

    @property
    def decisions(self) -> Path:
        """The log of what the profile decided."""
        return self.run / "decisions" / "decisions.log"

    @property
    def bridge(self) -> str:
        """The name of the bridge, and of its nftables table."""
        return f"nrrun{self.number}"

    @property
    def subnets(self) -> tuple[str, str]:
        """The Pod's subnets; the IPv4 ones are RFC 2544's, which nobody routes."""
        return f"198.18.{self.number}.0/24", f"fd6e:6f64:6572:{0x8900 + self.number:x}::/64"

    def cgroup(self, *, systemd: bool) -> str:
        """Return the Pod's cgroup, as ``cgroup_parent`` of CRI names one."""
        name = f"noderuntime_run_{self.number}"
        return f"{name}.slice" if systemd else f"/{name}"


@contextmanager
def taken(state: Path, *, run: Path = RUN) -> Generator[Place]:
    """Hold the first free place within. Raises ConfigError, ResourceExhaustedError.

    One with something left in it, which could not be taken away, is passed over.
    """
    for number in range(MOST):
        place = _take(run, number, state)
        if place is None:
            continue
        try:
            if not place.config.exists():
                yield place
                return
        finally:
            place.let_go()
    raise ResourceExhaustedError(
        f"{MOST} Pods run on this machine by `noderuntime run` now: wait for one of them"
    )


@contextmanager
def left(*, run: Path = RUN) -> Generator[tuple[Place, ...]]:
    """Hold those places that a dead run left something in; their settings say where."""
    held: list[Place] = []
    try:
        for path in sorted(run.glob(f"*/{_CONFIG}")):
            name = path.parent.name
            if name.isdecimal() and int(name) < MOST:
                place = _take(run, int(name), path.parent)
                held += [] if place is None else [place]
        yield tuple(place for place in held if place.config.exists())
    finally:
        for place in held:
            place.let_go()


def _take(run: Path, number: int, state: Path) -> Place | None:
    lock = _lock(run, number)
    if lock is None:
        return None
    return Place(number=number, run=run / str(number), state=state / str(number), lock=lock)


def _lock(run: Path, number: int) -> int | None:
    """Return the place's lock, None where another run holds it. Raises ConfigError."""
    path = run / f"{number}.lock"
    for _ in range(_TRIES):
        prepare(run)
        flags = os.O_RDWR | os.O_CREAT | os.O_NOFOLLOW | os.O_CLOEXEC
        try:
            descriptor = os.open(path, flags, 0o600)
        except FileNotFoundError:
            continue  # the last run of all took the folder away
        except OSError as error:
            raise ConfigError(f"cannot open {path}: {error.strerror}") from error
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError:
            os.close(descriptor)
            return None
        if _is_at(descriptor, path):
            return descriptor
        os.close(descriptor)  # its holder removed it: a lock that nobody else would find
    raise ConfigError(f"cannot take the lock {path}: it is removed again and again")


def _is_at(descriptor: int, path: Path) -> bool:
    try:
        return os.path.samestat(os.fstat(descriptor), path.lstat())
    except FileNotFoundError:
        return False


def make_folders(place: Place) -> None:
    """Make the folders of a place. Raises ConfigError."""
    try:  # the user's own, or the system's: its mode is not for us to change
        place.state.parent.mkdir(mode=FOLDER_MODE, parents=True, exist_ok=True)
    except OSError as error:
        raise ConfigError(f"cannot make {place.state.parent}: {error.strerror}") from error
    prepare(place.state)
    prepare(place.run)
