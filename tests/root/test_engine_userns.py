"""Pods with a user namespace on real parts: root inside is nobody outside, and still can work."""

from __future__ import annotations

import os
import shutil
import subprocess
from collections.abc import AsyncIterator, Iterator
from dataclasses import replace
from pathlib import Path

import pytest

from noderuntime.engine.engine import Engine
from noderuntime.errors import InvalidArgumentError
from noderuntime.policy.model import (
    ContainerSecurity,
    Mount,
    NamespaceMode,
    Propagation,
    UserNamespace,
)
from tests.root.engine_kit import MAPPING, OWN_USERS, USERS, RealNode
from tests.root.engine_scene import Scene, engine_on, searchable_node

ROOT = MAPPING.host_id
HANDLERS = ["", "runc"]


@pytest.fixture(scope="module")
def node() -> Iterator[RealNode]:
    with searchable_node("userns") as real:
        yield replace(real, namespaces=OWN_USERS)


@pytest.fixture
async def engine(node: RealNode) -> AsyncIterator[Engine]:
    async with engine_on(node) as engine:
        yield engine


async def run(
    node: RealNode, engine: Engine, handler: str, mounts: tuple[Mount, ...] = ()
) -> tuple[str, str]:
    sandbox_id = await engine.run_sandbox(node.sandbox(), handler)
    return sandbox_id, await add(node, engine, sandbox_id, mounts)


async def add(
    node: RealNode, engine: Engine, sandbox_id: str, mounts: tuple[Mount, ...] = ()
) -> str:
    config = replace(
        node.container(),
        mounts=mounts,
        security=ContainerSecurity(namespaces=node.namespaces, capabilities_add=("NET_ADMIN",)),
    )
    container_id = await engine.create_container(sandbox_id, config)
    await engine.start_container(container_id)
    return container_id


async def inside(engine: Engine, container_id: str, script: str) -> list[str]:
    shell = ("/bin/busybox", "sh", "-c", script)
    result = await engine.exec_sync(container_id, shell, 10.0)
    assert result.exit_code == 0, (result.stdout, result.stderr)
    return result.stdout.decode().splitlines()


def owner(path: Path) -> tuple[int, int]:
    found = path.stat()
    return found.st_uid, found.st_gid


@pytest.mark.parametrize("handler", HANDLERS)
async def test_root_inside_is_nobody_outside(node: RealNode, engine: Engine, handler: str) -> None:
    assert all(each.user_namespaces for each in engine.status().handlers)
    sandbox_id, container_id = await run(node, engine, handler)
    assert await inside(engine, container_id, "id -u; cat /proc/self/uid_map") == [
        "0",
        f"{0:10} {ROOT:10} {65536:10}",
    ]
    pid = engine.container(container_id).pid
    assert Path(f"/proc/{pid}/status").read_text().split("Uid:\t")[1].split()[0] == str(ROOT)
    pins = node.config.run_dir / "sandboxes" / sandbox_id / "ns"
    assert sorted(pin.name for pin in pins.iterdir()) == ["ipc", "net", "user", "uts"]
    for kind in ("user", "net", "ipc", "uts"):
        assert (pins / kind).stat().st_ino == Path(f"/proc/{pid}/ns/{kind}").stat().st_ino
    # The first process was there for the namespaces alone.
    assert not (pins.parent / "init").exists()


@pytest.mark.parametrize("handler", HANDLERS)
async def test_the_image_and_what_is_written_belong_to_the_containers_root(
    node: RealNode, engine: Engine, handler: str
) -> None:
    _, container_id = await run(node, engine, handler)
    script = "echo x > /etc/new; for f in / /bin /bin/busybox /etc/new; do busybox stat -c %u:%g $f; done"
    assert await inside(engine, container_id, script) == ["0:0"] * 4
    rootfs = node.config.run_dir / "containers" / container_id / "rootfs"
    assert owner(rootfs / "etc" / "new") == (ROOT, ROOT)


@pytest.mark.parametrize("handler", HANDLERS)
async def test_the_network_is_its_own_to_configure(
    node: RealNode, engine: Engine, handler: str
) -> None:
    _, container_id = await run(node, engine, handler)
    script = (
        "busybox ip addr add 10.9.9.9/32 dev lo && hostname && ls /sys/class/net && ls /dev/mqueue"
    )
    script = script.replace("ls ", "busybox ls ")
    assert await inside(engine, container_id, script) == ["web", "eth0", "lo"]


async def test_sysctls_are_set_in_namespaces_that_the_user_namespace_owns(
    node: RealNode, engine: Engine
) -> None:
    sysctls = {"net.ipv4.ip_unprivileged_port_start": "80", "kernel.shm_rmid_forced": "1"}
    sandbox_id = await engine.run_sandbox(replace(node.sandbox(), sysctls=sysctls), "")
    container_id = await add(node, engine, sandbox_id)
    paths = ("net/ipv4/ip_unprivileged_port_start", "kernel/shm_rmid_forced")
    script = " ".join(["cat", *(f"/proc/sys/{path}" for path in paths)])
    assert await inside(engine, container_id, script) == ["80", "1"]


@pytest.mark.parametrize("handler", HANDLERS)
async def test_a_mapped_volume_keeps_the_owners_that_the_container_sees(
    node: RealNode, engine: Engine, handler: str
) -> None:
    kubelets = node.root / "kubelet"
    shutil.rmtree(kubelets, ignore_errors=True)
    volume, file = kubelets / "volume", kubelets / "hosts"
    volume.mkdir(parents=True)
    kubelets.chmod(0o700)  # nobody may walk through the kubelet's folders
    (volume / "given").write_text("x")
    os.chown(volume / "given", 7, 8)
    file.write_text("hosts")
    file.chmod(0o600)
    mounts = (
        Mount(container_path="/tmp", host_path=str(volume), idmap=USERS),
        Mount(container_path="/etc/hosts", host_path=str(file), idmap=USERS, readonly=True),
    )
    _, container_id = await run(node, engine, handler, mounts)
    script = "echo y > /tmp/made; busybox stat -c %u:%g /tmp/given /tmp/made; cat /etc/hosts"
    assert await inside(engine, container_id, script) == ["7:8", "0:0", "hosts"]
    assert owner(volume / "made") == (0, 0)


async def test_a_volume_that_is_not_mapped_belongs_to_nobody(
    node: RealNode, engine: Engine
) -> None:
    volume = node.root / "plain"
    volume.mkdir(exist_ok=True)
    (volume / "given").write_text("x")
    mounts = (Mount(container_path="/tmp", host_path=str(volume)),)
    _, container_id = await run(node, engine, "", mounts)
    assert await inside(engine, container_id, "busybox stat -c %u /tmp/given") == ["65534"]


@pytest.mark.parametrize("handler", HANDLERS)
@pytest.mark.parametrize("propagation", [Propagation.PRIVATE, Propagation.HOST_TO_CONTAINER])
async def test_what_is_mounted_below_a_shared_volume_is_seen_and_stays_on_the_node(
    node: RealNode, engine: Engine, handler: str, propagation: Propagation
) -> None:
    volume = node.root / "shared"
    below = volume / "below"
    volume.mkdir()
    for command in (
        ("mount", "--bind", volume, volume),
        ("mount", "--make-shared", volume),
        ("mkdir", below),
        ("mount", "-t", "tmpfs", "tmpfs", below),
    ):
        subprocess.run(command, check=True)
    try:
        (below / "file").write_text("there")
        asked = Mount(container_path="/tmp", host_path=str(volume), idmap=USERS)
        mounts = (replace(asked, propagation=propagation),)
        _, container_id = await run(node, engine, handler, mounts)
        assert await inside(engine, container_id, "cat /tmp/below/file") == ["there"]
        await engine.remove_container(container_id)
        assert (below / "file").read_text() == "there"
    finally:
        subprocess.run(("umount", "-R", volume), check=True)
        shutil.rmtree(volume)


@pytest.mark.parametrize("handler", HANDLERS)
async def test_a_shared_pid_namespace_belongs_to_the_user_namespace(
    node: RealNode, engine: Engine, handler: str
) -> None:
    shared = replace(node, namespaces=replace(OWN_USERS, pid=NamespaceMode.POD))
    _, container_id = await run(shared, engine, handler)
    assert (await inside(engine, container_id, "cat /proc/1/cmdline"))[0].strip("\0") == "/init"


async def test_a_restart_of_the_runtime_keeps_the_pod(node: RealNode) -> None:
    empty = node.census()
    first = node.engine()
    await first.recover()
    sandbox_id, container_id = await run(node, first, "")
    await first.close()
    second = node.engine()
    await second.recover()
    assert (await inside(second, container_id, "id -u")) == ["0"]
    await second.remove_container(container_id)
    await add(node, second, sandbox_id)
    await Scene(node, second).remove_everything()
    await second.close()
    assert node.leftovers(empty) == []
    third = node.engine()
    await third.recover()
    await third.close()
    assert node.leftovers(empty) == []


async def test_mappings_of_another_pod_are_refused(node: RealNode, engine: Engine) -> None:
    sandbox_id = await engine.run_sandbox(node.sandbox(), "")
    other = replace(MAPPING, host_id=2_000_000)
    stranger = UserNamespace(uids=other, gids=other)
    mounts = (Mount(container_path="/tmp", host_path="/tmp", idmap=stranger),)
    with pytest.raises(InvalidArgumentError, match="not those of its sandbox"):
        await add(node, engine, sandbox_id, mounts)
