"""Fixtures of the tests that boot a second kernel."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from e2e.cluster.layout import Layout
from e2e.kernels.boot import Guest, Machine, kernel

# What is in there runs in a guest, started by the tests beside this file.
collect_ignore = [] if Path("/share/up").exists() else ["inside"]


@pytest.fixture(scope="package")
def guest(layout: Layout) -> Iterator[Guest]:
    """A guest with systemd, cgroup v2 and AppArmor that tests share; each leaves it as it was."""
    with kernel(layout, Machine(lsm="apparmor")) as booted:
        yield booted
