"""Image volumes: mounted from a snapshot of their own, and gone with their container."""

from __future__ import annotations

import json
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from noderuntime.engine.image_volumes import folder_within
from noderuntime.errors import HostError, ImageError, ImageVolumeError
from noderuntime.policy.model import Mount
from tests.fakes.engine import IMAGE_ID, World, container_config, new_engine, sandbox_config

if TYPE_CHECKING:
    from noderuntime.engine.engine import Engine

VOLUME = Mount(container_path="/model", image=IMAGE_ID, readonly=True, options=("noexec",))


async def created(engine: Engine, *mounts: Mount) -> str:
    sandbox_id = await engine.run_sandbox(sandbox_config(), "")
    return await engine.create_container(sandbox_id, container_config(mounts=mounts))


async def test_an_image_is_bound_read_only_and_its_digest_is_told(
    engine: Engine, world: World
) -> None:
    container_id = await created(engine, VOLUME)
    bundle = world.root / "run" / "containers" / container_id
    document = json.loads((bundle / "config.json").read_text())
    mount = next(m for m in document["mounts"] if m["destination"] == "/model")
    assert mount["source"] == str(bundle / "volumes" / "0")
    assert mount["options"] == ["rbind", "rprivate", "ro", "noexec"]
    assert str(bundle / "volumes" / "0") in world.mounts
    assert world.snapshots == {container_id, f"{container_id}-0"}
    assert engine.container(container_id).config.mounts[0].image_ref == IMAGE_ID


async def test_nothing_of_an_image_volume_stays_when_its_container_goes(
    engine: Engine, world: World
) -> None:
    container_id = await created(engine, VOLUME, VOLUME)
    await engine.remove_container(container_id)
    assert world.snapshots == set()
    assert [mount for mount in world.mounts if "volumes" in mount] == []


async def test_a_restart_keeps_image_volumes_of_containers_and_drops_others(world: World) -> None:
    first = new_engine(world)
    await first.recover()
    container_id = await created(first, VOLUME)
    await first.close()
    world.snapshots.add(f"{'0' * 64}-3")
    second = new_engine(world)
    await second.recover()
    assert world.snapshots == {container_id, f"{container_id}-0"}
    await second.close()


@pytest.mark.parametrize("call", ["images.prepare", "mounts.overlay"])
async def test_a_volume_that_fails_is_told_by_the_kubelets_prefix_and_undone(
    engine: Engine, world: World, call: str
) -> None:
    container_id = await created(engine)
    before = world.census()
    missing = Mount(container_path="/model", image="missing:1", readonly=True)
    config = container_config(attempt=1, mounts=(missing,))
    sandbox_id = engine.container(container_id).sandbox_id
    with pytest.raises(ImageVolumeError) as caught:
        await engine.create_container(sandbox_id, config)
    assert caught.value.for_kubelet().startswith("ImageVolumeMountFailed: image missing:1 cannot")
    assert world.census() == before
    world.failing[call] = HostError("no") if call == "mounts.overlay" else ImageError("no")
    with pytest.raises((HostError, ImageError)):
        await engine.create_container(sandbox_id, container_config(attempt=1, mounts=(VOLUME,)))
    world.failing.clear()
    assert world.census() == before


def test_a_sub_path_stays_in_the_image(tmp_path: Path) -> None:
    root = tmp_path / "image"
    (root / "etc" / "app").mkdir(parents=True)
    (root / "link").symlink_to("/etc")
    (root / "out").symlink_to("../../..")
    (root / "file").touch()
    assert folder_within(root, "") == str(root)
    assert folder_within(root, "link/app") == str(root / "etc" / "app")
    assert folder_within(root, "out") == str(root)
    for path in ("missing", "file"):
        with pytest.raises(HostError):
            folder_within(root, path)
