"""UpdateContainerResources and UpdatePodSandboxResources: limits that change without a restart.

What 0 and "" mean is CRI's: leave it as it is. A container that was created and not started yet
gets the limits with its start. ``oom_score_adj`` is set on the processes themselves, as it is of
no cgroup; one that has chosen another value for itself keeps it.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import replace
from typing import cast

from noderuntime.engine import admission, limits
from noderuntime.engine.decisions import asking
from noderuntime.engine.node import Node
from noderuntime.engine.state import ContainerRecord, ContainerState
from noderuntime.errors import FailedPreconditionError, StateError
from noderuntime.policy import spec
from noderuntime.policy.model import Resources


async def update_resources(node: Node, container_id: str, asked: Resources) -> None:
    """Set new limits, through the policy's gate."""
    record = _require_updatable(node, container_id)
    sandbox = node.store.sandboxes.require(record.sandbox_id)
    pod = sandbox.config
    served = await node.handlers.settled(sandbox.handler, pod.pod.namespace)
    handler = admission.for_pod(served, pod, node.now_ns())
    who = asking(node, "UpdateContainerResources", pod.pod, record.config.name)
    granted = admission.admit_resources(who, handler, asked)
    granted = limits.honourable(node.parts.cgroups, granted)
    async with node.locks.of(record.id):
        record = _require_updatable(node, record.id)
        old = record.config.resources
        merged = _merged(old, granted)
        if granted.cpu_period_us:  # the quota there is counts for more in a shorter period
            admission.admit_resources(who, handler, merged, again=True)
        if record.state is ContainerState.RUNNING:
            await _set(node, record, granted)
        else:
            await _rewrite(node, record, merged)
        config = replace(record.config, resources=merged)
        await node.store.containers.put(replace(record, config=config))


async def update_sandbox_resources(
    node: Node, sandbox_id: str, overhead: Resources, resources: Resources
) -> None:
    """Keep what the kubelet says of the Pod; its cgroup is the kubelet's own, and set already."""
    record = node.store.sandboxes.require(sandbox_id)
    async with node.locks.of(record.id):
        record = node.store.sandboxes.require(record.id)
        config = replace(record.config, overhead=overhead, resources=resources)
        await node.store.sandboxes.put(replace(record, config=config))


def _require_updatable(node: Node, container_id: str) -> ContainerRecord:
    record = node.store.containers.require(container_id)
    if record.state not in {ContainerState.CREATED, ContainerState.RUNNING}:
        raise FailedPreconditionError(
            f"container {record.id} is {record.state}; the limits of one that runs can be changed"
        )
    return record


async def _set(node: Node, record: ContainerRecord, wanted: Resources) -> None:
    told, lifts_quota = limits.in_place(node.parts.cgroups, record.config.resources, wanted)
    await node.runtime(record.oci_runtime).update(record.id, told)
    if lifts_quota:
        await node.parts.cgroups.lift_cpu_quota(record.cgroup_path)
    before, now = record.config.resources.oom_score_adj, wanted.oom_score_adj
    if now and now != before:
        await node.parts.cgroups.set_oom_score(record.cgroup_path, before, now)


async def _rewrite(node: Node, record: ContainerRecord, merged: Resources) -> None:
    """Put the limits into the configuration that the container will be started by."""
    path = node.paths.spec(record.id)
    try:
        document = cast("Mapping[str, object]", json.loads(await node.disk.read(path)))
        is_v2 = node.parts.cgroups.is_unified()
        document = spec.with_resources(document, merged, cgroup_v2=is_v2)
    except (ValueError, KeyError, TypeError) as error:
        raise StateError(f"{path} is not an OCI configuration any more") from error
    await node.disk.write(path, json.dumps(document).encode())


def _merged(old: Resources, new: Resources) -> Resources:
    """Return what holds after an update."""
    return Resources(
        cpu_period_us=new.cpu_period_us or old.cpu_period_us,
        cpu_quota_us=new.cpu_quota_us or old.cpu_quota_us,
        cpu_shares=new.cpu_shares or old.cpu_shares,
        memory_limit_bytes=new.memory_limit_bytes or old.memory_limit_bytes,
        memory_swap_limit_bytes=new.memory_swap_limit_bytes or old.memory_swap_limit_bytes,
        oom_score_adj=new.oom_score_adj or old.oom_score_adj,
        cpuset_cpus=new.cpuset_cpus or old.cpuset_cpus,
        cpuset_mems=new.cpuset_mems or old.cpuset_mems,
        hugepage_limits_bytes={**old.hugepage_limits_bytes, **new.hugepage_limits_bytes},
        unified={**old.unified, **new.unified},
    )
