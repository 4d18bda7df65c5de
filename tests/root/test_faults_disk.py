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
from noderuntime.errors import NodeRuntimeError
from tests.root.engine_kit import RealNode
from tests.root.engine_scene import Scene, made_node
from tests.root.mounts_kit import unmount_below

if TYPE_CHECKING:
    from collections.abc import Iterator

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
    damage(victim, how)

    engine = node.engine()
    await engine.recover()
    scene = Scene(node, engine)
    engine.status()
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
