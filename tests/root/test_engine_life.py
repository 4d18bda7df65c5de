"""What the kubelet builds on: stop signals, termination messages, containers that come and go."""

from __future__ import annotations

import shutil
from collections.abc import AsyncIterator, Iterator
from dataclasses import replace

import pytest

from noderuntime.engine.engine import Engine
from noderuntime.engine.state import ContainerRecord, ContainerState
from noderuntime.policy.model import ContainerConfig, Mount
from tests.root.engine_kit import RealNode
from tests.root.engine_scene import engine_on, made_node
from tests.waiting import until

DEADLINE_S = 30.0


@pytest.fixture(scope="module")
def node(tmp_path_factory: pytest.TempPathFactory) -> Iterator[RealNode]:
    with made_node(tmp_path_factory.mktemp("nr-engine-life")) as real:
        yield real


@pytest.fixture
async def engine(node: RealNode) -> AsyncIterator[Engine]:
    shutil.rmtree(node.root / "logs", ignore_errors=True)
    async with engine_on(node, watching=True) as engine:
        yield engine


async def start(engine: Engine, sandbox_id: str, config: ContainerConfig) -> str:
    container_id = await engine.create_container(sandbox_id, config)
    await engine.start_container(container_id)
    return container_id


async def ended(engine: Engine, container_id: str) -> ContainerRecord:
    await until(lambda: engine.container(container_id).state is ContainerState.EXITED)
    return engine.container(container_id)


async def wait_log(engine: Engine, container_id: str, word: str) -> None:
    log = engine.log_file(engine.container(container_id))
    await until(lambda: log.exists() and word in log.read_text())


@pytest.mark.parametrize(
    ("signal", "trapped"),
    [
        pytest.param("", "TERM", id="the image's"),
        pytest.param("SIGUSR1", "USR1", id="the Pod's"),
        pytest.param("SIGRTMIN+3", "RTMIN+3", id="a real-time one"),
    ],
)
async def test_a_stop_sends_the_signal_that_was_asked_for(
    node: RealNode, engine: Engine, signal: str, trapped: str
) -> None:
    number = {"RTMIN+3": "37"}.get(trapped, trapped)  # busybox knows it by its number
    script = f"trap 'exit 9' {number}; echo ready; while :; do busybox sleep 0.02; done"
    sandbox_id = await engine.run_sandbox(node.sandbox(), "")
    config = replace(node.container(script=script), stop_signal=signal)
    container_id = await start(engine, sandbox_id, config)
    await wait_log(engine, container_id, "ready")
    await engine.stop_container(container_id, DEADLINE_S)
    assert engine.container(container_id).exit_code == 9


async def test_a_termination_message_is_where_the_kubelet_looks_for_it(
    node: RealNode, engine: Engine
) -> None:
    message = node.root / "termination"
    message.touch(mode=0o666)
    mount = Mount(container_path="/dev/termination-log", host_path=str(message))
    script = "echo the reason >/dev/termination-log; exit 4"
    sandbox_id = await engine.run_sandbox(node.sandbox(), "")
    config = replace(node.container(script=script), mounts=(mount,))
    record = await ended(engine, await start(engine, sandbox_id, config))
    assert record.exit_code == 4
    assert [(m.container_path, m.host_path) for m in record.config.mounts] == [
        ("/dev/termination-log", str(message))
    ]
    assert message.read_text() == "the reason\n"


async def test_a_sidecar_runs_beside_what_comes_and_goes_and_is_started_again_alone(
    node: RealNode, engine: Engine
) -> None:
    """As the kubelet does with a restartable init container (KEP-753)."""
    sandbox_id = await engine.run_sandbox(node.sandbox(), "")

    def named(name: str, script: str = "", attempt: int = 0) -> ContainerConfig:
        log = f"{name}_{attempt}.log"
        return replace(node.container(attempt, script), name=name, log_path=log)

    sidecar = await start(engine, sandbox_id, named("sidecar"))
    first = await ended(engine, await start(engine, sandbox_id, named("init", "exit 0")))
    assert first.reason == "Completed"
    main = await start(engine, sandbox_id, named("main"))
    await engine.stop_container(sidecar, 0.0)
    again = await start(engine, sandbox_id, named("sidecar", attempt=1))
    await engine.remove_container(sidecar)
    states = {r.id: r.state for r in engine.containers() if r.sandbox_id == sandbox_id}
    running = ContainerState.RUNNING
    assert states == {main: running, again: running, first.id: ContainerState.EXITED}
    await engine.stop_container(main, DEADLINE_S)  # the main containers first, then the sidecars
    result = await engine.exec_sync(again, ("/bin/busybox", "true"), DEADLINE_S)
    assert result.exit_code == 0
    await engine.stop_sandbox(sandbox_id)
    assert engine.container(again).state is ContainerState.EXITED
