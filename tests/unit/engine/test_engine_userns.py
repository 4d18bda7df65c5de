"""User namespaces: made by a first process that goes again, given to roots and volumes."""

from __future__ import annotations

import json

import pytest

from noderuntime.engine.engine import Engine
from noderuntime.errors import FailedPreconditionError, HostError
from noderuntime.host.ports import MountFeatures
from noderuntime.policy.model import (
    ContainerSecurity,
    IdMapping,
    Mount,
    NamespaceMode,
    Namespaces,
    UserNamespace,
)
from tests.fakes.engine import World, container_config, sandbox_config
from tests.fakes.host import FakeMounts

MAPPING = IdMapping(container_id=0, host_id=100000, length=65536)
USERS = UserNamespace(uids=MAPPING, gids=MAPPING)
OWN = Namespaces(user=USERS)


async def own_sandbox(engine: Engine, namespaces: Namespaces = OWN) -> str:
    return await engine.run_sandbox(sandbox_config(namespaces=namespaces), "")


async def test_the_first_process_goes_when_the_namespaces_are_pinned(
    engine: Engine, world: World
) -> None:
    sandbox_id = await own_sandbox(engine)
    assert world.calls.index("inits.start") < world.calls.index("namespaces.create")
    assert world.processes == {}
    assert world.cgroups == set()
    pins = {pin.rpartition("/")[2] for pin in world.pins}
    assert pins == {"net", "ipc", "uts", "user"}
    await engine.remove_sandbox(sandbox_id)
    assert world.census()["pins"] == []


async def test_with_a_shared_pid_namespace_it_stays(engine: Engine, world: World) -> None:
    shared = Namespaces(user=USERS, pid=NamespaceMode.POD)
    sandbox_id = await own_sandbox(engine, shared)
    assert world.processes == {sandbox_id: "running"}
    assert len(world.pins) == 5


async def test_a_volume_is_mounted_again_in_the_bundle_and_goes_with_it(
    engine: Engine, world: World
) -> None:
    sandbox_id = await own_sandbox(engine)
    volume = world.root / "volume"
    world.mount(volume / "below")
    mounts = (Mount(container_path="/data", host_path=str(volume), idmap=USERS),)
    config = container_config(mounts=mounts, security=ContainerSecurity(namespaces=OWN))
    container_id = await engine.create_container(sandbox_id, config)
    bundle = world.root / "run" / "containers" / container_id
    again = str(bundle / "mapped" / "0")
    assert again in world.mounts
    document = json.loads((bundle / "config.json").read_text())
    [found] = [m for m in document["mounts"] if m["destination"] == "/data"]
    assert found["source"] == again
    [below] = [m for m in document["mounts"] if m["destination"] == "/data/below"]
    assert below["source"] == f"{again}/below"
    # What was asked for is what is told: the kubelet looks for its volume there.
    assert engine.container(container_id).config.mounts == mounts
    await engine.remove_container(container_id)
    assert not [m for m in world.mounts if container_id in m]


async def test_a_volume_that_cannot_be_mapped_leaves_no_container(
    engine: Engine, world: World
) -> None:
    sandbox_id = await own_sandbox(engine)
    before = world.census()
    world.failing["mounts.clone"] = HostError("can its file system be mapped?")
    mounts = (Mount(container_path="/data", host_path=str(world.root), idmap=USERS),)
    with pytest.raises(HostError, match="can its file system be mapped"):
        await engine.create_container(sandbox_id, container_config(mounts=mounts))
    assert world.census() == before


async def test_a_kernel_without_mapped_mounts_refuses_the_pod(
    engine: Engine, world: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    none = MountFeatures(recursive_readonly=True, idmapped=False)
    monkeypatch.setattr(FakeMounts, "features", lambda _: none)
    with pytest.raises(FailedPreconditionError, match="hostUsers: false"):
        await own_sandbox(engine)
    assert not any(handler.user_namespaces for handler in engine.status().handlers)
    assert world.census()["files"] == []
