"""Limits that depend on the node: what its cgroups cannot do is refused by the field's name.

The kubelet sends a limit of 0 for every size of huge pages that the kernel knows; where there is no
controller for them, only that 0 is passed over, as there a container cannot be kept from them either.
Source: kubelet ``pkg/kubelet/kuberuntime/kuberuntime_container_linux.go``.
"""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING, Final

from noderuntime.errors import InvalidArgumentError
from noderuntime.policy.spec import NO_SWAP, allows_swap

if TYPE_CHECKING:
    from noderuntime.host.ports import Cgroups
    from noderuntime.policy.model import Resources


_PERIOD_US: Final = 100_000  # the kernel's default


def in_place(cgroups: Cgroups, current: Resources, wanted: Resources) -> tuple[Resources, bool]:
    """Return what the OCI runtime is told, and whether the CPU quota is lifted apart from it.

    On v2 crun 1.8.1 lifts a quota only with a period beside it, on v1 not at all; written past runc
    it would come back when systemd next looks at the unit. runc tells systemd of every limit but
    swap that is not allowed at all, except through ``unified``.
    """
    if not cgroups.is_unified():
        lifts = wanted.cpu_quota_us < 0
        return (replace(wanted, cpu_quota_us=0) if lifts else wanted), lifts
    told = wanted
    if wanted.cpu_quota_us < 0:
        period = wanted.cpu_period_us or current.cpu_period_us or _PERIOD_US
        told = replace(told, cpu_period_us=period)
    if not allows_swap(wanted):
        told = replace(told, unified={NO_SWAP: "0", **wanted.unified})
    return told, False


def honourable(cgroups: Cgroups, asked: Resources) -> Resources:
    """Return the limits that can be set. Raises InvalidArgumentError for one that cannot."""
    if asked.unified and not cgroups.is_unified():
        key = min(asked.unified)
        raise InvalidArgumentError(f"linux.resources.unified: {key} needs cgroup v2 on this node")
    if not asked.hugepage_limits_bytes or cgroups.has_controller("hugetlb"):
        return asked
    for size, limit in asked.hugepage_limits_bytes.items():
        if limit:
            raise InvalidArgumentError(
                f"linux.resources.hugepage_limits: {size} cannot be limited, as this node has no "
                "hugetlb controller"
            )
    return replace(asked, hugepage_limits_bytes={})
