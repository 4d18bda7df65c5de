"""The parts of a profile that need more than a rename: ranges, paths, amounts, devices, dates.

Each raises ValueError with the field and what is wrong with it; ``load.rules_of`` adds the handler.
"""

from __future__ import annotations

from collections.abc import Iterable
from datetime import datetime
from posixpath import normpath
from typing import Final, TypedDict

from noderuntime.api.noderuntime import ResourceAmounts, ResourceRules
from noderuntime.api.profile_node import PAGE_SIZES, HostPath, ProfileResources
from noderuntime.api.profile_process import IdRange
from noderuntime.api.quantity import milli_cpu, size_bytes
from noderuntime.api.securityprofile import SecurityProfileSpec
from noderuntime.policy.denial import printable
from noderuntime.policy.rules import (
    SHM_BYTES,
    Bounds,
    DeviceRule,
    ExceptionRule,
    HostPathRule,
    Ranges,
    Ulimit,
)

# The kernel's own names, which CRI has: hugetlb.2MB.limit_in_bytes.
_CRI_PAGES: Final = {size: f"{size.removesuffix('i')}B" for size in PAGE_SIZES}
_MOST: Final = 2**63 - 1


class Amounts(TypedDict):
    """The fields of HandlerRules that are made of amounts."""

    defaults: Bounds
    limits: Bounds
    profile_limits: Bounds
    pids_limit: int | None
    hugepages: tuple[tuple[str, int], ...] | None
    shm_bytes: int
    shm_limit_bytes: int | None


def ranges(found: Iterable[IdRange], name: str) -> Ranges:
    """Return the ranges, sorted."""
    result = tuple(sorted((each.min, each.max) for each in found))
    for low, high in result:
        if low > high:
            raise ValueError(f"runAs.{name}: min {low} is above max {high}")
    return result


def exceptions(spec: SecurityProfileSpec) -> tuple[ExceptionRule, ...]:
    """Return the exceptions, in an order of their own."""
    found = [
        ExceptionRule(
            namespace=each.namespace,
            service_account=each.service_account or "",
            sections=frozenset(each.sections),
            expires_s=_seconds(each.expires),
            expires=each.expires,
        )
        for each in spec.exceptions
    ]
    return tuple(sorted(found, key=lambda e: (e.namespace, e.service_account, e.expires)))


def _seconds(text: str) -> int:
    try:
        return int(datetime.fromisoformat(text).timestamp())
    except ValueError as error:
        raise ValueError(f"exceptions.expires: {printable(text, 40)} is not a time") from error


def inner_paths(paths: tuple[str, ...], field: str) -> tuple[str, ...]:
    """Return paths inside a container, normalised and sorted."""
    return tuple(sorted({_normal(path, field) for path in paths}))


def host_path(rule: HostPath) -> HostPathRule:
    """Return one path of the node."""
    return HostPathRule(
        path=_normal(rule.path, "hostPaths"),
        readonly=rule.read_only,
        propagation=tuple(sorted(set(rule.propagation))),
    )


def devices(spec: SecurityProfileSpec) -> tuple[DeviceRule, ...]:
    """Return the devices by path."""
    return tuple(
        sorted(
            DeviceRule(path=_normal(each.path, "devices.allow"), permissions=each.permissions)
            for each in spec.devices.allow
        )
    )


def ulimits(spec: SecurityProfileSpec) -> tuple[Ulimit, ...]:
    """Return the limits of processes, by name."""
    names = [each.name for each in spec.ulimits]
    for each in spec.ulimits:
        if names.count(each.name) > 1:
            raise ValueError(f"ulimits: {each.name} is given twice")
        if each.soft > each.hard:
            raise ValueError(f"ulimits: {each.name} has a soft limit above its hard one")
    found = [Ulimit(name=each.name, soft=each.soft, hard=each.hard) for each in spec.ulimits]
    return tuple(sorted(found))


def requires_digest(spec: SecurityProfileSpec) -> bool:
    """Return ``images.requireDigest``; signatures are refused, as nothing here verifies them."""
    if spec.images.signatures.keys or spec.images.signatures.identities:
        raise ValueError(
            "images.signatures: this version does not verify signatures; remove it from the profile"
        )
    return spec.images.require_digest


def amounts(profile: ProfileResources, runtime: ResourceRules) -> Amounts:
    """Return what both say of amounts: of two, the narrower."""
    own_defaults = _bounds(
        ResourceAmounts(cpu=profile.cpu.default, memory=profile.memory.default),
        "resources of the profile",
    )
    own_limits = _bounds(
        ResourceAmounts(cpu=profile.cpu.max, memory=profile.memory.max), "resources of the profile"
    )
    shm = _size(profile.shm.default, "resources.shm.default")
    shm_limit = _size(profile.shm.max, "resources.shm.max")
    return Amounts(
        defaults=_narrower(own_defaults, _bounds(runtime.defaults, "resources.defaults")),
        limits=_narrower(own_limits, _bounds(runtime.limits, "resources.limits")),
        profile_limits=own_limits,
        pids_limit=_least(profile.pids, runtime.pids_limit),
        hugepages=_hugepages(profile),
        shm_bytes=min(SHM_BYTES if shm is None else shm, shm_limit or _MOST),
        shm_limit_bytes=shm_limit,
    )


def _hugepages(profile: ProfileResources) -> tuple[tuple[str, int], ...] | None:
    if profile.hugepages is None:
        return None
    unknown = sorted(profile.hugepages.keys() - _CRI_PAGES.keys())
    if unknown:
        raise ValueError(f"resources.hugepages: {printable(unknown[0], 40)} is no size of pages")
    sizes = {_CRI_PAGES[size]: size_bytes(amount) for size, amount in profile.hugepages.items()}
    return tuple(sorted(sizes.items()))


def _bounds(given: ResourceAmounts, field: str) -> Bounds:
    try:
        return Bounds(
            cpu_millis=None if given.cpu is None else milli_cpu(given.cpu),
            memory_bytes=None if given.memory is None else size_bytes(given.memory),
        )
    except ValueError as error:
        raise ValueError(f"{field}: {error}") from error


def _size(given: str | None, field: str) -> int | None:
    try:
        size = None if given is None else size_bytes(given)
    except ValueError as error:
        raise ValueError(f"{field}: {error}") from error
    if size == 0:  # a tmpfs of size 0 has no bound
        raise ValueError(f"{field}: must be more than 0")
    return size


def _narrower(one: Bounds, other: Bounds) -> Bounds:
    return Bounds(
        cpu_millis=_least(one.cpu_millis, other.cpu_millis),
        memory_bytes=_least(one.memory_bytes, other.memory_bytes),
    )


def _least(one: int | None, other: int | None) -> int | None:
    return min((each for each in (one, other) if each is not None), default=None)


def _normal(path: str, field: str) -> str:
    if ".." in path.split("/"):
        raise ValueError(f"{field}: {printable(path)} must not hold '..'")
    return "/" + normpath(path).lstrip("/")
