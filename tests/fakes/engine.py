"""An engine on the fakes of a ``World``, and what the kubelet asks it for."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import TypeVar, overload

from noderuntime.api.config import Config, HandlerConfig
from noderuntime.engine.engine import Engine
from noderuntime.engine.node import Faults, Parts
from noderuntime.host.seccomp import OnlyTable
from noderuntime.policy.model import (
    ContainerConfig,
    ContainerSecurity,
    ImageConfig,
    PodIdentity,
    SandboxConfig,
)
from noderuntime.policy.seccomp import IN_LIBSECCOMP
from tests.fakes.host import FakeCgroups, FakeInits, FakeMounts, FakeNamespaces
from tests.fakes.network import FakeNetwork
from tests.fakes.processes import FakeExec, FakeMonitor, FakePortForward, FakeRuntime
from tests.fakes.world import World

__all__ = [
    "IMAGE",
    "IMAGE_ID",
    "PROC_MOUNT_DEFAULT",
    "World",
    "config_of",
    "container_config",
    "new_engine",
    "new_world",
    "sandbox_config",
]

IMAGE = "registry.example.com/app:1"
IMAGE_ID = "sha256:" + "ab" * 32


W = TypeVar("W", bound=World)


@overload
def new_world(root: Path) -> World: ...
@overload
def new_world(root: Path, kind: type[W]) -> W: ...
def new_world(root: Path, kind: type[World] = World) -> World:
    """Return a node with one image and nothing else."""
    world = kind(root=root)
    world.images.add(
        IMAGE,
        ImageConfig(entrypoint=("/app",), stop_signal="SIGINT"),
        image_id=IMAGE_ID,
        is_held=True,
    )
    return world


def config_of(world: World, **changes: object) -> Config:
    """Return a configuration whose paths are all below the world's root."""
    settings: Mapping[str, object] = {
        "socket": world.root / "run" / "noderuntime.sock",
        "state_dir": world.root / "state",
        "run_dir": world.root / "run",
        "revision": world.root / "etc" / "current",
        "handlers": {"crun": HandlerConfig()},
        **changes,
    }
    return Config.model_validate(settings)


def new_engine(
    world: World, *, faults: Faults | None = None, boot_id: str = "boot-1", **settings: object
) -> Engine:
    """Return an engine on the world; a second one on the same world is the next process."""
    parts = Parts(
        config=config_of(world, **settings),
        namespaces=FakeNamespaces(world),
        inits=FakeInits(world),
        mounts=FakeMounts(world),
        cgroups=FakeCgroups(world),
        runtimes=lambda binary: FakeRuntime(world, binary),
        monitor=FakeMonitor(world),
        exec=FakeExec(world),
        port_forward=FakePortForward(world),
        network=FakeNetwork(world),
        images=world.images,
        seccomp=OnlyTable(IN_LIBSECCOMP),
        apparmor=world.apparmor,
        selinux=world.selinux,
    )
    return Engine(parts, faults=faults, boot_id=boot_id)


# What the kubelet sends for procMount: Default; without, it is Unmasked.
PROC_MOUNT_DEFAULT = ContainerSecurity(
    masked_paths=("/proc/kcore",), readonly_paths=("/proc/sys",), no_new_privs=True
)


def sandbox_config(attempt: int = 0, **changes: object) -> SandboxConfig:
    """Return what the kubelet asks for a plain Pod."""
    pod = PodIdentity(name="web", namespace="shop", uid="u-1", attempt=attempt)
    plain = SandboxConfig(pod=pod, hostname="web", log_directory="/nowhere/logs")
    return replace(plain, **changes)  # type: ignore[arg-type]  # checked by the constructor


def container_config(attempt: int = 0, **changes: object) -> ContainerConfig:
    """Return what the kubelet asks for a plain container."""
    plain = ContainerConfig(name="app", image=IMAGE, attempt=attempt, security=PROC_MOUNT_DEFAULT)
    return replace(plain, **changes)  # type: ignore[arg-type]  # checked by the constructor
