"""The default profile is in the kernel before a container's spec names it."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING

import pytest

from noderuntime.errors import FailedPreconditionError, HostError
from noderuntime.policy import apparmor
from noderuntime.policy.model import ContainerSecurity, ProfileType, SecurityProfileRef
from tests.fakes.engine import container_config, sandbox_config

if TYPE_CHECKING:
    from noderuntime.engine.engine import Engine
    from tests.fakes.engine import World

LOAD = f"load {apparmor.DEFAULT}"


async def profile_of_a_new_container(engine: Engine, world: World, attempt: int = 0) -> object:
    sandbox = await engine.run_sandbox(sandbox_config(), "")
    made = await engine.create_container(sandbox, container_config(attempt))
    spec = world.root / "run" / "containers" / made / "config.json"
    return json.loads(spec.read_text())["process"].get("apparmorProfile")


async def test_the_default_profile_is_loaded_once(engine: Engine, world: World) -> None:
    world.apparmor.enabled = True
    for attempt in range(3):
        assert await profile_of_a_new_container(engine, world, attempt) == apparmor.DEFAULT
    assert world.apparmor.calls == [LOAD]
    assert world.apparmor.loaded == {apparmor.DEFAULT: apparmor.default_text()}


async def test_the_default_profile_is_loaded_again_when_someone_removed_it(
    engine: Engine, world: World
) -> None:
    world.apparmor.enabled = True
    await profile_of_a_new_container(engine, world, 0)
    world.apparmor.loaded.clear()
    await profile_of_a_new_container(engine, world, 1)
    assert world.apparmor.calls == [LOAD, LOAD]


async def test_a_new_runtime_replaces_the_default_of_the_old_one(
    engine: Engine, world: World
) -> None:
    world.apparmor.enabled = True
    world.apparmor.loaded[apparmor.DEFAULT] = "of an older version"
    await profile_of_a_new_container(engine, world)
    assert world.apparmor.loaded[apparmor.DEFAULT] == apparmor.default_text()


async def test_nothing_is_loaded_where_there_is_no_apparmor(engine: Engine, world: World) -> None:
    assert await profile_of_a_new_container(engine, world) is None
    assert world.apparmor.calls == []


async def test_a_container_is_not_made_when_its_profile_cannot_be_loaded(
    engine: Engine, world: World
) -> None:
    world.apparmor.enabled = True
    world.apparmor.faults[apparmor.DEFAULT] = HostError("apparmor_parser failed")
    sandbox = await engine.run_sandbox(sandbox_config(), "")
    with pytest.raises(HostError, match="apparmor_parser failed"):
        await engine.create_container(sandbox, container_config())
    assert engine.containers() == ()


async def test_a_profile_that_is_not_loaded_refuses_the_container(
    engine: Engine, world: World
) -> None:
    world.apparmor.enabled = True
    sandbox = await engine.run_sandbox(sandbox_config(), "")
    asked = SecurityProfileRef(type=ProfileType.LOCALHOST, localhost_ref="web")
    with pytest.raises(FailedPreconditionError, match="localhostProfile: web is not loaded"):
        await engine.create_container(
            sandbox, container_config(security=ContainerSecurity(apparmor=asked))
        )
