"""The runtime on cgroup v2 under systemd, and user namespaces there: in a guest that is shared.

Of the tests in ``tests/root``, which run on this machine's own kernel as well, a few are enough.
"""

from __future__ import annotations

import pytest

from e2e.kernels.boot import Guest
from e2e.kernels.suite import run_inside

LIMIT_S = 240


@pytest.mark.timeout(LIMIT_S)
def test_limits_oom_and_stats_hold_under_systemd(guest: Guest) -> None:
    run_inside(guest, "e2e/kernels/inside/test_cgroups.py", limit_s=LIMIT_S)


@pytest.mark.timeout(LIMIT_S)
def test_user_namespaces_with_mapped_mounts_work(guest: Guest) -> None:
    words = "nobody_outside or mapped_volume or image_and_what"
    run_inside(guest, "tests/root/test_engine_userns.py", "-k", words, limit_s=LIMIT_S)


@pytest.mark.timeout(LIMIT_S)
def test_limits_and_metrics_of_the_engine_are_right_on_v2(guest: Guest) -> None:
    words = "limits_change or quota_can_be or metrics or rotated"
    run_inside(guest, "tests/root/test_engine_resources.py", "-k", words, limit_s=LIMIT_S)


@pytest.mark.timeout(LIMIT_S)
def test_what_is_written_to_a_disk_is_counted_on_v2(guest: Guest) -> None:
    run_inside(guest, "-rs", "tests/root/test_engine_blocks.py", limit_s=LIMIT_S)
