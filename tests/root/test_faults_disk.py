"""A real node on a disk of its own, which is full, or read-only, or holds what nobody wrote."""

from __future__ import annotations

import os
import shutil
import subprocess
from contextlib import contextmanager, suppress
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from noderuntime.engine import exits
from noderuntime.engine.state import ContainerState, SandboxState
from noderuntime.engine.store import COPY
from noderuntime.errors import NodeRuntimeError
from tests.root.engine_kit import RealNode
from tests.root.engine_scene import Scene, made_node
from tests.root.mounts_kit import unmount_below

if TYPE_CHECKING:
    from collections.abc import Iterator

    from noderuntime.engine.engine import Engine

PAGE = 4096
LEVELS = 14  # pages left: one life's writes, the last level is room enough
LIFE = ("run_sandbox", "create_container", "start_container")
END = ("stop_container", "remove_container", "stop_sandbox", "remove_sandbox")


@pytest.fixture(scope="module")
def node(tmp_path_factory: pytest.TempPathFactory) -> Iterator[RealNode]:
    root = tmp_path_factory.mktemp("nr-faults-disk")
    subprocess.run(("mount", "-t", "tmpfs", "-o", "size=32m", "nr-faults", root), check=True)
    try:
        with made_node(root) as real:
            yield real
    finally:
        unmount_below(root)


@contextmanager
def full(node: RealNode, pages: int) -> Iterator[None]:
    """Leave room for so many pages."""
    filler = node.root / "filler"
    with filler.open("wb", buffering=0) as file, suppress(OSError):
        while True:
            file.write(bytes(PAGE))
    size = filler.stat().st_size
    os.truncate(filler, max(0, size - pages * PAGE))
    try:
        yield
    finally:
        filler.unlink()


@contextmanager
def read_only(node: RealNode) -> Iterator[None]:
    # This mount of it: run_dir, a bind of its own, stays writable, as it is on a tmpfs of its own.
    subprocess.run(("mount", "-o", "remount,bind,ro", node.root), check=True)
    try:
        yield
    finally:
        subprocess.run(("mount", "-o", "remount,bind,rw", node.root), check=True)


async def call(scene: Scene, verb: str) -> str:
    """Return what the caller is told; anything but an error of ours is a bug."""
    try:
        await scene.call(verb)
    except NodeRuntimeError as error:
        return error.for_kubelet()
    return ""


@pytest.mark.parametrize("pages", range(LEVELS))
async def test_a_full_disk_fails_calls_and_leaves_nothing_half_made(
    node: RealNode, pages: int
) -> None:
    empty = node.census()
    engine = node.engine()
    await engine.recover()
    scene = Scene(node, engine)
    with full(node, pages):
        told = {verb: await call(scene, verb) for verb in (*LIFE, *END)}
    assert told["run_sandbox"] == "" or "no space left" in told["run_sandbox"], told
    await exits.flush(engine._node)
    await scene.remove_everything()
    assert node.leftovers(empty) == []
    for verb in (*LIFE, *END):
        await scene.call(verb)
    assert node.leftovers(empty) == []
    await engine.close()


async def test_pods_can_be_ended_on_a_full_disk(node: RealNode) -> None:
    empty = node.census()
    engine = node.engine()
    await engine.recover()
    scene = Scene(node, engine)
    for verb in LIFE:
        await scene.call(verb)
    with full(node, 0):
        for verb in ("stop_container", "stop_sandbox", "remove_container", "remove_sandbox"):
            assert await call(scene, verb) == ""
    assert node.leftovers(empty) == []
    await engine.close()


@pytest.mark.parametrize("how", ["full", "read-only"])
async def test_a_runtime_starts_and_answers_on_a_disk_that_takes_nothing(
    node: RealNode, how: str
) -> None:
    empty = node.census()
    first = node.engine()
    await first.recover()
    sandbox_id = await first.run_sandbox(node.sandbox(), "")
    # A log that is open for writing would keep the disk from becoming read-only.
    container_id = await first.create_container(sandbox_id, replace(node.container(), log_path=""))
    await first.start_container(container_id)
    await first.close()
    engine = node.engine()
    with full(node, 0) if how == "full" else read_only(node):
        await engine.recover()
        scene = Scene(node, engine)
        assert engine.container(container_id).state is ContainerState.RUNNING
        assert [s.state for s in engine.sandboxes()] == [SandboxState.READY]
        assert len(engine.list_images()) == 1
        result = await engine.exec_sync(container_id, ("/bin/busybox", "true"), 5.0)
        assert result.exit_code == 0
        told = {verb: await call(scene, verb) for verb in END}
        assert "" in told.values() or how == "read-only", told
    await exits.flush(engine._node)
    await scene.remove_everything()
    assert node.leftovers(empty) == []
    for verb in (*LIFE, *END):
        await scene.call(verb)
    await engine.close()


DAMAGES = ("torn", "zeros", "another kind", "a folder")
KINDS = ("sandboxes", "containers", "intents", "images/records", "network")


def damage(path: Path, how: str) -> None:
    data = path.read_bytes()
    path.unlink()
    if how == "a folder":
        path.mkdir()
        return
    torn = data[: len(data) // 2]
    path.write_bytes({"torn": torn, "zeros": bytes(PAGE), "another kind": b'{"id": 7}'}[how])


async def with_data(node: RealNode) -> tuple[Engine, str]:
    """Run a container that has written something; return its ID."""
    engine = node.engine()
    await engine.recover()
    scene = Scene(node, engine)
    for verb in LIFE:
        await scene.call(verb)
    command = ("/bin/sh", "-c", "echo precious >/etc/written")
    assert (await engine.exec_sync(scene.container_id, command, 10.0)).exit_code == 0
    return engine, scene.container_id


@pytest.mark.parametrize("with_image", [True, False], ids=["image there", "image removed"])
@pytest.mark.parametrize("victim", ["snapshots/*/lowers.json", "images/layers/*/done"])
@pytest.mark.parametrize("how", (*DAMAGES, "gone"))
async def test_a_damaged_record_below_a_running_container_takes_nothing_from_it(
    node: RealNode, victim: str, how: str, with_image: bool, caplog: pytest.LogCaptureFixture
) -> None:
    await node.load_image()
    empty = node.census()
    engine, container_id = await with_data(node)
    if not with_image:
        await engine.remove_image(engine.list_images()[0].id)
    await engine.close()
    file = next(iter((node.root / "state").glob(victim)))
    if how == "gone":
        file.unlink()
    else:
        damage(file, how)

    for _ in range(2):  # what one start has set aside, the next one does not find
        engine = node.engine()
        await engine.recover()
        command = ("/bin/cat", "/etc/written", "/bin/busybox")
        result = await engine.exec_sync(container_id, command, 10.0)
        assert (result.exit_code, result.stdout[:9]) == (0, b"precious\n")
        usage = await engine.container_stats(container_id)
        assert usage.writable_layer.used_bytes > 0
        await engine.close()
    assert "corrupted" in caplog.text or how == "gone"

    await node.load_image()
    engine = node.engine()
    await engine.recover()
    await Scene(node, engine).remove_everything()
    await node.load_image()
    assert node.leftovers(empty) == []
    await engine.close()


@pytest.mark.parametrize("how", DAMAGES)
async def test_of_a_record_and_its_copy_one_is_enough(node: RealNode, how: str) -> None:
    empty = node.census()
    first, container_id = await with_data(node)
    await first.close()
    run, state = node.config.run_dir, node.root / "state"
    damage(run / "containers" / container_id / COPY, how)
    damage(run / "sandboxes" / first.sandboxes()[0].id / COPY, how)
    second = node.engine()
    await second.recover()
    assert second.containers() == first.containers()
    await second.close()
    damage(state / "containers" / f"{container_id}.json", how)
    third = node.engine()
    await third.recover()  # neither is left: then nobody will ever end it but this
    assert third.containers() == ()
    await Scene(node, third).remove_everything()
    for aside in state.rglob("*.corrupt"):
        shutil.rmtree(aside) if aside.is_dir() else aside.unlink()
    assert node.leftovers(empty) == []
    await third.close()


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("how", DAMAGES)
async def test_a_damaged_file_is_set_aside_and_the_runtime_answers(
    node: RealNode, kind: str, how: str, caplog: pytest.LogCaptureFixture
) -> None:
    await node.load_image()
    empty = node.census()
    first = node.engine()
    await first.recover()
    scene = Scene(node, first)
    for verb in LIFE:
        await scene.call(verb)
    if kind == "intents":
        record = first.container(scene.container_id)
        name = f"stop_container-{record.id}.json"
        (node.root / "state/intents" / name).write_text('{"verb": "stop_container", "until_ns": 0}')
    await first.close()
    victim = next(iter((node.root / "state" / kind).glob("*.json")))
    sandboxes, containers = first.sandboxes(), first.containers()
    damage(victim, how)

    engine = node.engine()
    await engine.recover()
    scene = Scene(node, engine)
    engine.status()
    # Nothing that runs is given up for it, whichever file it was.
    assert (engine.sandboxes(), engine.containers()) == (sandboxes, containers)
    command = ("/bin/busybox", "true")
    assert (await engine.exec_sync(scene.container_id, command, 10.0)).exit_code == 0
    if engine.sandboxes():
        assert await call(scene, "stop_sandbox") == ""
    await scene.remove_everything()
    assert any(str(victim) == getattr(entry, "file", "") for entry in caplog.records)
    for aside in (node.root / "state").rglob("*.corrupt"):
        shutil.rmtree(aside) if aside.is_dir() else aside.unlink()
    if kind == "images/records":
        await node.load_image()
        await engine.close()
        engine = node.engine()
        await engine.recover()
        scene = Scene(node, engine)
    assert node.leftovers(empty) == []
    for verb in (*LIFE, *END):
        await scene.call(verb)
    assert node.leftovers(empty) == []
    await engine.close()
