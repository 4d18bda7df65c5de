"""AppArmor and SELinux enforcing on real containers; the tests themselves are in ``inside``.

Without systemd, so with the cgroup driver that the engine's own tests know.
"""

from __future__ import annotations

import pytest

from e2e.cluster.layout import Layout
from e2e.kernels.boot import Machine, kernel
from e2e.kernels.suite import run_inside

LIMIT_S = 400


@pytest.mark.timeout(LIMIT_S)
@pytest.mark.parametrize("lsm", ["apparmor", "selinux"])
def test_a_security_module_holds_for_containers_and_their_execs(layout: Layout, lsm: str) -> None:
    with kernel(layout, Machine(lsm=lsm, systemd=False)) as guest:
        run_inside(guest, f"e2e/kernels/inside/test_{lsm}.py", limit_s=LIMIT_S)
