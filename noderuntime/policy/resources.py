"""CPU, memory, huge pages and PIDs of a container: defaults where it asks for none, and a most.

A container without a limit gets the default, where there is none the most; one that asks for more
than the most is refused. CPU is CFS quota and period; the kubelet never asks for a quota below 1
ms, so a most below 10m admits that one. OCI runtime-spec config-linux.md; kubelet
``pkg/kubelet/cm/helpers_linux.go``.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import replace
from typing import Final

from noderuntime.api.quantity import show_bytes, show_cpu
from noderuntime.errors import InvalidArgumentError
from noderuntime.policy.denial import Denial, listed, printable
from noderuntime.policy.model import Resources
from noderuntime.policy.rules import HandlerRules

PERIOD_US: Final = 100_000
_LEAST_QUOTA_US: Final = 1_000
# Keys of cgroup v2 that set what the fields above set: they would go round the bound.
_BOUND_KEYS: Final = frozenset(
    ("cpu.max", "cpu.max.burst", "memory.max", "memory.swap.max", "memory.zswap.max", "pids.max")
)
# What may be set by its file's name at all: limits and protections. Not among them: what moves, stops
# or hands on processes (cgroup.procs, cgroup.kill, cgroup.freeze, cgroup.subtree_control), what acts
# once (memory.reclaim), and partitions, which take CPUs from others. Huge pages have a size between.
_UNIFIED_KEYS: Final = frozenset(
    (
        *("cpu.idle", "cpu.max", "cpu.max.burst", "cpu.uclamp.max", "cpu.uclamp.min"),
        *("cpu.weight", "cpu.weight.nice", "cpuset.cpus", "cpuset.mems"),
        *("io.bfq.weight", "io.latency", "io.max", "io.weight"),
        *("memory.high", "memory.low", "memory.max", "memory.min", "memory.oom.group"),
        *("memory.swap.high", "memory.swap.max", "memory.zswap.max", "memory.zswap.writeback"),
        *("misc.max", "pids.max", "rdma.max"),
    )
)
_HUGEPAGE_KEY: Final = re.compile(r"hugetlb\.[0-9]{1,5}[KMG]B\.(rsvd\.)?max")


def require_known_keys(asked: Resources) -> None:
    """Raise InvalidArgumentError for a key of ``unified`` that is not a limit of a cgroup."""
    for key in sorted(asked.unified):
        if key not in _UNIFIED_KEYS and not _HUGEPAGE_KEY.fullmatch(key):
            raise InvalidArgumentError(
                f"linux.resources.unified: {printable(key, 80)} is not a limit that a container may "
                "be given; remove it"
            )


def within_bound(rules: HandlerRules, container: str, asked: Resources) -> Iterator[Denial]:
    """Refuse limits above the most."""
    most = rules.limits
    if most.cpu_millis is not None and _is_above(asked, most.cpu_millis):
        shown = show_cpu(-(-asked.cpu_quota_us * 1000 // _period(asked)))
        own = rules.profile_limits.cpu_millis == most.cpu_millis
        yield _deny(rules, container, ("cpu", shown, show_cpu(most.cpu_millis)), own=own)
    if most.memory_bytes is not None and asked.memory_limit_bytes > most.memory_bytes:
        shown = show_bytes(asked.memory_limit_bytes)
        own = rules.profile_limits.memory_bytes == most.memory_bytes
        yield _deny(rules, container, ("memory", shown, show_bytes(most.memory_bytes)), own=own)
    yield from _hugepages(rules, container, asked)
    for key in sorted(filter(_is_bound, asked.unified)):
        yield rules.deny(
            "resources",
            f"{key}={printable(asked.unified[key], 40)}",
            "limits are set through resources.limits alone",
            "use resources.limits",
            container=container,
        )


def with_defaults(rules: HandlerRules, asked: Resources) -> tuple[Resources, tuple[str, ...]]:
    """Return the resources of a new container, and what was set, a sentence each."""
    result, changes = asked, list[str]()
    cpu = _default(rules.defaults.cpu_millis, rules.limits.cpu_millis)
    if asked.cpu_quota_us <= 0 and cpu is not None:
        result = _with_cpu(result, cpu)
        changes.append(f"resources.limits.cpu is {show_cpu(cpu)}, as the Pod sets none")
    memory = _default(rules.defaults.memory_bytes, rules.limits.memory_bytes)
    if asked.memory_limit_bytes <= 0 and memory is not None:
        result = _with_memory(result, memory)
        changes.append(f"resources.limits.memory is {show_bytes(memory)}, as the Pod sets none")
    return result, tuple(changes)


def without_unlimited(rules: HandlerRules, asked: Resources) -> Resources:
    """Return the resources of an update: 0 leaves a limit, 'unlimited' becomes the default."""
    complete, _ = with_defaults(rules, asked)
    result = asked
    if asked.cpu_quota_us < 0:
        result = replace(
            result, cpu_quota_us=complete.cpu_quota_us, cpu_period_us=complete.cpu_period_us
        )
    if asked.memory_limit_bytes < 0:
        result = replace(
            result,
            memory_limit_bytes=complete.memory_limit_bytes,
            memory_swap_limit_bytes=complete.memory_swap_limit_bytes,
        )
    return result


def _is_bound(key: str) -> bool:
    return key in _BOUND_KEYS or key.startswith("hugetlb.")


def _default(default: int | None, most: int | None) -> int | None:
    known = [amount for amount in (default, most) if amount is not None]
    return min(known) if known else None


def _with_cpu(asked: Resources, millis: int) -> Resources:
    period = _period(asked)
    quota = max(millis * period // 1000, _LEAST_QUOTA_US)
    return replace(asked, cpu_quota_us=quota, cpu_period_us=period)


def _with_memory(asked: Resources, amount: int) -> Resources:
    swap = asked.memory_swap_limit_bytes
    # The swap limit counts memory too; the kernel refuses one that is below the memory limit.
    return replace(
        asked, memory_limit_bytes=amount, memory_swap_limit_bytes=max(swap, amount) if swap else 0
    )


def _is_above(asked: Resources, millis: int) -> bool:
    return asked.cpu_quota_us > max(millis * _period(asked) // 1000, _LEAST_QUOTA_US)


def _period(asked: Resources) -> int:
    return asked.cpu_period_us if asked.cpu_period_us > 0 else PERIOD_US


def _hugepages(rules: HandlerRules, container: str, asked: Resources) -> Iterator[Denial]:
    """Refuse huge pages above the profile's most; a size that it does not name has a most of 0."""
    if rules.hugepages is None:
        return
    most = dict(rules.hugepages)
    for size, amount in sorted(asked.hugepage_limits_bytes.items()):
        if amount > most.get(size, 0):
            sizes = tuple(f"{name}: {show_bytes(limit)}" for name, limit in rules.hugepages)
            name = size.removesuffix("B") + "i"  # as Kubernetes has it: 2Mi
            yield rules.deny(
                f"resources.limits.hugepages-{printable(name, 20)}",
                show_bytes(amount),
                f"resources.hugepages has {listed(sizes)}",
                f"ask for {show_bytes(most.get(size, 0))} or less",
                container=container,
            )


def _deny(rules: HandlerRules, container: str, found: tuple[str, str, str], *, own: bool) -> Denial:
    """Deny (kind, value, most); ``own``: the profile says so itself, not the NodeRuntime."""
    kind, value, most = found
    by_runtime = f'resources.limits.{kind} of NodeRuntime "{rules.node_runtime}"'
    return rules.deny(
        f"resources.limits.{kind}",
        value,
        f"{f'resources.{kind}.max' if own else by_runtime} is {most}",
        f"ask for {most} or less",
        container=container or "*",
    )
