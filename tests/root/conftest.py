"""What every test that runs containers needs of the machine, and gives back at the end."""

from __future__ import annotations

import os
import shutil
import tempfile
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from e2e.cluster.cgroups import with_hugetlb
from e2e.cluster.layout import this_layout
from tests.root.mounts_kit import unmount_below

if TYPE_CHECKING:
    from collections.abc import Generator

# What the tests in here run: requirements/debian.txt has them, and `make packages` installs them.
PROGRAMS = ("busybox", "conmon", "crun", "runc")


@pytest.fixture(scope="session", autouse=True)
def machine_that_can() -> None:
    """Fail by name where these tests cannot run; a test that is passed over proves nothing."""
    if os.geteuid() != 0:
        pytest.fail("tests/root act on the kernel: become root to run them")
    missing = [name for name in PROGRAMS if shutil.which(name) is None]
    if missing:
        pytest.fail(f"not installed: {', '.join(missing)}; run `make packages`")


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
def cgroup_that_crun_takes(machine_that_can: None) -> Generator[None]:
    """Give hugetlb a v1 hierarchy where crun needs one, for as long as the tests run."""
    del machine_that_can
    with with_hugetlb(this_layout()):
        yield
