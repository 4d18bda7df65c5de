"""Real containers: crun, conmon and busybox."""

from __future__ import annotations

import asyncio
import os
import re
import signal
import subprocess
import sys
from collections.abc import AsyncIterator
from dataclasses import replace
from pathlib import Path

import pytest

from noderuntime.errors import HostError, NotFoundError
from noderuntime.host import pids
from noderuntime.policy.model import Resources
from tests.root.host_kit import RUNTIME, Kit, eventually, kit_in
from tests.waiting import until

CRI_LINE = re.compile(
    rb"^\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d\.\d{9}[+-]\d\d:\d\d (stdout|stderr) ([PF]) (.*)$"
)


@pytest.fixture
async def kit() -> AsyncIterator[Kit]:
    async for one in kit_in("ctr"):
        yield one


async def test_a_container_runs_and_its_exit_code_and_log_are_kept(kit: Kit) -> None:
    request = kit.bundle("sh", "-c", "echo out; echo err >&2; printf tail; exit 7")
    exits = kit.monitor.exits()
    pid = await kit.monitor.create(kit.runtime, request)
    assert await kit.runtime.state(request.container_id) == "created"
    assert pids.identify(pid) is not None
    assert await kit.monitor.exit_of(request.container_id) is None
    assert await kit.monitor.is_alive(request.container_id)
    await kit.runtime.start(request.container_id)
    async with asyncio.timeout(30):
        assert await anext(exits) == request.container_id
    exit_ = await kit.wait_exit(request.container_id)
    assert exit_.code == 7
    assert not exit_.oom_killed
    assert await kit.runtime.state(request.container_id) == "stopped"
    lines = request.log_path.read_bytes().splitlines()
    found = [m.groups() for line in lines if (m := CRI_LINE.match(line))]
    assert (b"stdout", b"F", b"out") in found
    assert (b"stderr", b"F", b"err") in found
    assert (b"stdout", b"P", b"tail") in found


async def test_a_container_that_cannot_be_created_says_why_and_leaves_nothing(kit: Kit) -> None:
    request = kit.bundle("/no/such/program")
    with pytest.raises(
        HostError, match=r"run[c]? create of container \w+ failed: .*/no/such/program"
    ):
        await kit.monitor.create(kit.runtime, request)
    assert await kit.runtime.state(request.container_id) is None
    assert not await kit.monitor.is_alive(request.container_id)


async def test_a_container_without_config_says_so(kit: Kit) -> None:
    request = kit.bundle("true")
    (request.bundle / "config.json").write_text("{")
    with pytest.raises(HostError, match=r"config\.json"):
        await kit.monitor.create(kit.runtime, request)


async def test_a_container_without_a_log_path_writes_none(kit: Kit) -> None:
    request = replace(kit.bundle("sh", "-c", "echo out"), log_path=Path())
    await kit.run(request)
    assert (await kit.wait_exit(request.container_id)).code == 0
    await kit.monitor.reopen_log(request.container_id)
    assert not list(request.bundle.glob("*.log"))


async def test_a_killed_container_ends_with_128_and_the_signal(kit: Kit) -> None:
    request = kit.bundle("sleep", "1000")
    await kit.run(request)
    await kit.runtime.kill(request.container_id, signal.SIGKILL)
    assert (await kit.wait_exit(request.container_id)).code == 137
    await kit.runtime.kill(request.container_id, signal.SIGKILL)
    await kit.runtime.delete(request.container_id)
    await kit.runtime.delete(request.container_id)
    await kit.runtime.kill(request.container_id, signal.SIGKILL)
    await kit.monitor.remove(request.container_id)
    await kit.monitor.remove(request.container_id)
    assert await kit.monitor.exit_of(request.container_id) is None
    assert not await kit.monitor.is_alive(request.container_id)
    assert sorted(f.name for f in request.bundle.iterdir()) == ["config.json", "rootfs"]


async def test_a_signal_reaches_the_first_process_without_the_oci_runtime(kit: Kit) -> None:
    script = "trap 'exit 5' TERM; echo ready; while :; do sleep 0.02; done"
    request = kit.bundle("sh", "-c", script)
    await kit.run(request)
    # Before, a first process ignores it.
    await until(lambda: b"ready" in request.log_path.read_bytes())
    assert await kit.monitor.signal(request.container_id, signal.SIGTERM)
    assert (await kit.wait_exit(request.container_id)).code == 5
    assert not await kit.monitor.signal(request.container_id, signal.SIGTERM)  # ended


async def test_a_process_that_is_not_the_monitors_child_is_never_signalled(kit: Kit) -> None:
    request = kit.bundle("sleep", "1000")
    await kit.run(request)
    file = request.bundle / "container.pid"
    stranger = subprocess.Popen(["sleep", "1000"])
    try:
        file.write_text(str(stranger.pid))  # as if the number had been given to another process
        assert not await kit.monitor.signal(request.container_id, signal.SIGKILL)
        assert stranger.poll() is None
    finally:
        stranger.kill()
        stranger.wait()


async def test_a_container_without_its_monitor_is_signalled_by_the_oci_runtime(kit: Kit) -> None:
    request = kit.bundle("sleep", "1000")
    await kit.run(request)
    monitor = int((request.bundle / "conmon.pid").read_text())
    os.kill(monitor, signal.SIGKILL)
    await until(lambda: pids.identify(monitor) is None)
    assert not await kit.monitor.signal(request.container_id, signal.SIGKILL)


async def test_a_running_container_is_removed_whole(kit: Kit) -> None:
    request = kit.bundle("sleep", "1000")
    pid = await kit.run(request)
    await kit.runtime.delete(request.container_id)
    await kit.monitor.remove(request.container_id)
    assert pids.identify(pid) is None


async def test_a_container_out_of_memory_is_known_as_such(kit: Kit) -> None:
    limits = {"memory": {"limit": 16 * 1024 * 1024}}
    script = "a=aaaaaaaaaaaaaaaa; while true; do a=$a$a; done"
    request = kit.bundle("sh", "-c", script, changes=limits)
    await kit.run(request)
    exit_ = await kit.wait_exit(request.container_id)
    assert exit_.code == 137
    assert exit_.oom_killed


async def test_a_reopened_log_goes_on_in_a_new_file(kit: Kit) -> None:
    request = kit.bundle("sh", "-c", "echo one; while [ ! -e /go ]; do sleep 0.05; done; echo two")
    await kit.run(request)
    await until(lambda: b"one" in request.log_path.read_bytes())
    old = request.log_path.with_suffix(".1")
    request.log_path.rename(old)
    await kit.monitor.reopen_log(request.container_id)
    assert request.log_path.exists()
    (request.bundle / "rootfs/go").touch()
    await kit.wait_exit(request.container_id)
    assert b"two" in request.log_path.read_bytes()
    assert b"two" not in old.read_bytes()
    with pytest.raises(HostError, match="no monitor listens"):
        await kit.monitor.reopen_log(request.container_id)
    with pytest.raises(NotFoundError):
        await kit.monitor.reopen_log("unknown")


async def test_limits_can_be_updated_and_use_can_be_read(kit: Kit) -> None:
    request = kit.bundle("sh", "-c", "while true; do :; done")
    await kit.run(request)
    path = kit.cgroups.oci_path(kit.parent, request.container_id)
    before = await kit.cgroups.stats(path)
    await kit.runtime.update(
        request.container_id, Resources(memory_limit_bytes=100 * 1024 * 1024, cpu_shares=512)
    )

    async def used() -> bool | None:
        stats = await kit.cgroups.stats(path)
        return (stats.cpu_usage_ns > before.cpu_usage_ns and stats.pids > 0) or None

    await eventually(used)
    stats = await kit.cgroups.pod_stats(kit.parent)
    assert stats.memory_usage_bytes > 0
    await kit.runtime.delete(request.container_id)
    await kit.cgroups.remove(path)
    with pytest.raises(NotFoundError):
        await kit.cgroups.stats(path)
    await kit.runtime.update(request.container_id, Resources())


def open_files(pid: int) -> list[str]:
    return [str(link.readlink()) for link in Path(f"/proc/{pid}/fd").iterdir()]


@pytest.mark.parametrize("delay_ms", range(0, 30, 3))
async def test_a_runtime_killed_in_a_create_leaves_what_can_be_undone(
    kit: Kit, delay_ms: int
) -> None:
    request = kit.bundle("sleep", "1000")
    with subprocess.Popen(
        [sys.executable, "-c", PARENT, str(kit.root), request.container_id, str(RUNTIME)],
        stdout=subprocess.PIPE,
    ) as parent:
        assert parent.stdout is not None
        assert parent.stdout.readline() == b"go\n"
        await asyncio.sleep(delay_ms / 1000)
        os.kill(parent.pid, signal.SIGKILL)
        parent.wait()
        parent.stdout.read()  # ends when the start that was under way has become conmon, or not
    await kit.monitor.remove(request.container_id)
    await kit.runtime.delete(request.container_id)
    await kit.cgroups.remove(kit.cgroups.oci_path(kit.parent, request.container_id))
    assert not kit.runtime.knows(request.container_id)
    assert not [left for left in kit.leftovers() if request.container_id in left]
    assert not (request.bundle / "conmon.pid").exists()


PARENT = """
import asyncio, sys
from pathlib import Path
from noderuntime.host.monitor import Conmon
from noderuntime.host.oci_runtime import OciCli
from noderuntime.host.ports import MonitorRequest
root, container = Path(sys.argv[1]), sys.argv[2]
async def main():
    runtime = OciCli(Path(sys.argv[3]), root / "oci")
    monitor = Conmon(Path("/usr/bin/conmon"), root / "containers", root / "exits")
    leak = open("/dev/zero"); import os; os.set_inheritable(leak.fileno(), True)
    print("go", flush=True)
    await monitor.create(runtime, MonitorRequest(container_id=container,
        bundle=root / "containers" / container, log_path=root / "logs" / (container + ".log"),
        terminal=False, stdin=False, stdin_once=False))
    await runtime.start(container)
    print("up", flush=True)
    await asyncio.sleep(1000)
asyncio.run(main())
"""


async def test_a_container_and_its_log_survive_a_killed_runtime(kit: Kit) -> None:
    request = kit.bundle("sh", "-c", "while [ ! -e /go ]; do sleep 0.05; done; echo late; exit 3")
    with subprocess.Popen(  # it is killed here
        [sys.executable, "-c", PARENT, str(kit.root), request.container_id, str(RUNTIME)],
        stdout=subprocess.PIPE,
    ) as parent:
        assert parent.stdout is not None
        assert parent.stdout.readline() == b"go\n"
        assert parent.stdout.readline() == b"up\n"
        os.kill(parent.pid, signal.SIGKILL)
        parent.wait()
        assert parent.stdout.read() == b""  # nobody else holds it
    assert await kit.monitor.is_alive(request.container_id)
    monitor = int((request.bundle / "conmon.pid").read_text())
    assert "/dev/zero" not in open_files(monitor)
    assert await kit.runtime.state(request.container_id) == "running"
    (request.bundle / "rootfs/go").touch()
    assert (await kit.wait_exit(request.container_id)).code == 3
    assert b"late" in request.log_path.read_bytes()
