"""One Pod on real parts: what it sees, what is told of it, and that it outlives its runtime."""

from __future__ import annotations

import os
import shutil
import signal
from collections.abc import AsyncIterator, Iterator
from dataclasses import replace

import pytest

from noderuntime.engine import exits
from noderuntime.engine.engine import Engine
from noderuntime.engine.state import ContainerRecord, ContainerState
from noderuntime.errors import FailedPreconditionError, HostError
from noderuntime.policy.model import (
    ContainerConfig,
    ContainerSecurity,
    Mount,
    NamespaceMode,
    Namespaces,
    Resources,
)
from tests.root.engine_kit import RealNode
from tests.root.engine_scene import Scene, engine_on, made_node
from tests.waiting import until

DEADLINE_S = 30.0


@pytest.fixture(scope="module")
def node(tmp_path_factory: pytest.TempPathFactory) -> Iterator[RealNode]:
    with made_node(tmp_path_factory.mktemp("nr-engine-node")) as real:
        yield real


@pytest.fixture
async def engine(node: RealNode) -> AsyncIterator[Engine]:
    shutil.rmtree(node.root / "logs", ignore_errors=True)
    async with engine_on(node, watching=True) as engine:
        yield engine


async def started(node: RealNode, engine: Engine, config: ContainerConfig) -> str:
    sandbox_id = await engine.run_sandbox(node.sandbox(), "")
    container_id = await engine.create_container(sandbox_id, config)
    await engine.start_container(container_id)
    return container_id


async def ended(engine: Engine, container_id: str) -> ContainerRecord:
    await until(lambda: engine.container(container_id).state is ContainerState.EXITED)
    return engine.container(container_id)


async def test_a_container_sees_its_pod_and_its_end_is_told(node: RealNode, engine: Engine) -> None:
    script = "hostname; cat /etc/hostname /etc/resolv.conf; echo >&2 oops; exit 3"
    container_id = await started(node, engine, node.container(script=script))
    record = await ended(engine, container_id)
    assert (record.exit_code, record.reason) == (3, "Error")
    lines = engine.log_file(record).read_text().splitlines()
    words = [line.split(" ", 3)[1:] for line in lines]
    # Two pipes: which of them the monitor reads first is not said.
    outputs = [word for word in words if word[0] == "stdout"]
    assert outputs[:2] == [["stdout", "F", "web"], ["stdout", "F", "web"]]
    assert ["stderr", "F", "oops"] in words


async def test_a_running_container_answers_exec_stats_and_stop(
    node: RealNode, engine: Engine
) -> None:
    security = ContainerSecurity(run_as_user=1000, run_as_group=2000, supplemental_groups=(3000,))
    config = replace(node.container(), security=security)
    container_id = await started(node, engine, config)
    result = await engine.exec_sync(container_id, ("/bin/id",), DEADLINE_S)
    assert (result.exit_code, result.stderr) == (0, b"")
    assert result.stdout.split() == [b"uid=1000", b"gid=2000", b"groups=2000,3000"]
    assert engine.container(container_id).additional_gids == (2000, 3000)
    record = engine.container(container_id)
    stats = await engine.container_stats(container_id)
    assert stats.cgroup.pids >= 1
    sandbox = await engine.sandbox_stats(record.sandbox_id)
    assert [usage.interface for usage in sandbox.network] == ["eth0"]
    await engine.update_resources(container_id, Resources(memory_limit_bytes=64 << 20))
    await engine.reopen_log(container_id)
    await engine.stop_container(container_id, DEADLINE_S)
    record = engine.container(container_id)
    assert (record.exit_code, record.reason) == (0, "Completed")


async def test_a_program_that_is_not_there_is_a_start_error(node: RealNode, engine: Engine) -> None:
    config = replace(node.container(), command=("/no/such/program",))
    sandbox_id = await engine.run_sandbox(node.sandbox(), "")
    container_id = await engine.create_container(sandbox_id, config)
    with pytest.raises(HostError, match="not found"):
        await engine.start_container(container_id)
    record = engine.container(container_id)
    assert (record.exit_code, record.reason) == (128, "StartError")
    assert "/no/such/program" in record.message


async def test_volumes_are_mounted_as_they_are_asked_for(node: RealNode, engine: Engine) -> None:
    volume = node.root / "volume"
    volume.mkdir(exist_ok=True)
    (volume / "greeting").write_text("hello\n")
    mounts = (
        Mount(container_path="/data", host_path=str(volume)),
        Mount(container_path="/sealed", host_path=str(volume), readonly=True),
    )
    script = "cat /data/greeting; echo bye > /data/parting; echo no > /sealed/parting || exit 4"
    config = replace(node.container(script=script), mounts=mounts)
    record = await ended(engine, await started(node, engine, config))
    assert record.exit_code == 4
    assert (volume / "parting").read_text() == "bye\n"


async def test_a_pod_with_the_nodes_namespaces_runs(node: RealNode, engine: Engine) -> None:
    namespaces = Namespaces(
        network=NamespaceMode.NODE, ipc=NamespaceMode.NODE, pid=NamespaceMode.NODE
    )
    config = replace(node.sandbox(), namespaces=namespaces, hostname="")
    sandbox_id = await engine.run_sandbox(config, "")
    container = replace(
        node.container(script="hostname; echo $$; exit 0"),
        security=ContainerSecurity(namespaces=namespaces),
    )
    container_id = await engine.create_container(sandbox_id, container)
    await engine.start_container(container_id)
    record = await ended(engine, container_id)
    words = [line.split()[3] for line in engine.log_file(record).read_text().splitlines()]
    assert words[0] == os.uname().nodename
    assert int(words[1]) > 10


async def test_nothing_of_a_container_runs_on_when_it_was_stopped_on_the_nodes_pids(
    node: RealNode, engine: Engine
) -> None:
    namespaces = Namespaces(pid=NamespaceMode.NODE)
    sandbox_id = await engine.run_sandbox(replace(node.sandbox(), namespaces=namespaces), "")
    script = (
        f"busybox sh -c 'trap : TERM; while :; do sleep 0.05; done' nr-engine-{node.token} & wait"
    )
    container = replace(
        node.container(script=script), security=ContainerSecurity(namespaces=namespaces)
    )
    container_id = await engine.create_container(sandbox_id, container)
    await engine.start_container(container_id)
    await engine.stop_container(container_id, 0.0)
    # Who waits for the end does not wait for what is taken away after it.
    await until(lambda: [line for line in node.processes() if "conmon" not in line] == [])


async def test_a_pod_runs_and_logs_on_when_its_runtime_is_replaced(node: RealNode) -> None:
    empty = node.census()
    first = node.engine()
    await first.recover()
    script = "n=0; while :; do n=$((n+1)); echo $n; sleep 0.02; done"
    container_id = await started(node, first, node.container(script=script))
    await first.close()  # nothing is told to the container
    log = first.log_file(first.container(container_id))
    size = log.stat().st_size
    second = node.engine()
    await second.recover()
    assert second.container(container_id).state is ContainerState.RUNNING
    assert second.container(container_id).pid == first.container(container_id).pid
    await until(lambda: log.stat().st_size > size + 100)
    await Scene(node, second).remove_everything()
    await second.close()
    assert node.leftovers(empty) == []


async def kill_monitor(node: RealNode, engine: Engine, container_id: str) -> None:
    """Kill it once the container has written "begun"."""
    log = engine.log_file(engine.container(container_id))
    # Else it ends by SIGPIPE there.
    await until(lambda: log.exists() and "begun" in log.read_text())
    bundle = node.config.run_dir / "containers" / container_id
    os.kill(int((bundle / "conmon.pid").read_text()), signal.SIGKILL)


async def without_monitor(node: RealNode, engine: Engine, script: str) -> str:
    container_id = await started(node, engine, node.container(script=f"echo begun; {script}"))
    await kill_monitor(node, engine, container_id)
    await until(lambda: engine.container(container_id).monitor_lost)
    return container_id


@pytest.mark.parametrize(
    ("end", "code", "reason"),
    [
        pytest.param("exit 7", 7, "Error", id="an exit code"),
        pytest.param("kill -SEGV $$", 139, "Error", id="a signal"),
        pytest.param("exit 0", 0, "Completed", id="success"),
        pytest.param("while :; do echo x; done", 141, "Error", id="a write to nobody"),
    ],
)
async def test_a_container_whose_monitor_was_killed_runs_on_and_its_exit_code_is_told(
    node: RealNode,
    engine: Engine,
    monkeypatch: pytest.MonkeyPatch,
    end: str,
    code: int,
    reason: str,
) -> None:
    monkeypatch.setattr(exits, "LOOK_EVERY_S", 0.1)
    script = f"until [ -e /go ]; do busybox sleep 0.05; done; {end}"
    # Not as PID 1, which the kernel would keep from its own signals.
    container_id = await without_monitor(node, engine, f"sh -c '{script}'; exit $?")
    running = engine.container(container_id)
    assert "killed" in running.message
    log = engine.log_file(running).read_text().splitlines()
    assert "noderuntime: the container's monitor was killed" in log[-1]
    for call in (engine.attach(container_id), engine.reopen_log(container_id)):
        with pytest.raises(FailedPreconditionError, match="lost its monitor"):
            await call
    result = await engine.exec_sync(container_id, ("/bin/busybox", "touch", "/go"), DEADLINE_S)
    assert result.exit_code == 0
    record = await ended(engine, container_id)
    assert (record.exit_code, record.reason) == (code, reason)
    assert "exit code is the kernel's" in record.message


async def test_a_runtime_that_found_a_container_without_a_monitor_knows_its_end(
    node: RealNode,
) -> None:
    empty = node.census()
    first = node.engine()
    await first.recover()
    script = "trap 'exit 5' TERM; echo begun; sleep 60 & wait"
    container_id = await started(node, first, node.container(script=script))
    await kill_monitor(node, first, container_id)
    await first.close()
    second = node.engine()
    await second.recover()
    await second.stop_container(container_id, DEADLINE_S)
    record = second.container(container_id)
    assert (record.exit_code, record.reason) == (5, "Error")
    await Scene(node, second).remove_everything()
    await second.close()
    assert node.leftovers(empty) == []


async def test_a_container_that_uses_too_much_memory_is_oom_killed(
    node: RealNode, engine: Engine
) -> None:
    script = "x=aaaaaaaaaaaaaaaa; while :; do x=$x$x; done"
    limit = Resources(memory_limit_bytes=16 << 20, memory_swap_limit_bytes=16 << 20)
    config = replace(node.container(script=script), resources=limit)
    record = await ended(engine, await started(node, engine, config))
    assert (record.exit_code, record.reason) == (137, "OOMKilled")
