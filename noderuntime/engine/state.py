"""The picture of a node: one record for each sandbox and container, as they are on disk.

Records are replaced, never changed in place; ``store`` is the only place that holds them.
"""

from __future__ import annotations

from dataclasses import dataclass
from enum import StrEnum
from typing import NewType

from noderuntime.policy.model import ContainerConfig, SandboxConfig

SandboxId = NewType("SandboxId", str)
ContainerId = NewType("ContainerId", str)


class SandboxState(StrEnum):
    """PodSandboxState of CRI."""

    READY = "SANDBOX_READY"
    NOT_READY = "SANDBOX_NOTREADY"


class ContainerState(StrEnum):
    """ContainerState of CRI."""

    CREATED = "CONTAINER_CREATED"
    RUNNING = "CONTAINER_RUNNING"
    EXITED = "CONTAINER_EXITED"
    UNKNOWN = "CONTAINER_UNKNOWN"


@dataclass(frozen=True, slots=True, kw_only=True)
class SandboxRecord:
    """A sandbox. Times are nanoseconds since the epoch."""

    id: SandboxId
    config: SandboxConfig
    handler: str
    revision: str  # digest of the revision it was admitted under, "" for the node's own handlers
    oci_runtime: str  # the program, kept so that a later revision does not change a running sandbox
    state: SandboxState
    created_at_ns: int
    cni_conf_dir: str = ""  # the handler's own network, "" for the node's
    addresses: tuple[str, ...] = ()
    selinux_level: str = ""  # of the Pod's processes and files; "" without SELinux
    node_runtime: str = ""  # what governs it, as it was admitted: the NodeRuntime's name, and
    profile: str = ""  # the SecurityProfile's; "" where nothing does
    released: bool = False  # network detached and namespaces gone: a stop has nothing left to do


@dataclass(frozen=True, slots=True, kw_only=True)
class ContainerRecord:
    """A container. Times are nanoseconds since the epoch, 0 where it has not happened."""

    id: ContainerId
    sandbox_id: SandboxId
    config: ContainerConfig
    image_id: str
    image_reference: str
    revision: str
    state: ContainerState
    created_at_ns: int
    log_path: str  # absolute, "" where none was asked for
    cgroup_path: str  # linux.cgroupsPath
    started_at_ns: int = 0
    finished_at_ns: int = 0
    pid: int = 0
    exit_code: int = 0
    reason: str = ""  # Completed, Error, OOMKilled, StartError
    message: str = ""
    uid: int = 0
    gid: int = 0
    additional_gids: tuple[int, ...] = ()
    oci_runtime: str = ""  # of its sandbox, so that a cleanup does not need the sandbox's record
    apparmor: str = ""  # the profile that its processes run under
    stop_signal: str = ""  # container's, else image's, as named there; kept as the image may go
    node_runtime: str = ""  # as in SandboxRecord, of the revision that this container is of
    profile: str = ""
    monitor_lost: bool = False  # it was killed: the container runs on, its log does not
