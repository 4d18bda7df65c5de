"""The engine's face: what ``cri`` may call, a method a verb, each in a file of its own beside this one."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import asyncio

    from noderuntime.engine.state import ContainerId, ContainerRecord, SandboxId, SandboxRecord
    from noderuntime.host.ports import (
        AttachStream,
        CgroupStats,
        ExecResult,
        ExecStream,
        NetworkUsage,
    )
    from noderuntime.images.ports import Credentials, FsUsage, Image
    from noderuntime.policy.model import ContainerConfig, Resources, SandboxConfig


@dataclass(frozen=True, slots=True, kw_only=True)
class ContainerStats:
    """One reading of a container."""

    cgroup: CgroupStats
    writable_layer: FsUsage


@dataclass(frozen=True, slots=True, kw_only=True)
class SandboxStats:
    """One reading of a Pod; ``network`` is empty with the host's network."""

    cgroup: CgroupStats
    network: tuple[NetworkUsage, ...]


@dataclass(frozen=True, slots=True, kw_only=True)
class HandlerInfo:
    """A handler that this node offers now. The empty name is the node's default."""

    name: str
    recursive_readonly: bool
    user_namespaces: bool


@dataclass(frozen=True, slots=True, kw_only=True)
class NodeStatus:
    """What Status answers, and what the agent reads from its verbose part."""

    handlers: tuple[HandlerInfo, ...]
    network_not_ready: str  # a sentence, "" when ready
    revision: str  # the digest that is served, "" where there is none
    revision_error: str  # why the declared revision is not served, "" when it is
    stale_containers: tuple[str, ...]  # "namespace/pod/container" that run under an older revision


class Engine:
    """One node. All state goes through here; nothing else writes to ``state_dir``."""

    async def recover(self) -> None:
        """Finish or undo what was cut off, find what ended meanwhile; before the socket answers."""
        raise NotImplementedError

    async def run(self) -> None:
        """Watch for exits and for a new revision, until cancelled."""
        raise NotImplementedError

    async def run_sandbox(self, config: SandboxConfig, handler: str) -> SandboxId:
        """RunPodSandbox. The same Pod and attempt again returns (or joins) the one there is."""
        raise NotImplementedError

    async def stop_sandbox(self, sandbox_id: str) -> None:
        """StopPodSandbox: its containers end, its network goes. Idempotent."""
        raise NotImplementedError

    async def remove_sandbox(self, sandbox_id: str) -> None:
        """RemovePodSandbox: it and its containers are gone. Idempotent, unknown is success."""
        raise NotImplementedError

    def sandbox(self, sandbox_id: str) -> SandboxRecord:
        """Find by ID or unique prefix; raises NotFoundError."""
        raise NotImplementedError

    def sandboxes(self) -> tuple[SandboxRecord, ...]:
        """Return all."""
        raise NotImplementedError

    async def create_container(self, sandbox_id: str, config: ContainerConfig) -> ContainerId:
        """CreateContainer."""
        raise NotImplementedError

    async def start_container(self, container_id: str) -> None:
        """StartContainer."""
        raise NotImplementedError

    async def stop_container(self, container_id: str, timeout_s: float) -> None:
        """StopContainer: the stop signal, then SIGKILL after ``timeout_s``. Idempotent."""
        raise NotImplementedError

    async def remove_container(self, container_id: str) -> None:
        """RemoveContainer, also a running one. Idempotent, unknown is success."""
        raise NotImplementedError

    def container(self, container_id: str) -> ContainerRecord:
        """Find by ID or unique prefix; raises NotFoundError."""
        raise NotImplementedError

    def containers(self) -> tuple[ContainerRecord, ...]:
        """Return all."""
        raise NotImplementedError

    async def update_resources(self, container_id: str, resources: Resources) -> None:
        """UpdateContainerResources, through the policy's gate."""
        raise NotImplementedError

    async def reopen_log(self, container_id: str) -> None:
        """ReopenContainerLog."""
        raise NotImplementedError

    async def exec_sync(
        self, container_id: str, argv: tuple[str, ...], timeout_s: float
    ) -> ExecResult:
        """ExecSync."""
        raise NotImplementedError

    async def exec(
        self, container_id: str, argv: tuple[str, ...], *, tty: bool, stdin: bool
    ) -> ExecStream:
        """Start a process beside the container's own, under the same profile."""
        raise NotImplementedError

    async def attach(self, container_id: str) -> AttachStream:
        """Connect to the container's own process."""
        raise NotImplementedError

    async def port_forward(
        self, sandbox_id: str, port: int
    ) -> tuple[asyncio.StreamReader, asyncio.StreamWriter]:
        """Connect to a port on localhost inside the sandbox."""
        raise NotImplementedError

    async def container_stats(self, container_id: str) -> ContainerStats:
        """Read one container."""
        raise NotImplementedError

    async def sandbox_stats(self, sandbox_id: str) -> SandboxStats:
        """Read one Pod."""
        raise NotImplementedError

    async def pull_image(
        self, reference: str, credentials: Credentials | None, *, handler: str
    ) -> Image:
        """PullImage; ``handler``'s allowed registries apply ("" is the node's own default)."""
        raise NotImplementedError

    def find_image(self, reference: str) -> Image | None:
        """ImageStatus."""
        raise NotImplementedError

    def list_images(self) -> tuple[Image, ...]:
        """ListImages."""
        raise NotImplementedError

    async def remove_image(self, reference: str) -> None:
        """RemoveImage; idempotent."""
        raise NotImplementedError

    async def image_fs(self) -> FsUsage:
        """ImageFsInfo."""
        raise NotImplementedError

    def status(self) -> NodeStatus:
        """Status."""
        raise NotImplementedError

    def log_file(self, record: ContainerRecord) -> Path:
        """Return the container's log."""
        raise NotImplementedError
