"""What holds for the fakes holds for the kernel, crun and conmon: the same tests on both."""

from __future__ import annotations

import asyncio
import signal
import tempfile
import uuid
from collections.abc import AsyncIterator
from dataclasses import dataclass
from pathlib import Path

import pytest

from noderuntime.errors import NodeRuntimeError, NotFoundError
from noderuntime.host.init import OciInits
from noderuntime.host.portforward import NetnsPortForward
from noderuntime.host.ports import (
    Cgroups,
    Exec,
    ExecRequest,
    Exit,
    InitRequest,
    Inits,
    Monitor,
    MonitorRequest,
    Mounts,
    NamespaceRequest,
    Namespaces,
    OciRuntime,
    PortForward,
)
from noderuntime.policy.init_spec import build_init
from noderuntime.policy.model import Resources
from tests.fakes.host import FakeCgroups, FakeInits, FakeMounts, FakeNamespaces
from tests.fakes.processes import FakeExec, FakeMonitor, FakePortForward, FakeRuntime
from tests.fakes.world import World
from tests.root.host_kit import Kit, eventually, kit_in


@dataclass(slots=True)
class Host:
    root: Path
    namespaces: Namespaces
    inits: Inits
    mounts: Mounts
    cgroups: Cgroups
    runtime: OciRuntime
    monitor: Monitor
    exec: Exec
    port_forward: PortForward
    kit: Kit | None = None

    def request(self) -> MonitorRequest:
        """A container that runs until it is ended."""
        if self.kit is not None:
            return self.kit.bundle("sleep", "1000")
        container_id = uuid.uuid4().hex
        bundle = self.root / container_id
        bundle.mkdir()
        (bundle / "config.json").write_text("{}")
        return MonitorRequest(
            container_id=container_id,
            bundle=bundle,
            log_path=self.root / "log",
            terminal=False,
            stdin=False,
            stdin_once=False,
        )

    async def ended(self, container_id: str) -> Exit:
        async def exit_() -> Exit | None:
            return await self.monitor.exit_of(container_id)

        return await eventually(exit_)


@pytest.fixture(params=["fake", "real"])
async def host(request: pytest.FixtureRequest) -> AsyncIterator[Host]:
    if request.param == "fake":
        with tempfile.TemporaryDirectory(prefix="nr-host-fake-") as root:
            world = World(Path(root))
            before = world.census()
            yield Host(
                root=Path(root),
                namespaces=FakeNamespaces(world),
                inits=FakeInits(world),
                mounts=FakeMounts(world),
                cgroups=FakeCgroups(world),
                runtime=FakeRuntime(world),
                monitor=FakeMonitor(world),
                exec=FakeExec(world),
                port_forward=FakePortForward(world),
            )
            assert {**world.census(), "files": []} == before
        return
    async for kit in kit_in("con"):
        yield Host(
            root=kit.root,
            namespaces=kit.namespaces,
            inits=OciInits(),
            mounts=kit.mounts,
            cgroups=kit.cgroups,
            runtime=kit.runtime,
            monitor=kit.monitor,
            exec=kit.exec,
            port_forward=NetnsPortForward(),
            kit=kit,
        )


async def test_removing_what_never_was_is_success(host: Host) -> None:
    for _ in range(2):
        await host.namespaces.remove(host.root / "ns")
        await host.mounts.unmount(host.root / "mount")
        await host.runtime.kill("never", signal.SIGKILL)
        await host.runtime.delete("never")
        await host.monitor.remove("never")
        await host.cgroups.remove(host.cgroups.oci_path("", "never"))
    assert await host.runtime.state("never") is None
    assert await host.monitor.exit_of("never") is None
    assert not await host.monitor.is_alive("never")


async def test_namespaces_can_be_made_again(host: Host) -> None:
    request = NamespaceRequest(network=True, ipc=True, uts=True, hostname="pod")
    for _ in range(2):
        await host.namespaces.create(host.root / "ns", request)
    await host.namespaces.remove(host.root / "ns")


async def test_a_first_process_lives_until_it_is_removed(host: Host) -> None:
    sandbox_id, directory = uuid.uuid4().hex, host.root / "init"
    parent = "" if host.kit is None else host.kit.parent
    cgroup = host.cgroups.oci_path(parent, sandbox_id)
    config = build_init(
        str(directory / "rootfs"),
        cgroups_path=cgroup,
        namespaces=("pid", "network", "ipc", "uts"),
    )
    assert await host.inits.find(directory) is None
    request = InitRequest(sandbox_id=sandbox_id, directory=directory, config=config)
    identity = await host.inits.start(host.runtime, request)
    assert await host.inits.find(directory) == identity
    pins = NamespaceRequest(
        network=True, ipc=True, uts=True, pid=True, init=identity, hostname="pod"
    )
    await host.namespaces.create(host.root / "ns", pins)
    await host.namespaces.remove(host.root / "ns")
    for _ in range(2):
        await host.inits.remove(host.runtime, sandbox_id, directory)
        await host.cgroups.remove(cgroup)
        assert await host.inits.find(directory) is None


async def test_a_mount_can_be_there_twice(host: Host) -> None:
    await host.mounts.tmpfs(host.root / "one", size_bytes=4096, mode=0o755)
    assert await host.mounts.clone(host.root / "one", host.root / "two", None) == ()
    await host.mounts.unmount(host.root / "two")
    await host.mounts.unmount(host.root / "one")


async def test_mounts_go_with_what_is_below(host: Host) -> None:
    await host.mounts.tmpfs(host.root / "m" / "a", size_bytes=4096, mode=0o755)
    lower = host.root / "lower"
    lower.mkdir()
    top = host.root / "m"
    await host.mounts.overlay([lower], host.root / "u", host.root / "w", top / "b")
    await host.mounts.unmount(top)
    with pytest.raises(NodeRuntimeError, match="1 to 127 layers and was given 0"):
        await host.mounts.overlay([], host.root / "u", host.root / "w", top / "b")


async def test_a_container_goes_through_its_states(host: Host) -> None:
    request = host.request()
    exits = host.monitor.exits()
    assert await host.monitor.create(host.runtime, request) > 0
    assert await host.runtime.state(request.container_id) == "created"
    await host.runtime.start(request.container_id)
    assert await host.runtime.state(request.container_id) == "running"
    assert await host.monitor.is_alive(request.container_id)
    assert await host.monitor.exit_of(request.container_id) is None
    await host.runtime.update(request.container_id, Resources(cpu_shares=100))
    await host.runtime.kill(request.container_id, signal.SIGKILL)
    async with asyncio.timeout(10):
        assert await anext(exits) == request.container_id
    assert (await host.ended(request.container_id)).code == 137
    assert await host.runtime.state(request.container_id) == "stopped"
    await host.runtime.kill(request.container_id, signal.SIGKILL)
    await host.runtime.delete(request.container_id)
    assert await host.runtime.state(request.container_id) is None
    await host.monitor.remove(request.container_id)
    assert await host.monitor.exit_of(request.container_id) is None


@pytest.mark.parametrize("monitor_first", [True, False])
async def test_a_running_container_can_be_undone_in_either_order(
    host: Host, *, monitor_first: bool
) -> None:
    request = host.request()
    await host.monitor.create(host.runtime, request)
    await host.runtime.start(request.container_id)
    if monitor_first:
        await host.monitor.remove(request.container_id)
    await host.runtime.delete(request.container_id)
    await host.monitor.remove(request.container_id)
    assert await host.runtime.state(request.container_id) is None
    assert not await host.monitor.is_alive(request.container_id)


async def test_what_is_not_there_is_an_error_where_it_matters(host: Host) -> None:
    with pytest.raises(NodeRuntimeError):
        await host.runtime.start("never")
    with pytest.raises(NotFoundError):
        await host.monitor.attach("never")
    with pytest.raises(NotFoundError):
        await host.monitor.reopen_log("never")
    with pytest.raises(NotFoundError):
        await host.cgroups.stats(host.cgroups.oci_path("/nr-host-never", "never"))
    with pytest.raises(NodeRuntimeError, match="cannot connect to port 9"):
        await host.port_forward.connect(None, 9)


async def test_an_exec_ends_with_its_code(host: Host) -> None:
    request = host.request()
    await host.monitor.create(host.runtime, request)
    await host.runtime.start(request.container_id)
    process = {"args": ["true"], "cwd": "/", "env": ["PATH=/bin"], "user": {"uid": 0, "gid": 0}}
    execution = ExecRequest(
        container_id=request.container_id, process=process, terminal=False, stdin=True
    )
    assert (await host.exec.sync(host.runtime, execution, 10)).exit_code == 0
    stream = await host.exec.open(host.runtime, execution)
    await stream.close_stdin()
    assert [data async for _, data in stream] == []
    assert await stream.wait() == 0
    await stream.close()
    await host.runtime.delete(request.container_id)
    await host.monitor.remove(request.container_id)
