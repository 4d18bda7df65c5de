"""Limits that depend on the node: what its cgroups cannot do is refused by the field's name.

The kubelet sends a limit of 0 for every size of huge pages that the kernel knows; where there is no
controller for them, only that 0 is passed over, as there a container cannot be kept from them either.
In the same way it limits memory and swap together to the memory alone ("no swap") on every node; where
swap is not counted, that is passed over only if there is no swap to keep the container from.
Source: kubelet ``pkg/kubelet/kuberuntime/kuberuntime_container_linux.go``.
"""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING, Final

from noderuntime.errors import InvalidArgumentError
from noderuntime.policy.rules import Ulimit
from noderuntime.policy.spec import NO_SWAP, allows_swap

if TYPE_CHECKING:
    from collections.abc import Iterable

    from noderuntime.api.config import UlimitConfig
    from noderuntime.host.ports import Cgroups
    from noderuntime.policy.model import Resources

RLIM_INFINITY: Final = 2**64 - 1  # as the OCI runtime-spec has it: an unsigned number
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
    if asked.memory_swap_limit_bytes and not cgroups.can_limit_swap():
        asked = _without_swap(cgroups, asked)
    if not asked.hugepage_limits_bytes or cgroups.has_controller("hugetlb"):
        return asked
    for size, limit in asked.hugepage_limits_bytes.items():
        if limit:
            raise InvalidArgumentError(
                f"linux.resources.hugepage_limits: {size} cannot be limited, as this node has no "
                "hugetlb controller"
            )
    return replace(asked, hugepage_limits_bytes={})


def _without_swap(cgroups: Cgroups, asked: Resources) -> Resources:
    if asked.memory_swap_limit_bytes > 0 and cgroups.has_swap():
        raise InvalidArgumentError(
            "linux.resources.memory_swap_limit_in_bytes: swap cannot be limited, as this node does "
            "not count it; turn swap off, or boot with swapaccount=1"
        )
    return replace(asked, memory_swap_limit_bytes=0)


def ulimits(nodes: Iterable[UlimitConfig], profiles: Iterable[Ulimit]) -> tuple[Ulimit, ...]:
    """Return what a container starts with: the node's limits, and over them the profile's."""
    found: dict[str, Ulimit] = {
        each.name: Ulimit(name=each.name, soft=_or_none(each.soft), hard=_or_none(each.hard))
        for each in nodes
    }
    found |= {each.name: each for each in profiles}
    return tuple(sorted(found.values()))


def _or_none(limit: int) -> int:
    return RLIM_INFINITY if limit < 0 else limit
