"""Mounts of a container on real parts: what is read-only is so all the way down."""

from __future__ import annotations

import os
import subprocess
import time
from collections.abc import AsyncIterator, Callable, Iterator
from dataclasses import replace
from pathlib import Path

import pytest

from noderuntime.engine.engine import Engine
from noderuntime.errors import FailedPreconditionError, HostError
from noderuntime.policy.model import Mount, Propagation
from tests.root.engine_kit import OWN_USERS, RealNode
from tests.root.engine_scene import Scene, engine_on, searchable_node


@pytest.fixture(scope="module")
def node() -> Iterator[RealNode]:
    with searchable_node("mounts") as real:
        yield real


@pytest.fixture
async def engine(node: RealNode) -> AsyncIterator[Engine]:
    async with engine_on(node) as engine:
        yield engine


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


def mounts_of(pid: int) -> str:
    return Path(f"/proc/{pid}/mountinfo").read_text()


async def pod(node: RealNode, engine: Engine, handler: str, attempt: int, *mounts: Mount) -> str:
    """Run a Pod with one container; return the container's ID."""
    sandbox_id = await engine.run_sandbox(node.sandbox(attempt), handler)
    image = node.container().mounts
    config = replace(node.container(), mounts=(*image, *mounts))
    container_id = await engine.create_container(sandbox_id, config)
    await engine.start_container(container_id)
    return container_id


@pytest.mark.parametrize("handler", ["", "runc"])
@pytest.mark.parametrize("source", ["/", "run_dir"])
async def test_a_container_that_binds_everything_keeps_nothing_of_another_one(
    node: RealNode, engine: Engine, handler: str, source: str
) -> None:
    run_dir = node.config.run_dir
    path = "/" if source == "/" else str(run_dir)
    other = await pod(node, engine, handler, 0)
    sandbox = engine.container(other).sandbox_id
    everything = Mount(container_path="/host", host_path=path, readonly=True)
    binder = await pod(node, engine, handler, 1, everything)
    seen = mounts_of(engine.container(binder).pid)
    for mount in (
        run_dir / "containers" / other / "rootfs",
        run_dir / "containers" / other / "volumes",
        run_dir / "sandboxes" / sandbox / "ns",
    ):
        assert f"/host{str(mount).removeprefix(path.rstrip('/'))}" not in seen
        assert str(mount) in mounts_of(os.getpid())
    await engine.remove_sandbox(sandbox)
    assert other not in mounts_of(os.getpid())
    assert not (run_dir / "containers" / other).exists()
    assert not (node.root / "state" / "snapshots" / other).exists()
    result = await engine.exec_sync(binder, ("/bin/busybox", "true"), 10.0)
    assert result.exit_code == 0


@pytest.fixture
def service() -> Iterator[Callable[[], int]]:
    """Start what systemd starts for most services: a copy of the node's mounts, as slaves."""
    argv = ("unshare", "--mount", "--propagation=slave", "sh", "-c", "echo up; exec sleep 600")
    started: list[subprocess.Popen[bytes]] = []

    def start() -> int:
        started.append(subprocess.Popen(argv, stdout=subprocess.PIPE))
        assert started[-1].stdout is not None
        started[-1].stdout.readline()
        return started[-1].pid

    yield start
    for process in started:
        process.kill()
        process.communicate()


@pytest.mark.parametrize("users", [False, True], ids=["node's users", "own users"])
@pytest.mark.parametrize("handler", ["", "runc"])
async def test_who_copies_the_nodes_mounts_keeps_nothing_of_a_pod_that_is_removed(
    node: RealNode, engine: Engine, service: Callable[[], int], handler: str, users: bool
) -> None:
    """Else its memory, its files and its network namespace would stay as long as the copy does.

    run_dir is private, so no unmount reaches a copy. But its folders go, and with a folder the kernel
    takes off what is mounted on it, in whatever namespace.
    """
    node = replace(node, namespaces=OWN_USERS) if users else node
    container = await pod(node, engine, handler, 0)
    sandbox = engine.container(container).sandbox_id
    pid = service()
    for mount in ("ns/net", "shm"):
        assert f"{node.config.run_dir}/sandboxes/{sandbox}/{mount} " in mounts_of(pid)
    assert f"containers/{container}/rootfs " in mounts_of(pid)
    await engine.remove_sandbox(sandbox)
    for where in (os.getpid(), pid):
        assert sandbox not in mounts_of(where)
        assert container not in mounts_of(where)


async def test_a_bind_of_run_dir_on_the_node_holds_a_removal_up_which_says_so_and_is_retried(
    node: RealNode, engine: Engine, tmp_path: Path
) -> None:
    """The kernel removes no folder on which something is mounted in the remover's own namespace."""
    container = await pod(node, engine, "", 0)
    sandbox = engine.container(container).sandbox_id
    subprocess.run(("mount", "--rbind", node.config.run_dir, tmp_path), check=True)
    try:
        with pytest.raises(HostError, match=f"cannot remove .*{sandbox}: .*busy"):
            await engine.remove_sandbox(sandbox)
    finally:
        subprocess.run(("umount", "--recursive", tmp_path), check=True)
    await engine.remove_sandbox(sandbox)
    assert engine.sandboxes() == ()


@pytest.mark.parametrize("propagation", [Propagation.BIDIRECTIONAL, Propagation.HOST_TO_CONTAINER])
async def test_a_path_of_a_mount_that_propagates_nothing_is_refused(
    node: RealNode, engine: Engine, tmp_path: Path, propagation: Propagation
) -> None:
    subprocess.run(("mount", "-t", "tmpfs", "tmpfs", tmp_path), check=True)
    subprocess.run(("mount", "--make-private", tmp_path), check=True)
    (tmp_path / "volume").mkdir()
    asked = Mount(
        container_path="/tmp", host_path=str(tmp_path / "volume"), propagation=propagation
    )
    try:
        with pytest.raises(FailedPreconditionError, match=f"in the mount {tmp_path}, which is not"):
            await pod(node, engine, "", 0, asked)
        await Scene(node, engine).remove_everything()
        subprocess.run(("mount", "--make-shared", tmp_path), check=True)
        container_id = await pod(node, engine, "", 1, asked)
        await engine.remove_container(container_id)
    finally:
        await Scene(node, engine).remove_everything()
        subprocess.run(("umount", tmp_path), check=True)
