"""The engine's face: what ``cri`` may call, a method a verb, each in a file of its own."""

from __future__ import annotations

import asyncio
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING

from noderuntime.engine import checkpoint, exits, images, network, recovery, stats, update
from noderuntime.engine import exec as exec_
from noderuntime.engine.apparmor import Profiles
from noderuntime.engine.artifacts import SeccompArtifacts
from noderuntime.engine.container_create import create_container
from noderuntime.engine.container_remove import remove_container
from noderuntime.engine.container_start import start_container
from noderuntime.engine.container_stop import stop_container
from noderuntime.engine.decisions import decision_log
from noderuntime.engine.disk import Disk
from noderuntime.engine.events import Feed, Subscription
from noderuntime.engine.filters import Filters
from noderuntime.engine.handlers import HandlerTable
from noderuntime.engine.jobs import Jobs
from noderuntime.engine.journal import Journal
from noderuntime.engine.node import Faults, Node, Parts, Paths, features_of
from noderuntime.engine.offers import Offers, Withheld
from noderuntime.engine.sandbox_remove import remove_sandbox
from noderuntime.engine.sandbox_run import run_sandbox
from noderuntime.engine.sandbox_stop import stop_sandbox
from noderuntime.engine.selinux import unknown_label
from noderuntime.engine.state import ContainerState, SandboxState
from noderuntime.engine.stats import ContainerStats, PodMetrics, SandboxStats
from noderuntime.engine.store import Store
from noderuntime.engine.verbs import steps_of
from noderuntime.errors import FailedPreconditionError

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Mapping

    from noderuntime.api.config import Config
    from noderuntime.api.revision import RevisionDefault
    from noderuntime.engine.state import ContainerId, ContainerRecord, SandboxId, SandboxRecord
    from noderuntime.host.ports import AttachStream, ExecResult, ExecStream
    from noderuntime.images.ports import Credentials, FsUsage, Image
    from noderuntime.policy.model import ContainerConfig, Resources, SandboxConfig

__all__ = [
    "ContainerStats",
    "Engine",
    "Faults",
    "HandlerInfo",
    "NodeStatus",
    "Parts",
    "SandboxStats",
    "steps_of",
]

SHUTDOWN_GRACE_S = 10.0


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
    ungoverned_pods: int = 0  # that run under a handler without a profile
    network: str = ""  # what attaches Pods now, for people
    revision_handlers: tuple[str, ...] = ()  # of ``handlers``, those that the revision declares
    # System calls that a handler's profile names and this node's libseccomp does not know.
    unknown_syscalls: Mapping[str, tuple[str, ...]] = field(
        default_factory=dict[str, tuple[str, ...]]
    )
    libseccomp: str = ""  # its version, "" where there is none
    default: RevisionDefault | None = None  # which handler governs the Pods that name none
    withheld: tuple[Withheld, ...] = ()  # handlers of the revision that this node cannot offer


class Engine:
    """One node. All state goes through here; nothing else writes to ``state_dir``."""

    def __init__(
        self, parts: Parts, *, faults: Faults | None = None, boot_id: str | None = None
    ) -> None:
        """Put the node together; nothing is read before ``recover``. ``boot_id`` is for tests."""
        config, disk = parts.config, Disk()
        profiles = Profiles(parts.apparmor, disk)
        artifacts = SeccompArtifacts(parts.images)
        offers = Offers(
            partial(features_of, parts), profiles, artifacts, partial(unknown_label, parts)
        )
        handlers = HandlerTable(config, offers)
        self._boot_id = boot_id
        self._node = Node(
            parts=parts,
            paths=Paths(config.run_dir),
            disk=disk,
            store=Store(config.state_dir, disk, config.run_dir),
            journal=Journal(config.state_dir / "intents", disk),
            jobs=Jobs(),
            handlers=handlers,
            filters=Filters(parts.seccomp, config.recording.socket),
            artifacts=artifacts,
            decisions=decision_log(config),
            apparmor=profiles,
            faults=faults,
        )
        self._events = Feed(self._node.store, self._node.now_ns)

    async def recover(self) -> None:
        """Finish or undo what was cut off, find what ended meanwhile; before the socket answers."""
        boot_id = self._boot_id or recovery.BOOT_ID.read_text().strip()
        await recovery.recover(self._node, boot_id)

    async def run(self) -> None:
        """Watch for exits and for a new revision, until cancelled."""
        try:
            async with asyncio.TaskGroup() as group:
                group.create_task(exits.watch_exits(self._node))
                group.create_task(exits.watch_running(self._node))
                group.create_task(recovery.watch_unfinished(self._node))
                group.create_task(network.watch(self._node))
                group.create_task(self._node.handlers.watch(self._tidy))
                group.create_task(self._node.artifacts.watch(self._node.handlers))
        finally:
            await self.close()

    async def look_at_handlers(self) -> None:
        """Look whether what is declared, or what the node can do, has changed; ``run`` does it too."""
        await self._node.handlers.look()
        await self._tidy()

    async def _tidy(self) -> None:
        """Remove the AppArmor profiles that nothing names any more."""
        records = self._node.store.containers.all()
        ended = ContainerState.EXITED
        used = {record.apparmor for record in records if record.state is not ended}
        await self._node.apparmor.sweep(used | self._node.handlers.wanted_profiles())

    def subscribe(self) -> Subscription:
        """GetContainerEvents: what happens from now on; to be closed. Raises ResourceExhaustedError."""
        return self._events.subscribe()

    def end_events(self) -> None:
        """End every subscription: nothing else ends these calls, and a server waits for its calls."""
        self._events.close()

    async def close(self, *, grace_s: float = SHUTDOWN_GRACE_S) -> None:
        """Let the jobs under way end, for a while; then cancel them, which undoes them."""
        await self._node.jobs.close(grace_s)
        self._node.parts.monitor.close()
        self._node.disk.close()
        self._node.decisions.close()

    async def run_sandbox(self, config: SandboxConfig, handler: str) -> SandboxId:
        """RunPodSandbox. The same Pod and attempt again returns (or joins) the one there is."""
        return await run_sandbox(self._node, config, handler)

    async def stop_sandbox(self, sandbox_id: str) -> None:
        """StopPodSandbox: its containers end, its network goes. Idempotent."""
        await stop_sandbox(self._node, sandbox_id)

    async def remove_sandbox(self, sandbox_id: str) -> None:
        """RemovePodSandbox: it and its containers are gone. Idempotent, unknown is success."""
        await remove_sandbox(self._node, sandbox_id)

    def sandbox(self, sandbox_id: str) -> SandboxRecord:
        """Find by ID or unique prefix; raises NotFoundError."""
        return self._node.store.sandboxes.require(sandbox_id)

    def sandboxes(self) -> tuple[SandboxRecord, ...]:
        """Return all."""
        return self._node.store.sandboxes.all()

    async def create_container(self, sandbox_id: str, config: ContainerConfig) -> ContainerId:
        """CreateContainer."""
        return await create_container(self._node, sandbox_id, config)

    async def start_container(self, container_id: str) -> None:
        """StartContainer."""
        await start_container(self._node, container_id)

    async def stop_container(self, container_id: str, timeout_s: float) -> None:
        """StopContainer: the stop signal, then SIGKILL after ``timeout_s``. Idempotent."""
        await stop_container(self._node, container_id, timeout_s)

    async def remove_container(self, container_id: str) -> None:
        """RemoveContainer, also a running one. Idempotent, unknown is success."""
        await remove_container(self._node, container_id)

    def container(self, container_id: str) -> ContainerRecord:
        """Find by ID or unique prefix; raises NotFoundError."""
        return self._node.store.containers.require(container_id)

    def containers(self) -> tuple[ContainerRecord, ...]:
        """Return all."""
        return self._node.store.containers.all()

    async def update_resources(self, container_id: str, resources: Resources) -> None:
        """UpdateContainerResources, through the policy's gate."""
        await update.update_resources(self._node, container_id, resources)

    async def update_sandbox_resources(
        self, sandbox_id: str, overhead: Resources, resources: Resources
    ) -> None:
        """UpdatePodSandboxResources: the kubelet has set the Pod's cgroup already; kept as told."""
        await update.update_sandbox_resources(self._node, sandbox_id, overhead, resources)

    async def checkpoint_container(self, container_id: str) -> None:
        """CheckpointContainer: refused, by what is missing."""
        await checkpoint.checkpoint_container(self._node, container_id)

    def config(self) -> Config:
        """Return the node's own settings."""
        return self._node.parts.config

    async def reopen_log(self, container_id: str) -> None:
        """ReopenContainerLog."""
        await exec_.reopen_log(self._node, container_id)

    async def exec_sync(
        self, container_id: str, argv: tuple[str, ...], timeout_s: float
    ) -> ExecResult:
        """ExecSync."""
        return await exec_.exec_sync(self._node, container_id, argv, timeout_s)

    async def exec(
        self, container_id: str, argv: tuple[str, ...], *, tty: bool, stdin: bool
    ) -> ExecStream:
        """Start a process beside the container's own, under the same profile."""
        return await exec_.open_exec(self._node, container_id, argv, tty=tty, stdin=stdin)

    async def attach(self, container_id: str) -> AttachStream:
        """Connect to the container's own process."""
        return await exec_.attach(self._node, container_id)

    async def admit_port_forward(self, sandbox_id: str) -> SandboxRecord:
        """PortForward: whether the sandbox is there, and its profile allows the session."""
        return await exec_.admit_port_forward(self._node, sandbox_id)

    async def port_forward(
        self, sandbox_id: str, port: int
    ) -> tuple[asyncio.StreamReader, asyncio.StreamWriter]:
        """Connect to a port on localhost inside the sandbox."""
        return await exec_.port_forward(self._node, sandbox_id, port)

    async def container_stats(self, container_id: str) -> ContainerStats:
        """Read one container."""
        return await stats.container_stats(self._node, container_id)

    async def sandbox_stats(self, sandbox_id: str) -> SandboxStats:
        """Read one Pod."""
        return await stats.sandbox_stats(self._node, sandbox_id)

    def pod_metrics(self) -> AsyncIterator[PodMetrics]:
        """Read all ready Pods with everything that is known of their use, one after another."""
        return stats.pod_metrics(self._node)

    async def pull_image(
        self,
        reference: str,
        credentials: Credentials | None,
        *,
        handler: str,
        pod: SandboxConfig | None = None,
    ) -> Image:
        """PullImage; ``handler``'s allowed registries apply ("" is the node's own default)."""
        return await images.pull_image(self._node, reference, credentials, handler, pod)

    def find_image(self, reference: str) -> Image | None:
        """ImageStatus."""
        return self._node.parts.images.find(reference)

    def list_images(self) -> tuple[Image, ...]:
        """ListImages."""
        return self._node.parts.images.list()

    async def remove_image(self, reference: str) -> None:
        """RemoveImage; idempotent."""
        await images.remove_image(self._node, reference)

    async def image_fs(self) -> FsUsage:
        """ImageFsInfo."""
        return await self._node.parts.images.fs_usage()

    def status(self) -> NodeStatus:
        """Status."""
        handlers = self._node.handlers
        handlers.refresh()
        features = self._node.parts.mounts.features()
        return NodeStatus(
            handlers=tuple(
                HandlerInfo(
                    name=name,
                    recursive_readonly=features.recursive_readonly,
                    user_namespaces=features.idmapped,
                )
                for name in handlers.names()
            ),
            network_not_ready=self._node.parts.network.not_ready_because(),
            network=self._node.parts.network.served_by(),
            revision=handlers.revision,
            revision_error=handlers.error,
            stale_containers=self._stale(),
            ungoverned_pods=self._ungoverned(),
            revision_handlers=handlers.declared(),
            unknown_syscalls=self._unknown_syscalls(),
            libseccomp=self._node.filters.version,
            withheld=handlers.withheld(),
            default=handlers.default,
        )

    def _unknown_syscalls(self) -> Mapping[str, tuple[str, ...]]:
        """Return what no filter can name, of the handlers of which that is true."""
        found = {
            name: self._node.filters.unknown(
                self._node.artifacts.names(rules.seccomp.artifact) or rules.seccomp.names
            )
            for name, rules in self._node.handlers.rules().items()
        }
        return {name: unknown for name, unknown in found.items() if unknown}

    def _ungoverned(self) -> int:
        """Count the Pods that run under none of a revision: the node's own handlers have no profile."""
        found = self._node.store.sandboxes.all()
        return sum(each.state is SandboxState.READY and not each.revision for each in found)

    def _stale(self) -> tuple[str, ...]:
        """Return the running containers whose profile is not of the served revision."""
        store, revision = self._node.store, self._node.handlers.revision
        stale: list[str] = []
        for record in store.containers.all():
            sandbox = store.sandboxes.get(record.sandbox_id)
            running = record.state is ContainerState.RUNNING
            if sandbox is not None and running and record.revision not in ("", revision):
                pod = sandbox.config.pod
                stale.append(f"{pod.namespace}/{pod.name}/{record.config.name}")
        return tuple(sorted(stale))

    def log_file(self, record: ContainerRecord) -> Path:
        """Return the container's log."""
        if not record.log_path:
            raise FailedPreconditionError(f"container {record.id} was made without a log path")
        return Path(record.log_path)
