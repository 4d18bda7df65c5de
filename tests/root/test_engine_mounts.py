"""Mounts of a container on real parts: what is read-only is so all the way down."""

from __future__ import annotations

import subprocess
import time
from collections.abc import AsyncIterator, Iterator
from dataclasses import replace
from pathlib import Path

import pytest

from noderuntime.engine.engine import Engine
from noderuntime.policy.model import Mount
from tests.root.engine_kit import RealNode
from tests.root.engine_scene import Scene, made_node


@pytest.fixture(scope="module")
def node(tmp_path_factory: pytest.TempPathFactory) -> Iterator[RealNode]:
    with made_node(tmp_path_factory.mktemp("nr-engine-mounts")) as real:
        yield real


@pytest.fixture
async def engine(node: RealNode) -> AsyncIterator[Engine]:
    empty = node.census()
    engine = node.engine()
    await engine.recover()
    yield engine
    await Scene(node, engine).remove_everything()
    await engine.close()
    assert node.leftovers(empty) == []


@pytest.fixture
def nested(tmp_path: Path) -> Iterator[Path]:
    """A volume with another file system mounted below it."""
    volume = tmp_path / "volume"
    below = volume / "below"
    below.mkdir(parents=True)
    subprocess.run(("mount", "-t", "tmpfs", "tmpfs", below), check=True)
    yield volume
    subprocess.run(("umount", below), check=True)


@pytest.mark.parametrize("handler", ["", "runc"])
@pytest.mark.parametrize(("recursive", "refused"), [(True, 2), (False, 1)])
async def test_a_recursive_read_only_mount_is_read_only_below_other_mounts_too(
    node: RealNode, engine: Engine, nested: Path, handler: str, recursive: bool, refused: int
) -> None:
    assert all(handler.recursive_readonly for handler in engine.status().handlers)
    mount = Mount(
        container_path="/tmp",
        host_path=str(nested),
        readonly=True,
        recursive_readonly=recursive,
    )
    sandbox_id = await engine.run_sandbox(node.sandbox(), handler)
    config = replace(node.container(), mounts=(mount,))
    container_id = await engine.create_container(sandbox_id, config)
    await engine.start_container(container_id)
    script = f"echo {time.time_ns()} > /tmp/a; echo 1 > /tmp/below/a; true"
    result = await engine.exec_sync(container_id, ("/bin/busybox", "sh", "-c", script), 10.0)
    assert result.stderr.decode().count("Read-only file system") == refused
