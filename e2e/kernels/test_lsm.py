"""AppArmor and SELinux enforcing on real containers; the tests themselves are in ``inside``."""

from __future__ import annotations

from e2e.cluster.layout import Layout
from e2e.kernels.boot import Machine, kernel

PYTEST = ("python3", "-m", "pytest", "-q", "-p", "no:cacheprovider")
LIMIT_S = 600.0


def test_apparmor_holds_for_containers_and_their_execs(layout: Layout) -> None:
    with kernel(layout, Machine(lsm="apparmor", systemd=False)) as guest:
        guest.run([*PYTEST, "e2e/kernels/inside/test_apparmor.py"], timeout_s=LIMIT_S)


def test_selinux_keeps_the_files_of_pods_apart(layout: Layout) -> None:
    with kernel(layout, Machine(lsm="selinux", systemd=False)) as guest:
        guest.run([*PYTEST, "e2e/kernels/inside/test_selinux.py"], timeout_s=LIMIT_S)
