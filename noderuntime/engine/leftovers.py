"""What is there without a record: removed at start, so that nothing is lost for ever.

It comes from records that were corrupted, and from undos that failed. Each is tried, none may keep
the runtime from starting.
"""

from __future__ import annotations

import asyncio
import json
import logging
from collections.abc import Awaitable, Callable, Iterable, Iterator
from functools import partial
from pathlib import Path

from noderuntime.engine.container_remove import REMOVE_CONTAINER
from noderuntime.engine.image_volumes import owner_of, snapshots_of
from noderuntime.engine.jobs import describe
from noderuntime.engine.node import Node
from noderuntime.engine.state import ContainerId, SandboxId
from noderuntime.engine.steps import carry_through
from noderuntime.engine.work import ContainerWork
from noderuntime.errors import NodeRuntimeError
from noderuntime.network.ports import Attachment
from noderuntime.policy.model import PodIdentity

_log = logging.getLogger(__name__)

DEADLINE_S = 60.0
NOBODY = PodIdentity(name="unknown", namespace="unknown", uid="unknown")

Action = Callable[[], Awaitable[None]]


async def remove_all(
    node: Node, lost_sandboxes: Iterable[str], lost_containers: Iterable[str]
) -> None:
    """Remove everything that belongs to no record; the arguments are IDs of corrupted records."""
    for record in node.store.containers.all():
        if node.store.sandboxes.get(record.sandbox_id) is None:
            work = ContainerWork(node=node, record=record)
            await _try_all(
                "container", record.id, (partial(carry_through, REMOVE_CONTAINER, work),)
            )
    snapshots = map(owner_of, node.parts.images.containers())
    found = {*_names(node.paths.containers), *snapshots, *lost_containers}
    for container_id in sorted(found):
        if node.store.containers.get(container_id) is None:
            await _try_all(
                "container", container_id, _of_container(node, ContainerId(container_id))
            )
    for sandbox_id in sorted({*_names(node.paths.sandboxes), *lost_sandboxes}):
        if node.store.sandboxes.get(sandbox_id) is None:
            await _try_all("sandbox", sandbox_id, _of_sandbox(node, SandboxId(sandbox_id)))


def _names(directory: Path) -> tuple[str, ...]:
    return tuple(entry.name for entry in directory.iterdir()) if directory.is_dir() else ()


def _of_container(node: Node, container_id: ContainerId) -> Iterator[Action]:
    parts, paths = node.parts, node.paths
    cgroup_path = _cgroup_path(paths.spec(container_id))
    # The monitor first: until it is gone it may still be starting what the rest takes away.
    yield lambda: parts.monitor.remove(container_id)
    for program in node.handlers.programs():
        yield partial(parts.runtimes(program).delete, container_id)
    if cgroup_path:
        yield lambda: parts.cgroups.remove(cgroup_path)
    yield lambda: parts.mounts.unmount(paths.bundle(container_id))
    for snapshot in (container_id, *snapshots_of(node, container_id)):
        yield partial(parts.images.discard, snapshot)
    yield lambda: node.disk.remove_tree(paths.bundle(container_id))


def _of_sandbox(node: Node, sandbox_id: SandboxId) -> Iterator[Action]:
    parts, paths = node.parts, node.paths
    pins, init = paths.namespaces(sandbox_id), paths.init(sandbox_id)
    cgroup_path = _cgroup_path(init / "config.json")
    attachment = Attachment(sandbox_id=sandbox_id, netns=pins / "net", pod=NOBODY)
    yield lambda: parts.network.detach(attachment)
    yield lambda: parts.namespaces.remove(pins)
    if init.is_dir():
        for program in node.handlers.programs():
            yield partial(parts.inits.remove, parts.runtimes(program), sandbox_id, init)
    if cgroup_path:
        yield lambda: parts.cgroups.remove(cgroup_path)
    yield lambda: parts.mounts.unmount(paths.shm(sandbox_id))
    yield lambda: node.disk.remove_tree(paths.sandbox(sandbox_id))


def _cgroup_path(spec: Path) -> str:
    """Read the cgroup from the bundle; "" where it cannot be had."""
    try:
        document = json.loads(spec.read_bytes())
        path = document["linux"]["cgroupsPath"]
    except (OSError, ValueError, KeyError, TypeError):
        return ""
    return path if isinstance(path, str) else ""


async def _try_all(kind: str, object_id: str, actions: Iterable[Action]) -> None:
    failures: list[str] = []
    for action in actions:
        try:
            async with asyncio.timeout(DEADLINE_S):
                await action()
        except (NodeRuntimeError, OSError) as error:  # TimeoutError is an OSError
            failures.append(describe(error))
    _log.warning(
        "something without a record was removed",
        extra={"what": kind, "id": object_id, "errors": "; ".join(failures)},
    )
