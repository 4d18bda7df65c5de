"""A Pod has a level of its own as long as it is there, and all that is its own carries it."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING

import pytest

from noderuntime.errors import FailedPreconditionError, HostError
from noderuntime.policy.model import ContainerSecurity, Mount, PodIdentity, SelinuxOptions
from tests.fakes.engine import container_config, new_engine, sandbox_config

if TYPE_CHECKING:
    from pathlib import Path

    from noderuntime.engine.engine import Engine
    from tests.fakes.engine import World

FILE = "system_u:object_r:container_file_t"


@pytest.fixture(autouse=True)
def enabled(world: World) -> None:
    world.selinux.enabled = True


def pod(number: int) -> PodIdentity:
    return PodIdentity(name=f"web-{number}", namespace="shop", uid=f"u-{number}")


async def test_every_pod_has_a_level_of_its_own_that_a_restart_knows(
    engine: Engine, world: World
) -> None:
    for number in range(20):
        await engine.run_sandbox(sandbox_config(pod=pod(number)), "")
    levels = {record.id: record.selinux_level for record in engine.sandboxes()}
    assert len(set(levels.values())) == 20
    assert all(level.startswith("s0:c") for level in levels.values())
    again = new_engine(world)
    await again.recover()
    assert {record.id: record.selinux_level for record in again.sandboxes()} == levels


async def test_a_level_that_is_taken_goes_to_nobody_else(
    engine: Engine, monkeypatch: pytest.MonkeyPatch
) -> None:
    ids = iter(f"{'0' * 12}{number:052x}" for number in range(9))  # all begin at the same pair
    monkeypatch.setattr("noderuntime.engine.sandbox_run.new_id", lambda: next(ids))
    made = [await engine.run_sandbox(sandbox_config(pod=pod(n)), "") for n in range(3)]
    assert [engine.sandbox(each).selinux_level for each in made] == [
        "s0:c0,c1",
        "s0:c0,c2",
        "s0:c0,c3",
    ]
    await engine.remove_sandbox(made[1])
    new = await engine.run_sandbox(sandbox_config(pod=pod(3)), "")
    assert engine.sandbox(new).selinux_level == "s0:c0,c2"


async def test_a_pod_that_could_not_be_made_holds_no_level(engine: Engine, world: World) -> None:
    world.failing["network.attach"] = HostError("no network")
    with pytest.raises(HostError):
        await engine.run_sandbox(sandbox_config(), "")
    world.failing.clear()
    await engine.run_sandbox(sandbox_config(), "")


async def test_a_pod_that_names_its_level_has_that(engine: Engine) -> None:
    asked = SelinuxOptions(level="s0:c5,c6")
    made = await engine.run_sandbox(sandbox_config(selinux=asked), "")
    assert engine.sandbox(made).selinux_level == "s0:c5,c6"


async def test_what_is_the_pods_carries_its_label(
    engine: Engine, world: World, tmp_path: Path
) -> None:
    asked = SelinuxOptions(level="s0:c5,c6")
    sandbox = await engine.run_sandbox(sandbox_config(selinux=asked), "")
    folder = world.root / "run" / "sandboxes" / sandbox
    assert world.selinux.labels == {
        str(folder / name): f"{FILE}:s0:c5,c6" for name in ("resolv.conf", "hostname", "shm")
    }
    (tmp_path / "volume").mkdir()
    (tmp_path / "other").mkdir()
    mounts = (
        Mount(container_path="/a", host_path=str(tmp_path / "volume"), selinux_relabel=True),
        Mount(container_path="/b", host_path=str(tmp_path / "other")),
        Mount(container_path="/c", image="registry.example.com/app:1", selinux_relabel=True),
    )
    container = await engine.create_container(sandbox, container_config(mounts=mounts))
    assert world.selinux.relabelled == {str(tmp_path / "volume"): f"{FILE}:s0:c5,c6"}
    assert set(world.contexts.values()) == {f"{FILE}:s0:c5,c6"}
    spec = json.loads((world.root / "run" / "containers" / container / "config.json").read_text())
    assert spec["process"]["selinuxLabel"] == "system_u:system_r:container_t:s0:c5,c6"
    assert spec["linux"]["mountLabel"] == f"{FILE}:s0:c5,c6"


async def test_a_label_that_the_policy_does_not_know_is_refused_by_its_field(
    engine: Engine, world: World
) -> None:
    world.selinux.known = set()
    sandbox = await engine.run_sandbox(sandbox_config(), "")
    asked = ContainerSecurity(selinux=SelinuxOptions(type="no_such_t"))
    with pytest.raises(FailedPreconditionError, match=r"seLinuxOptions: .*no_such_t"):
        await engine.create_container(sandbox, container_config(security=asked))
    assert world.selinux.labels == {}
    # What the policy names for containers it does not have either: then they have no label.
    await engine.create_container(sandbox, container_config(attempt=1))
    assert set(world.contexts.values()) == {""}


async def test_without_selinux_nothing_is_labelled(engine: Engine, world: World) -> None:
    world.selinux.enabled = False
    asked = SelinuxOptions(level="s0:c5,c6", type="x_t")
    sandbox = await engine.run_sandbox(sandbox_config(selinux=asked), "")
    assert engine.sandbox(sandbox).selinux_level == ""
    security = ContainerSecurity(selinux=asked)
    container = await engine.create_container(sandbox, container_config(security=security))
    spec = json.loads((world.root / "run" / "containers" / container / "config.json").read_text())
    assert "selinuxLabel" not in spec["process"]
    assert set(world.contexts.values()) == {""}
