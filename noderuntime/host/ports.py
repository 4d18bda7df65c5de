"""What the engine asks of the kernel, the OCI runtime and the monitor: one Protocol each.

Those of streams are in ``stream_ports``. The real ones are beside this file, the recording fakes in
``tests/fakes``; ``tests/contract`` runs the same suite on both. Every ``remove``, ``delete``,
``unmount`` is idempotent: it succeeds where there is nothing, so that an undo may be tried again after
a crash. All raise ``HostError``.
"""

from __future__ import annotations

from collections.abc import AsyncIterator, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from enum import StrEnum
from pathlib import Path
from typing import Protocol

from noderuntime.host.pids import ProcessIdentity
from noderuntime.host.readings import CgroupMetrics
from noderuntime.host.stream_ports import AttachStream as AttachStream
from noderuntime.host.stream_ports import Exec as Exec
from noderuntime.host.stream_ports import ExecRequest as ExecRequest
from noderuntime.host.stream_ports import ExecResult as ExecResult
from noderuntime.host.stream_ports import ExecStream as ExecStream
from noderuntime.host.stream_ports import PortForward as PortForward
from noderuntime.policy.model import Resources


@dataclass(frozen=True, slots=True, kw_only=True)
class NamespaceRequest:
    """Which namespaces a sandbox gets of its own, and what is set inside them.

    With ``init`` they are that process' own: nothing is made, all are entered and pinned. Only then
    there can be a PID namespace, which lives no longer than its first process, and a user namespace,
    which then owns the others.
    """

    network: bool
    ipc: bool
    uts: bool
    pid: bool = False
    user: bool = False
    init: ProcessIdentity | None = None
    hostname: str = ""
    sysctls: Mapping[str, str] = field(default_factory=dict[str, str])


class Namespaces(Protocol):
    """Namespaces, bind-mounted on ``DIRECTORY/{net,ipc,uts,pid,user}``. namespaces(7)."""

    async def prepare(self, root: Path) -> None:
        """Make ``root`` a private mount of its own (once), so that pins do not propagate."""
        ...

    async def create(self, directory: Path, request: NamespaceRequest) -> None:
        """Unshare, bring lo up, set hostname and sysctls, pin each as a file in ``directory``."""
        ...

    async def remove(self, directory: Path) -> None:
        """Unpin and remove whatever of net, ipc, uts, pid and user is in ``directory``."""

    async def pin_pid(self, pid: int, member_of: str, target: Path) -> None:
        """Pin the PID namespace of a running process on the file ``target``.

        Raises FailedPreconditionError where the process is gone, or is not of the container
        ``member_of``, whose ID is in the name of its cgroup. Unpinned by ``Mounts.unmount``.
        """
        ...


@dataclass(frozen=True, slots=True, kw_only=True)
class InitRequest:
    """The first process of a sandbox: an OCI container named as the sandbox, without a monitor.

    ``directory`` is its bundle, made here: ``config``, and a root with nothing but ``/init``.
    """

    sandbox_id: str
    directory: Path
    config: Mapping[str, object]


class Inits(Protocol):
    """First processes of the namespaces that need one; each outlives the runtime."""

    async def start(self, runtime: OciRuntime, request: InitRequest) -> ProcessIdentity:
        """Start it; whatever was there is replaced. On error ``remove`` takes away what is left."""
        ...

    async def find(self, directory: Path) -> ProcessIdentity | None:
        """Return the process; None when there is none, or it has ended."""
        ...

    async def remove(self, runtime: OciRuntime, sandbox_id: str, directory: Path) -> None:
        """Kill it, forget it, remove its bundle. Its cgroup is left to ``Cgroups.remove``."""


@dataclass(frozen=True, slots=True, kw_only=True)
class MountFeatures:
    """What this kernel can do with mounts."""

    recursive_readonly: bool  # OCI's option ``rro``, which crun and runc both know
    idmapped: bool  # also below an overlay: what user namespaces need


@dataclass(frozen=True, slots=True, kw_only=True)
class Owners:
    """A user namespace by its pin, and which IDs of the node its root has."""

    userns: Path
    uid: int
    gid: int


class Mounts(Protocol):
    """Mounts that outlive a call. mount(2), umount2(2)."""

    def features(self) -> MountFeatures:
        """Return what the kernel can do."""
        ...

    async def tmpfs(self, target: Path, *, size_bytes: int, mode: int) -> None:
        """Mount a tmpfs (nosuid, nodev, noexec) on ``target``, which is made if missing."""
        ...

    async def overlay(
        self,
        lowers: Sequence[Path],
        upper: Path,
        work: Path,
        target: Path,
        owners: Owners | None = None,
        *,
        context: str = "",
    ) -> None:
        """Mount an overlay; ``lowers`` are topmost first, up to 127 of them.

        ``context``: the SELinux label of everything in it.

        With ``owners`` lowers and upper belong to that user namespace; upper is given to it here.
        """
        ...

    async def clone(
        self, source: Path, target: Path, userns: Path | None, *, peer: bool = False
    ) -> tuple[Path, ...]:
        """Mount ``source``, with all that is mounted below it, on ``target`` as well.

        ``target`` is made. With ``userns`` owners are mapped by it. What is mounted below ``target``
        later appears below ``source`` only with ``peer``. Returns the mount points below.
        """
        ...

    async def set_bindable(self, targets: Sequence[Path], *, bindable: bool) -> None:
        """Let mounts be copied with what they are below of, or not; what is none is passed over."""
        ...

    async def require_own(self, pid: int, declared: Iterable[str]) -> None:
        """Refuse what is mounted on /dev or below /proc of a process and is not the OCI runtime's.

        ``declared`` are paths that may be mounted upon. Raises FailedPreconditionError.
        """
        ...

    async def leave_out(self, pid: int, folders: Sequence[Path]) -> None:
        """Unmount what is below folders as the process ``pid`` sees them; what is on them stays."""
        ...

    async def unmount(self, target: Path) -> None:
        """Unmount all at and below ``target`` (lazily where busy); nothing mounted is success."""


class CgroupDriver(StrEnum):
    """CgroupDriver of CRI's RuntimeConfig."""

    CGROUPFS = "CGROUPFS"
    SYSTEMD = "SYSTEMD"


@dataclass(frozen=True, slots=True, kw_only=True)
class CgroupStats:
    """One reading of a cgroup; ``timestamp_ns`` since the epoch. Absent controllers read 0."""

    timestamp_ns: int
    cpu_usage_ns: int = 0
    memory_usage_bytes: int = 0
    memory_working_set_bytes: int = 0
    memory_rss_bytes: int = 0
    memory_page_faults: int = 0
    memory_major_page_faults: int = 0
    pids: int = 0


class Cgroups(Protocol):
    """Reading and removing cgroups, v1 hybrid and v2 alike. cgroups(7)."""

    def driver(self) -> CgroupDriver:
        """Return SYSTEMD where systemd is PID 1, else CGROUPFS."""
        ...

    def is_unified(self) -> bool:
        """Tell whether every controller is in v2."""
        ...

    def has_controller(self, name: str) -> bool:
        """Tell whether the node has a controller, in whichever hierarchy."""
        ...

    def can_limit_swap(self) -> bool:
        """Tell whether the kernel counts a cgroup's swap."""
        ...

    def has_swap(self) -> bool:
        """Tell whether the node has swap at all."""
        ...

    def oci_path(self, parent: str, container_id: str) -> str:
        """Return ``linux.cgroupsPath`` for a container below the kubelet's ``parent``."""
        ...

    async def stats(self, oci_path: str) -> CgroupStats:
        """Read the container's cgroup; raises NotFoundError when it is gone."""
        ...

    async def pod_stats(self, parent: str) -> CgroupStats:
        """Read the kubelet's Pod cgroup (its own children included)."""
        ...

    async def kill(self, oci_path: str) -> None:
        """SIGKILL every process in the container's cgroup; none is success."""
        ...

    async def metrics(self, oci_path: str) -> CgroupMetrics:
        """Read everything of the container's cgroup; raises NotFoundError when it is gone."""
        ...

    async def oom_kills(self, oci_path: str) -> int:
        """How many processes the kernel killed for want of memory; 0 when nobody knows any more."""
        ...

    async def pod_metrics(self, parent: str) -> CgroupMetrics:
        """Read everything of the kubelet's Pod cgroup; raises NotFoundError when it is gone."""
        ...

    async def lift_cpu_quota(self, oci_path: str) -> None:
        """Take the CPU quota away; OCI runtimes differ in how they are told to (crun 1.8.1 fails)."""
        ...

    async def count_oom_kills(self, oci_path: str) -> None:
        """Take note, before a container starts, of the kills that are not its own."""
        ...

    async def set_oom_score(self, oci_path: str, before: int, score: int) -> None:
        """Set oom_score_adj of each process of the container that has ``before``."""
        ...

    async def remove(self, oci_path: str) -> None:
        """Remove the container's cgroup in every hierarchy."""
        ...


class OciRuntime(Protocol):
    """crun or runc, through the command line that both share. runtime.md of the runtime-spec."""

    @property
    def binary(self) -> Path:
        """The program."""
        ...

    @property
    def program(self) -> Path:
        """What is started: the program, or a mount of it under the same name."""
        ...

    @property
    def root(self) -> Path:
        """Its ``--root``, below run_dir."""
        ...

    def global_arguments(self) -> tuple[str, ...]:
        """What stands between the program and its verb: ``--root``, ``--systemd-cgroup``."""
        ...

    async def start(self, container_id: str) -> None:
        """``start``: the created container's process runs."""

    async def kill(self, container_id: str, signal: int) -> None:
        """``kill``; a container that has no process is success."""

    async def delete(self, container_id: str) -> None:
        """``delete --force``; an unknown container is success."""

    async def forget(self, container_id: str, bundle: Path) -> None:
        """``delete`` of one whose first process was collected, which may be cheaper."""

    async def state(self, container_id: str) -> str | None:
        """Return created, running or stopped; None for an unknown container."""
        ...

    async def update(self, container_id: str, resources: Resources) -> None:
        """``update``: new limits for a running container."""


@dataclass(frozen=True, slots=True, kw_only=True)
class MonitorRequest:
    """One container handed to its monitor. ``bundle`` is its own and holds config.json."""

    container_id: str
    bundle: Path
    log_path: Path
    terminal: bool
    stdin: bool
    stdin_once: bool


@dataclass(frozen=True, slots=True, kw_only=True)
class Exit:
    """How a container ended. ``code`` is 128+N for signal N."""

    code: int
    finished_at_ns: int
    oom_killed: bool = False


class Monitor(Protocol):
    """conmon: holds a container's pipes and log, reports its end, outlives the runtime."""

    async def create(self, runtime: OciRuntime, request: MonitorRequest) -> int:
        """Start the monitor, which runs ``RUNTIME create``; return the container's PID.

        On error and cancel neither is left. An undo after a crash ends the monitor first (it may
        still be at ``create``), then deletes from the runtime, then removes the cgroup.
        """
        ...

    async def exit_of(self, container_id: str) -> Exit | None:
        """Return how the container ended, or None while it has not."""
        ...

    def exits(self) -> AsyncIterator[str]:
        """Yield the ID of each container as it ends (from now on), until cancelled."""
        ...

    async def is_alive(self, container_id: str) -> bool:
        """Tell whether this container's monitor process runs."""
        ...

    async def lost_exit_of(self, container_id: str) -> Exit | None:
        """Return how a container ended whose monitor was killed, None where nobody knows."""
        ...

    async def end_log(self, container_id: str, sentence: str) -> None:
        """Write to the log of a container whose monitor was killed why it ends."""
        ...

    async def signal(self, container_id: str, number: int) -> bool:
        """Signal the container's process itself; False where it cannot be told for sure which it is."""
        ...

    async def remove(self, container_id: str) -> None:
        """End the monitor, if there, and remove every file of its."""
        ...

    def close(self) -> None:
        """Let go of what is held of the containers that run; they run on."""
        ...

    async def reopen_log(self, container_id: str) -> None:
        """Make the monitor write to a new file at the same path."""
        ...

    async def attach(self, container_id: str) -> AttachStream:
        """Connect to the running container's streams."""
        ...
