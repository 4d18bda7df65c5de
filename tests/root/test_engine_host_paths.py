"""Paths of the node under a profile: what was judged is mounted, whoever swaps a name in between."""

from __future__ import annotations

import subprocess
from collections.abc import AsyncIterator, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from noderuntime.cli.parts import parts_of
from noderuntime.engine.engine import Engine
from noderuntime.errors import DeniedError, HostError
from noderuntime.host.mounts import KernelMounts
from noderuntime.policy.model import ContainerConfig, Mount, Propagation
from noderuntime.policy.spec import DEFAULT_MASKED, DEFAULT_READONLY
from tests.root.engine_kit import OWN_USERS, RealNode
from tests.root.engine_scene import Scene, searchable_node
from tests.root.profile_kit import HANDLERS, serve


@pytest.fixture(scope="module")
def node() -> Iterator[RealNode]:
    with searchable_node("host-paths") as real:
        yield real


@pytest.fixture
def allowed(node: RealNode, tmp_path: Path) -> Iterator[Path]:
    """A folder that the profile allows, with a folder in it, and a secret beside it."""
    folder = node.root / "allowed"
    (folder / "x").mkdir(parents=True)
    (folder / "x" / "name").write_text("judged")
    secret = node.root / "secret"
    secret.mkdir()
    (secret / "name").write_text("secret")
    yield folder
    subprocess.run(("rm", "-r", folder, secret), check=True)


def allow(node: RealNode, folder: Path, **profile: object) -> None:
    """Serve a profile that allows the folder."""
    path = {"path": str(folder), "readOnly": False, "propagation": ["Bidirectional"]}
    serve(node, {"hostPaths": [path], **profile})


@pytest.fixture
async def engine(node: RealNode) -> AsyncIterator[Engine]:
    async for each in an_engine(node):
        yield each


async def an_engine(node: RealNode, **parts: Any) -> AsyncIterator[Engine]:
    empty = node.census()
    (node.config.run_dir / "oci" / "runc").mkdir(parents=True, exist_ok=True)
    engine = Engine(replace(parts_of(node.config), **parts))
    await engine.recover()
    try:
        yield engine
    finally:
        await Scene(node, engine).remove_everything()
        await engine.close()
    assert node.leftovers(empty) == []


def config_of(node: RealNode, *mounts: Mount) -> ContainerConfig:
    plain = node.container()
    security = replace(plain.security, masked_paths=DEFAULT_MASKED, readonly_paths=DEFAULT_READONLY)
    return replace(plain, mounts=mounts, security=security)


def swap(folder: Path) -> None:
    """Do what somebody does who can write to the allowed folder."""
    (folder / "x").rename(folder / "y")
    (folder / "x").symlink_to(folder.parent / "secret")


async def said(engine: Engine, container_id: str, *command: str) -> str:
    result = await engine.exec_sync(container_id, ("/bin/busybox", *command), 10.0)
    assert result.exit_code == 0, result.stderr
    return result.stdout.decode()


@pytest.mark.parametrize("users", [False, True], ids=["node's users", "own users"])
@pytest.mark.parametrize("handler", HANDLERS)
async def test_a_name_that_is_swapped_after_the_decision_changes_nothing(
    node: RealNode, engine: Engine, allowed: Path, handler: str, users: bool
) -> None:
    allow(node, allowed)
    node = replace(node, namespaces=OWN_USERS) if users else node
    sandbox_id = await engine.run_sandbox(node.sandbox(), handler)
    mount = Mount(container_path="/tmp", host_path=str(allowed / "x"))
    container_id = await engine.create_container(sandbox_id, config_of(node, mount))
    swap(allowed)
    await engine.start_container(container_id)
    assert await said(engine, container_id, "cat", "/tmp/name") == "judged"


class SwappingMounts(KernelMounts):
    """Swaps the name between the look at it and the mount."""

    def __init__(self, folder: Path) -> None:
        super().__init__()
        self._folder = folder

    async def clone(
        self, source: Path, target: Path, userns: Path | None, *, peer: bool = False
    ) -> tuple[Path, ...]:
        swap(self._folder)
        return await super().clone(source, target, userns, peer=peer)


async def test_a_name_that_is_swapped_while_it_is_mounted_changes_nothing(
    node: RealNode, allowed: Path
) -> None:
    allow(node, allowed)
    async for engine in an_engine(node, mounts=SwappingMounts(allowed)):
        sandbox_id = await engine.run_sandbox(node.sandbox(), HANDLERS[0])
        mount = Mount(container_path="/tmp", host_path=str(allowed / "x"))
        container_id = await engine.create_container(sandbox_id, config_of(node, mount))
        await engine.start_container(container_id)
        assert await said(engine, container_id, "cat", "/tmp/name") == "judged"


async def test_a_name_that_was_swapped_before_is_refused(
    node: RealNode, engine: Engine, allowed: Path
) -> None:
    allow(node, allowed)
    swap(allowed)
    sandbox_id = await engine.run_sandbox(node.sandbox(), HANDLERS[0])
    mount = Mount(container_path="/tmp", host_path=str(allowed / "x"))
    with pytest.raises(DeniedError, match=r"secret \(behind .*/allowed/x\) is refused"):
        await engine.create_container(sandbox_id, config_of(node, mount))


async def test_a_container_that_fails_later_leaves_no_mount(node: RealNode, allowed: Path) -> None:
    allow(node, allowed)

    async def fault(verb: str, place: str) -> None:
        if (verb, place) == ("create_container", "record:before"):
            raise HostError("no")

    empty = node.census()
    engine = node.engine(fault)
    await engine.recover()
    sandbox_id = await engine.run_sandbox(node.sandbox(), HANDLERS[0])
    mount = Mount(container_path="/tmp", host_path=str(allowed / "x"))
    with pytest.raises(HostError):
        await engine.create_container(sandbox_id, config_of(node, mount))
    await Scene(node, engine).remove_everything()
    await engine.close()
    assert node.leftovers(empty) == []


@pytest.fixture
def shared(allowed: Path) -> Iterator[Path]:
    """A file system below the allowed folder, as a node has them: what is mounted in it is shared."""
    volume = allowed / "shared"
    volume.mkdir()
    subprocess.run(("mount", "-t", "tmpfs", "tmpfs", volume), check=True)
    subprocess.run(("mount", "--make-shared", volume), check=True)
    (volume / "below").mkdir()
    (volume / "other").mkdir()
    subprocess.run(("mount", "-t", "tmpfs", "tmpfs", volume / "other"), check=True)
    yield volume
    subprocess.run(("umount", "-R", volume), check=True)


def mounts_of(folder: Path) -> list[str]:
    lines = Path("/proc/self/mountinfo").read_text().splitlines()
    found = (line.split()[4] for line in lines)
    return [point.removeprefix(f"{folder}/") for point in found if point.startswith(f"{folder}/")]


@pytest.mark.parametrize("handler", HANDLERS)
async def test_what_is_mounted_inside_stays_on_the_node_where_the_profile_lets_it_go_there(
    node: RealNode, engine: Engine, shared: Path, handler: str
) -> None:
    allow(node, shared, privileged="Allow")
    sandbox_id = await engine.run_sandbox(replace(node.sandbox(), privileged=True), handler)
    mount = Mount(
        container_path="/tmp", host_path=str(shared), propagation=Propagation.BIDIRECTIONAL
    )
    config = config_of(node, mount)
    config = replace(config, security=replace(config.security, privileged=True))
    container_id = await engine.create_container(sandbox_id, config)
    await engine.start_container(container_id)
    await said(engine, container_id, "mount", "-t", "tmpfs", "tmpfs", "/tmp/below")
    assert sorted(mounts_of(shared)) == ["below", "other"]
    await engine.stop_container(container_id, 1.0)
    await engine.remove_container(container_id)
    assert sorted(mounts_of(shared)) == ["below", "other"]
