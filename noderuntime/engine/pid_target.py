"""The PID namespace that a container joins: of its Pod, or of another container (kubectl debug)."""

from __future__ import annotations

from typing import TYPE_CHECKING

from noderuntime.engine.state import ContainerState
from noderuntime.errors import FailedPreconditionError, InvalidArgumentError
from noderuntime.policy.model import NamespaceMode

if TYPE_CHECKING:
    from noderuntime.engine.node import Node
    from noderuntime.engine.state import ContainerRecord, SandboxRecord
    from noderuntime.engine.work import ContainerWork


def pid_namespace(node: Node, sandbox: SandboxRecord, record: ContainerRecord) -> str | None:
    """Return the pin that the container joins; None where it has its own, or the node's."""
    mode = record.config.security.namespaces.pid
    if mode is NamespaceMode.POD:
        return str(node.paths.namespaces(sandbox.id) / "pid")
    if mode is NamespaceMode.TARGET:
        return str(node.paths.target_pid(record.id))
    return None


async def pin_target(work: ContainerWork) -> None:
    """Pin the target's PID namespace in the bundle: it may end, and its number be used again.

    Raises InvalidArgumentError for a container that is not of this Pod, FailedPreconditionError for
    one that does not run.
    """
    namespaces = work.record.config.security.namespaces
    if namespaces.pid is not NamespaceMode.TARGET:
        return
    node = work.node
    target = node.store.containers.find(namespaces.target_id)
    if target is None or target.sandbox_id != work.record.sandbox_id:
        raise InvalidArgumentError(
            f"namespace_options.target_id: {namespaces.target_id} is not a container of this pod"
        )
    if target.state is not ContainerState.RUNNING:
        raise FailedPreconditionError(
            f"container {target.id} does not run: there is no PID namespace of it to join"
        )
    pin = node.paths.target_pid(work.record.id)
    await node.parts.namespaces.pin_pid(target.pid, target.id, pin)
