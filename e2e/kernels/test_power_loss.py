"""Power loss: at each step of each verb that the code declares, and at moments that nobody chose.

A disk is taken while the guest stands still, which is what a power loss leaves: what the guest has
not given to its disk is not on it. At the end the power is cut for real. All that were taken are
checked by e2fsck and then started from in one new boot.
"""

from __future__ import annotations

import os
import random
import shutil
import subprocess
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from e2e.cluster.layout import Layout
from e2e.kernels.boot import Guest, GuestError, Machine, fast_folder, kernel
from e2e.kernels.inside.power import USERS
from e2e.kernels.suite import run_inside
from noderuntime.engine.engine import steps_of

RANDOM = 6
LIVE_S = 120.0
RECOVER_S = 240.0
FREE = "free"


@pytest.fixture
def folder() -> Iterator[Path]:
    with tempfile.TemporaryDirectory(prefix=f"nr-kernel-{os.getpid()}-", dir=fast_folder()) as name:
        yield Path(name)


@pytest.mark.timeout(480)
def test_the_runtime_recovers_from_every_power_loss(layout: Layout, folder: Path) -> None:
    disk, cuts = folder / "disk.img", folder / "cuts"
    cuts.mkdir()
    with disk.open("wb") as file:
        file.truncate(128 << 20)
    subprocess.run(["mke2fs", "-q", "-F", "-t", "ext4", disk], check=True)
    with kernel(layout, Machine(systemd=False, disk=disk)) as guest:
        _live(guest, disk, cuts)
    shutil.copy(disk, cuts / "the-end.img")
    taken = sorted(path.stem for path in cuts.iterdir())
    assert any(name.endswith(USERS) for name in taken)
    assert {name.partition(":")[0] for name in taken} >= {
        place.replace("/", ".") for place in steps_of()
    }
    for image in cuts.iterdir():
        _check(image)
    with kernel(layout, Machine(systemd=False)) as guest:
        for image in cuts.iterdir():
            (guest.share / "cuts").mkdir(exist_ok=True)
            image.rename(guest.share / "cuts" / image.name)
        run_inside(guest, "e2e/kernels/inside/test_recovery.py", limit_s=RECOVER_S)


def _live(guest: Guest, disk: Path, cuts: Path) -> None:
    """Let a runtime live, and take its disk where it asks for it and then at random."""
    asked = guest.share / "cuts"
    asked.mkdir()
    number = guest.start(["python3", "-m", "e2e.kernels.inside.power"], timeout_s=LIVE_S)
    deadline = time.monotonic() + LIVE_S
    while FREE not in guest.output(number):
        for place in asked.iterdir():
            if place.suffix != ".done" and not place.with_name(f"{place.name}.done").exists():
                _take(guest, disk, cuts / f"{place.name}.img")
                place.with_name(f"{place.name}.done").touch()
        if time.monotonic() > deadline or guest.has_ended(number):
            raise GuestError(f"the runtime does not live:\n{guest.output(number)}")
        time.sleep(0.005)
    for moment in range(RANDOM):
        time.sleep(random.uniform(0.1, 0.9))  # noqa: S311  # any moment will do
        _take(guest, disk, cuts / f"random-{moment}.img")
    assert not guest.has_ended(number), guest.output(number)


def _take(guest: Guest, disk: Path, target: Path) -> None:
    with guest.frozen():
        subprocess.run(["cp", "--sparse=always", disk, target], check=True)


def _check(image: Path) -> None:
    """As a boot does: play the journal back. Then nothing may be wrong."""
    for words, fine in ((("-f", "-p"), {0, 1}), (("-f", "-n"), {0})):
        done = subprocess.run(
            ["e2fsck", *words, image], capture_output=True, text=True, check=False
        )
        assert done.returncode in fine, (image.name, done.stdout, done.stderr)
