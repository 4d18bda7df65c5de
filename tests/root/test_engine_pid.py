"""Shared PID namespaces on real parts: who sees whom, who reaps, and what ends with what."""

from __future__ import annotations

import asyncio
import os
import signal
import time
from collections.abc import AsyncIterator, Iterator
from dataclasses import replace
from pathlib import Path

import pytest

from noderuntime.engine.engine import Engine
from noderuntime.engine.state import ContainerState, SandboxState
from noderuntime.errors import FailedPreconditionError, InvalidArgumentError
from noderuntime.host import pids
from noderuntime.policy.model import ContainerSecurity, NamespaceMode, Namespaces
from tests.root.engine_kit import SHARED_PID, RealNode
from tests.root.engine_scene import Scene, engine_on, made_node
from tests.waiting import until

DEADLINE_S = 30.0


@pytest.fixture(scope="module")
def node(tmp_path_factory: pytest.TempPathFactory) -> Iterator[RealNode]:
    with made_node(tmp_path_factory.mktemp("nr-engine-pid")) as real:
        yield replace(real, namespaces=SHARED_PID)


@pytest.fixture
async def engine(node: RealNode) -> AsyncIterator[Engine]:
    async with engine_on(node, watching=True) as engine:
        yield engine


async def run(node: RealNode, engine: Engine, sandbox_id: str, name: str, script: str = "") -> str:
    config = replace(node.container(script=script), name=name)
    container_id = await engine.create_container(sandbox_id, config)
    await engine.start_container(container_id)
    return container_id


async def lines(engine: Engine, container_id: str, script: str) -> list[str]:
    result = await engine.exec_sync(container_id, ("/bin/busybox", "sh", "-c", script), DEADLINE_S)
    assert result.exit_code == 0, result.stderr
    return result.stdout.decode().splitlines()


def init_pid(node: RealNode, sandbox_id: str) -> int:
    folder = node.config.run_dir / "sandboxes" / sandbox_id / "init"
    return int((folder / "init.pid").read_text())


async def kill_init(node: RealNode, sandbox_id: str) -> None:
    """End the first process, and wait for its end: it has one only when all in its namespace have."""
    pid = init_pid(node, sandbox_id)
    os.kill(pid, signal.SIGKILL)
    await until(lambda: pids.identify(pid) is None)


async def until_not_ready(engine: Engine, sandbox_id: str) -> None:
    await until(lambda: engine.sandbox(sandbox_id).state is not SandboxState.READY)


async def both_are_seen(node: RealNode, engine: Engine, container_id: str) -> None:
    """Wait until two containers are seen below the init: one that just started is still crun."""
    script = "cat /proc/1/cmdline; echo; cat /proc/[0-9]*/cmdline 2>&-; true"
    end = time.monotonic() + DEADLINE_S
    while True:
        seen = await lines(engine, container_id, script)
        assert seen[0].strip("\0") == "/init"
        if " ".join(seen).count(f"nr-engine-{node.token}") >= 2:
            return
        assert time.monotonic() < end, seen


async def test_containers_of_a_pod_see_each_other_below_an_init_that_reaps(
    node: RealNode, engine: Engine
) -> None:
    sandbox_id = await engine.run_sandbox(node.sandbox(), "")
    one = await run(node, engine, sandbox_id, "one")
    two = await run(node, engine, sandbox_id, "two")
    for container_id in (one, two):
        await both_are_seen(node, engine, container_id)
    # An orphan that ends leaves no zombie.
    await lines(engine, one, "(sleep 0.1 & exec true) & wait; sleep 0.5")
    end = time.monotonic() + DEADLINE_S
    while any(
        ") Z " in line
        for line in await lines(engine, two, "cat /proc/[0-9]*/stat 2>/dev/null; true")
    ):
        assert time.monotonic() < end
        await asyncio.sleep(0.02)
    # A container's root cannot end the Pod's first process.
    await lines(engine, one, "kill -9 1; kill -15 1; cat /proc/1/cmdline >/dev/null")


async def test_what_a_container_left_running_ends_with_it(node: RealNode, engine: Engine) -> None:
    sandbox_id = await engine.run_sandbox(node.sandbox(), "")
    stays = await run(node, engine, sandbox_id, "stays")
    left = await run(node, engine, sandbox_id, "leaves", "sleep 7654 & sleep 0.2")
    await until(lambda: engine.container(left).state is ContainerState.EXITED)
    end = time.monotonic() + DEADLINE_S
    while "7654" in " ".join(await lines(engine, stays, "cat /proc/[0-9]*/cmdline 2>&-; true")):
        assert time.monotonic() < end
        await asyncio.sleep(0.02)


async def test_the_first_process_is_in_the_pods_cgroup_and_confined(
    node: RealNode, engine: Engine
) -> None:
    sandbox_id = await engine.run_sandbox(node.sandbox(), "")
    pid = init_pid(node, sandbox_id)
    groups = Path(f"/proc/{pid}/cgroup").read_text().splitlines()
    assert all(line.endswith(f"{node.cgroup_parent}/{sandbox_id}") for line in groups), groups
    status = Path(f"/proc/{pid}/status").read_text()
    assert "CapBnd:\t0000000000000000" in status
    assert "NoNewPrivs:\t1" in status
    assert "Uid:\t65534" in status
    root = sorted(path.name for path in Path(f"/proc/{pid}/root").iterdir())
    assert root == ["dev", "init", "proc"]
    pins = node.config.run_dir / "sandboxes" / sandbox_id / "ns"
    for kind in ("net", "ipc", "uts", "pid"):
        assert (pins / kind).stat().st_ino == Path(f"/proc/{pid}/ns/{kind}").stat().st_ino


async def test_a_sandbox_whose_first_process_ended_is_not_ready(
    node: RealNode, engine: Engine
) -> None:
    sandbox_id = await engine.run_sandbox(node.sandbox(), "")
    await run(node, engine, sandbox_id, "one")
    await kill_init(node, sandbox_id)
    with pytest.raises(FailedPreconditionError, match="is not ready"):
        await run(node, engine, sandbox_id, "two")
    await until_not_ready(engine, sandbox_id)
    # The kubelet's next attempt.
    await engine.stop_sandbox(sandbox_id)
    assert await engine.run_sandbox(node.sandbox(attempt=1), "") != sandbox_id


async def test_a_shared_namespace_outlives_the_runtime_and_its_end_is_found(
    node: RealNode,
) -> None:
    first = node.engine()
    await first.recover()
    sandbox_id = await first.run_sandbox(node.sandbox(), "")
    one = await run(node, first, sandbox_id, "one")
    await first.close()
    second = node.engine()
    await second.recover()
    assert second.sandbox(sandbox_id).state is SandboxState.READY
    assert second.container(one).state is ContainerState.RUNNING
    await run(node, second, sandbox_id, "two")
    await second.close()
    await kill_init(node, sandbox_id)
    third = node.engine()
    await third.recover()
    assert third.sandbox(sandbox_id).state is SandboxState.NOT_READY
    await Scene(node, third).remove_everything()
    await third.close()


async def test_a_container_joins_the_pid_namespace_of_its_target(
    node: RealNode, engine: Engine
) -> None:
    own = replace(node, namespaces=Namespaces())
    sandbox_id = await engine.run_sandbox(own.sandbox(), "")
    target = await run(own, engine, sandbox_id, "target", "exec sleep 4321")
    joins = Namespaces(pid=NamespaceMode.TARGET, target_id=target)
    debug = replace(own.container(), name="debug", security=ContainerSecurity(namespaces=joins))
    debug_id = await engine.create_container(sandbox_id, debug)
    await engine.start_container(debug_id)
    looks = "until busybox grep -q ^sleep.4321 /proc/1/cmdline; do busybox sleep 0.05; done"
    await lines(engine, debug_id, looks)  # until then it is the shell that becomes it

    nobody = replace(joins, target_id="0" * 64)
    stranger = replace(debug, name="lost", security=ContainerSecurity(namespaces=nobody))
    with pytest.raises(InvalidArgumentError, match="not a container of this pod"):
        await engine.create_container(sandbox_id, stranger)
    await engine.stop_container(target, 0.0)
    with pytest.raises(FailedPreconditionError, match="does not run"):
        await engine.create_container(sandbox_id, replace(debug, name="late"))


async def test_a_container_cannot_share_what_its_pod_does_not(
    node: RealNode, engine: Engine
) -> None:
    own = replace(node, namespaces=Namespaces())
    sandbox_id = await engine.run_sandbox(own.sandbox(), "")
    with pytest.raises(InvalidArgumentError, match="both must say the same"):
        await engine.create_container(sandbox_id, node.container())
