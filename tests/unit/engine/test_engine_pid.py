"""Shared PID namespaces: the first process is made, found and taken away with its sandbox."""

from __future__ import annotations

import json
from dataclasses import replace

import pytest

from noderuntime.engine.engine import Engine
from noderuntime.engine.state import SandboxState
from noderuntime.engine.store import COPY
from noderuntime.errors import FailedPreconditionError, HostError, InvalidArgumentError
from noderuntime.policy.model import ContainerSecurity, NamespaceMode, Namespaces
from tests.fakes.engine import (
    World,
    container_config,
    new_engine,
    sandbox_config,
)

SHARED = Namespaces(pid=NamespaceMode.POD)


async def shared_sandbox(engine: Engine) -> str:
    return await engine.run_sandbox(sandbox_config(namespaces=SHARED), "")


def first_process(world: World, sandbox_id: str) -> dict[str, object]:
    path = world.root / "run" / "sandboxes" / sandbox_id / "init" / "config.json"
    document: dict[str, object] = json.loads(path.read_text())
    return document


async def test_a_plain_pod_has_no_first_process(engine: Engine, world: World) -> None:
    await engine.run_sandbox(sandbox_config(), "")
    assert "inits.start" not in world.calls
    assert world.processes == {}


async def test_the_first_process_gets_the_namespaces_that_are_the_pods(
    engine: Engine, world: World
) -> None:
    on_node = replace(SHARED, network=NamespaceMode.NODE, ipc=NamespaceMode.NODE)
    for attempt, namespaces, kinds in (
        (0, SHARED, ["mount", "pid", "network", "uts", "ipc"]),
        (1, on_node, ["mount", "pid"]),
    ):
        config = sandbox_config(attempt, namespaces=namespaces, cgroup_parent="/kubepods/pod1")
        sandbox_id = await engine.run_sandbox(config, "")
        linux = first_process(world, sandbox_id)["linux"]
        assert isinstance(linux, dict)
        assert [entry["type"] for entry in linux["namespaces"]] == kinds
        assert linux["cgroupsPath"] == f"/kubepods/pod1/{sandbox_id}"


async def test_a_container_of_the_pod_joins_the_pin(engine: Engine, world: World) -> None:
    sandbox_id = await shared_sandbox(engine)
    container_id = await engine.create_container(
        sandbox_id, container_config(security=ContainerSecurity(namespaces=SHARED))
    )
    path = world.root / "run" / "containers" / container_id / "config.json"
    pin = str(world.root / "run" / "sandboxes" / sandbox_id / "ns" / "pid")
    namespaces = json.loads(path.read_text())["linux"]["namespaces"]
    assert {"type": "pid", "path": pin} in namespaces


async def test_a_stop_ends_the_first_process_and_a_remove_leaves_nothing(
    engine: Engine, world: World
) -> None:
    empty = world.census()
    sandbox_id = await shared_sandbox(engine)
    assert world.processes == {sandbox_id: "running"}
    await engine.stop_sandbox(sandbox_id)
    assert world.processes == {}
    assert world.cgroups == set()
    await engine.remove_sandbox(sandbox_id)
    assert world.census() == empty


async def test_a_failed_namespace_step_takes_the_first_process_back(
    engine: Engine, world: World
) -> None:
    empty = world.census()
    world.failing["namespaces.create"] = HostError("no room")
    with pytest.raises(HostError, match="no room"):
        await shared_sandbox(engine)
    assert world.census() == empty


async def test_no_container_is_made_in_a_pod_whose_first_process_ended(
    engine: Engine, world: World
) -> None:
    sandbox_id = await shared_sandbox(engine)
    del world.processes[sandbox_id]
    with pytest.raises(FailedPreconditionError, match="is not ready"):
        await engine.create_container(sandbox_id, container_config())
    assert engine.sandbox(sandbox_id).state is SandboxState.NOT_READY


async def test_a_restart_finds_that_the_first_process_ended(engine: Engine, world: World) -> None:
    sandbox_id = await shared_sandbox(engine)
    second = new_engine(world)
    await second.recover()
    assert second.sandbox(sandbox_id).state is SandboxState.READY
    del world.processes[sandbox_id]
    third = new_engine(world)
    await third.recover()
    assert third.sandbox(sandbox_id).state is SandboxState.NOT_READY


async def test_a_first_process_without_a_record_is_removed_at_start(
    engine: Engine, world: World
) -> None:
    sandbox_id = await shared_sandbox(engine)
    (world.root / "state" / "sandboxes" / f"{sandbox_id}.json").write_text("{")
    (world.root / "run" / "sandboxes" / sandbox_id / COPY).unlink()
    second = new_engine(world)
    await second.recover()
    assert world.processes == {}
    assert world.cgroups == set()
    assert second.sandboxes() == ()


async def test_a_target_must_be_a_running_container_of_the_pod(
    engine: Engine, world: World
) -> None:
    sandbox_id = await engine.run_sandbox(sandbox_config(), "")
    other_id = await engine.run_sandbox(sandbox_config(attempt=1), "")
    target = await engine.create_container(sandbox_id, container_config())
    joins = ContainerSecurity(namespaces=Namespaces(pid=NamespaceMode.TARGET, target_id=target))
    debug = container_config(name="debug", security=joins)
    with pytest.raises(FailedPreconditionError, match="does not run"):
        await engine.create_container(sandbox_id, debug)
    await engine.start_container(target)
    with pytest.raises(InvalidArgumentError, match="not a container of this pod"):
        await engine.create_container(other_id, debug)
    debug_id = await engine.create_container(sandbox_id, debug)
    pin = world.root / "run" / "containers" / debug_id / "target-pid"
    assert str(pin) in world.mounts
    await engine.remove_container(debug_id)
    assert str(pin) not in world.mounts
