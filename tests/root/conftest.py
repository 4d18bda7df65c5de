"""What every test that runs containers needs of the machine, and gives back at the end."""

from __future__ import annotations

import subprocess
import tempfile
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from tests.root.mounts_kit import unmount_below

if TYPE_CHECKING:
    from collections.abc import Generator

HUGETLB = Path("/sys/fs/cgroup/hugetlb")
UNIFIED = Path("/sys/fs/cgroup/unified/cgroup.controllers")
CONTROLLERS = Path("/proc/cgroups")


def _crun_refuses_the_hybrid() -> bool:
    """crun before 1.9 says "hybrid mode not supported" while a controller is left in v2."""
    # Not what v2 lists now: after an unmount the controller goes back to it some seconds later.
    has_hugetlb = any(line.startswith("hugetlb") for line in CONTROLLERS.read_text().splitlines())
    return UNIFIED.exists() and has_hugetlb and not HUGETLB.is_mount()


@pytest.fixture(scope="session", autouse=True)
def no_mounts_left(tmp_path_factory: pytest.TempPathFactory) -> Generator[None]:
    """Leave no mount in pytest's folders: it could not remove them, and says so with a warning.

    What was left by tests that were killed is in folders that pytest has given up already.
    """
    for given_up in Path(tempfile.gettempdir()).glob("pytest-of-*/garbage-*"):
        unmount_below(given_up)
    yield
    unmount_below(tmp_path_factory.getbasetemp())


@pytest.fixture(scope="session", autouse=True)
def cgroup_that_crun_takes() -> Generator[None]:
    """Give hugetlb a v1 hierarchy where crun needs one, for as long as the tests run."""
    if not _crun_refuses_the_hybrid():
        yield
        return
    HUGETLB.mkdir(exist_ok=True)
    subprocess.run(["mount", "-t", "cgroup", "-o", "hugetlb", "cgroup", HUGETLB], check=True)
    yield
    subprocess.run(["umount", HUGETLB], check=True)
    HUGETLB.rmdir()
