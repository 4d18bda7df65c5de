"""The specs of CRI's conformance suite that skip themselves on this machine, where they run."""

from __future__ import annotations

import pytest

from e2e.cluster.build import CRITOOLS, build_go
from e2e.cluster.layout import Layout
from e2e.kernels.boot import Guest
from e2e.kernels.suite import run_inside

LIMIT_S = 400


@pytest.mark.timeout(LIMIT_S)
def test_the_specs_of_apparmor_pass(layout: Layout, guest: Guest) -> None:
    build_go(layout, CRITOOLS, print)
    run_inside(guest, "e2e/kernels/inside/test_critest.py", limit_s=LIMIT_S)
