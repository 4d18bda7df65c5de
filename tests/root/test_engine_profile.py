"""A profile's sections on the real kernel, under both OCI runtimes: what is declared is what runs."""

from __future__ import annotations

import os
import stat
from collections.abc import AsyncIterator, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from noderuntime.engine.engine import Engine
from noderuntime.errors import DeniedError
from noderuntime.policy.model import ContainerConfig, Device
from noderuntime.policy.spec import DEFAULT_MASKED, DEFAULT_READONLY
from tests.root.engine_kit import RealNode
from tests.root.engine_scene import engine_on, searchable_node
from tests.root.profile_kit import HANDLERS, serve

PROFILE: dict[str, Any] = {
    "runAs": {"nonRoot": True},
    "capabilities": {"default": ["NET_BIND_SERVICE", "KILL"], "ambient": ["NET_BIND_SERVICE"]},
    "maskedPaths": ["/image/bin"],
    "readonlyPaths": ["/tmp"],
    # Equal: Go raises the soft one to the hard, and some versions of runc now and then leave it so.
    "ulimits": [{"name": "nofile", "soft": 100, "hard": 100}],
    "resources": {"pids": 50, "shm": {"default": "1Mi"}},
}
NET_BIND_SERVICE = 1 << 10


@pytest.fixture(scope="module")
def node() -> Iterator[RealNode]:
    with searchable_node("profile") as real:
        yield real


@pytest.fixture
async def engine(node: RealNode) -> AsyncIterator[Engine]:
    async with engine_on(node) as engine:
        yield engine


@pytest.fixture
def device(node: RealNode) -> Iterator[Path]:
    """A device that everybody may open, but no container by itself: /dev/fuse by another name."""
    path = Path(f"/dev/nr-test-{node.token}")
    os.mknod(path, 0o666 | stat.S_IFCHR, os.makedev(10, 229))
    path.chmod(0o666)
    yield path
    path.unlink()


def config_of(node: RealNode, **changes: object) -> ContainerConfig:
    plain = node.container()
    security = replace(
        plain.security,
        run_as_user=1000,
        masked_paths=DEFAULT_MASKED,
        readonly_paths=DEFAULT_READONLY,
    )
    return replace(plain, security=security, **changes)  # type: ignore[arg-type]


async def said(engine: Engine, container_id: str, script: str) -> list[str]:
    result = await engine.exec_sync(container_id, ("/bin/busybox", "sh", "-c", script), 10.0)
    return (result.stdout + result.stderr).decode().splitlines()


@pytest.mark.parametrize("handler", HANDLERS)
async def test_what_is_declared_is_what_runs_in_the_container_and_in_an_exec(
    node: RealNode, engine: Engine, handler: str
) -> None:
    serve(node, PROFILE)
    sandbox_id = await engine.run_sandbox(node.sandbox(), handler)
    container_id = await engine.create_container(sandbox_id, config_of(node))
    await engine.start_container(container_id)
    for status in ("/proc/1/status", "/proc/self/status"):
        lines = await said(engine, container_id, f"busybox grep ^Cap {status}")
        found = {name: int(mask, 16) for name, mask in (line.split(":") for line in lines)}
        for name in ("CapInh", "CapPrm", "CapEff", "CapAmb"):
            assert found[name] == NET_BIND_SERVICE, (status, name)
        assert found["CapBnd"] == NET_BIND_SERVICE | 1 << 5
    assert await said(engine, container_id, "ulimit -Sn; ulimit -Hn") == ["100", "100"]
    [line] = await said(engine, container_id, "busybox df -k /dev/shm | busybox tail -n 1")
    assert line.split()[1] == "1024"
    assert await said(engine, container_id, "busybox ls /image/bin") == []
    [error] = await said(engine, container_id, "echo > /tmp/x")
    assert "Read-only file system" in error


@pytest.mark.parametrize("handler", HANDLERS)
async def test_a_device_may_be_used_as_it_is_listed_and_no_more(
    node: RealNode, engine: Engine, device: Path, handler: str
) -> None:
    serve(node, PROFILE | {"devices": {"allow": [{"path": str(device), "permissions": "r"}]}})
    sandbox_id = await engine.run_sandbox(node.sandbox(), handler)
    asked = Device(container_path="/dev/x", host_path=str(device), permissions="r")
    more = replace(asked, permissions="rw")
    with pytest.raises(DeniedError, match=f"rw for {device} is refused"):
        await engine.create_container(sandbox_id, config_of(node, devices=(more,)))
    container_id = await engine.create_container(sandbox_id, config_of(node, devices=(asked,)))
    await engine.start_container(container_id)
    assert await said(engine, container_id, ": < /dev/x; echo $?") == ["0"]
    [error] = await said(engine, container_id, ": > /dev/x")
    assert "Operation not permitted" in error


@pytest.mark.parametrize("handler", HANDLERS)
async def test_an_exec_gets_what_both_profiles_give_when_the_profile_was_tightened(
    node: RealNode, engine: Engine, handler: str
) -> None:
    serve(node, {**PROFILE, "noNewPrivileges": "Optional"})
    sandbox_id = await engine.run_sandbox(node.sandbox(), handler)
    config = config_of(node)
    config = replace(config, security=replace(config.security, no_new_privs=False))
    container_id = await engine.create_container(sandbox_id, config)
    await engine.start_container(container_id)
    serve(
        node,
        {
            **PROFILE,
            "capabilities": {"default": ["KILL"]},
            "ulimits": [{"name": "nofile", "soft": 50, "hard": 50}],
        },
    )
    script = "busybox grep -E '^(Cap|NoNew)' /proc/{}/status"
    own, joined = (
        {name: int(value, 16) for name, value in (line.split(":") for line in lines)}
        for lines in (
            await said(engine, container_id, script.format("1")),
            await said(engine, container_id, script.format("self")),
        )
    )
    assert (own["CapBnd"], own["CapEff"]) == (NET_BIND_SERVICE | 1 << 5, NET_BIND_SERVICE)
    assert (joined["CapBnd"], joined["CapEff"], joined["CapAmb"]) == (1 << 5, 0, 0)
    assert (own["NoNewPrivs"], joined["NoNewPrivs"]) == (0, 1)
    assert await said(engine, container_id, "ulimit -Hn") == ["50"]
    serve(node, {**PROFILE, "runAs": {"users": [{"min": 5, "max": 6}]}})
    with pytest.raises(DeniedError, match=r"runAs.users has 5-6; .*have the Pod made anew"):
        await engine.exec(container_id, ("/bin/busybox", "id"), tty=False, stdin=False)
    assert await said(engine, container_id, "echo probed") == ["probed"]
