"""CPU, memory and huge pages of a container as the kubelet puts them into a request.

Source: kubelet ``pkg/kubelet/cm/helpers_linux.go``, ``kuberuntime_container_linux.go``,
``pkg/kubelet/qos/policy.go``.
"""

from __future__ import annotations

from typing import Final

from noderuntime.api.quantity import milli_cpu, size_bytes
from noderuntime.cli.manifest.model import Container, PodSpec, Resources
from noderuntime.cri.runtime_v1 import api_pb2 as pb
from noderuntime.errors import ConfigError

_PERIOD_US: Final = 100_000
_LEAST_QUOTA_US: Final = 1_000
_SHARES: Final = (2, 262_144)  # least, most
_HUGEPAGES: Final = "hugepages-"
_OOM_SCORES: Final = {"Guaranteed": -997, "BestEffort": 1000, "Burstable": 999}


def resources(asked: Resources, quality: str, where: str) -> pb.LinuxContainerResources:
    """Return the limits. Raises ConfigError for what is no quantity.

    How a Burstable container's ``oom_score_adj`` comes about only the node's memory tells; it is the
    highest here.
    """
    limits, requests = asked.limits, {**asked.limits, **asked.requests}
    cpu = _amount(limits, "cpu", f"{where}.limits")
    asks = _amount(requests, "cpu", f"{where}.requests")
    memory = _amount(limits, "memory", f"{where}.limits")
    _amount(requests, "memory", f"{where}.requests")
    result = pb.LinuxContainerResources(
        cpu_period=_PERIOD_US,
        cpu_quota=max(cpu * _PERIOD_US // 1000, _LEAST_QUOTA_US) if cpu else 0,
        cpu_shares=min(max(asks * 1024 // 1000, _SHARES[0]), _SHARES[1]),
        memory_limit_in_bytes=memory,
        memory_swap_limit_in_bytes=memory,
        oom_score_adj=_OOM_SCORES[quality],
    )
    for name in sorted(limits):
        if name.startswith(_HUGEPAGES):
            size = name.removeprefix(_HUGEPAGES).removesuffix("i") + "B"
            amount = _amount(limits, name, f"{where}.limits")
            result.hugepage_limits.add(page_size=size, limit=amount)
    return result


def quality(spec: PodSpec) -> str:
    """Return the Pod's quality of service, of what its containers ask for."""
    asked = [each.resources for each in (*spec.init_containers, *spec.containers)]
    names = ("cpu", "memory")
    if not any(name in {**each.limits, **each.requests} for each in asked for name in names):
        return "BestEffort"
    same = all(
        name in each.limits and each.requests.get(name, each.limits[name]) == each.limits[name]
        for each in asked
        for name in names
    )
    return "Guaranteed" if same else "Burstable"


def extended(container: Container) -> list[str]:
    """Return what the container asks for that only a plugin of the node knows: devices, claims."""
    asked = container.resources
    names = sorted(name for name in {**asked.limits, **asked.requests} if "/" in name)
    return names + [f"the claim {each.get('name', '')}" for each in asked.claims]


def _amount(amounts: dict[str, str], name: str, where: str) -> int:
    """Return thousandths of a core for cpu, else bytes; 0 where it says nothing."""
    if name not in amounts:
        return 0
    try:
        return milli_cpu(amounts[name]) if name == "cpu" else size_bytes(amounts[name])
    except ValueError as error:
        raise ConfigError(f"{where}.{name}: {error}") from error
