"""Programs that hang, die, or talk nonsense: every call ends and says why, a retry works."""

from __future__ import annotations

import asyncio
import time
from contextlib import contextmanager
from typing import TYPE_CHECKING

import pytest

from noderuntime.engine import container_stop, network, recovery
from noderuntime.engine.engine import steps_of
from noderuntime.errors import NodeRuntimeError
from noderuntime.host import monitor, oci_runtime
from noderuntime.network import plugin
from tests.root.engine_kit import SETTLE_S
from tests.root.engine_scene import Scene, made_node_of
from tests.root.faults_kit import FAULTS, WITHIN, FaultyNode

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Iterator

    from noderuntime.engine.engine import Engine

PROGRAMS = (
    *("bridge.ADD", "bridge.DEL", "host-local.ADD", "host-local.DEL", "conmon."),
    *("crun.create", "crun.start", "crun.kill", "crun.state", "crun.delete", "crun.exec"),
)
# A DEL that says it is done and did nothing cannot be told from one that did: it has no answer.
CASES = [
    (place, fault)
    for place in PROGRAMS
    for fault in (*FAULTS, *WITHIN)
    if not (place.endswith(".DEL") and fault == "garbage")
]
CALL_S = 40.0  # no call takes longer: its programs have a second or two each, on a busy machine
LIFE = ("run_sandbox", "create_container", "start_container", "exec", "stop_container")
END = ("remove_container", "stop_sandbox", "remove_sandbox")
# Where there may be a monitor: asked of the code, so that a new step is covered.
MONITORED = tuple(
    f"{place}:{when}"
    for place in steps_of()
    if not place.startswith(("run_sandbox", "create_container"))
    for when in ("before", "after")
)


@pytest.fixture(scope="module")
def node(tmp_path_factory: pytest.TempPathFactory) -> Iterator[FaultyNode]:
    with made_node_of(FaultyNode, tmp_path_factory.mktemp("nr-faults")) as real:
        yield real


@contextmanager
def short_deadlines() -> Iterator[None]:
    """Shorten what a hanging program is given, but not what a retry is given on a busy machine."""
    with pytest.MonkeyPatch.context() as patch:
        defaults = {**(plugin.Call.__init__.__kwdefaults__ or {}), "timeout_s": 1.5}
        patch.setattr(plugin.Call.__init__, "__kwdefaults__", defaults)
        patch.setattr(oci_runtime, "_TIMEOUT_S", 1.5)
        patch.setattr(oci_runtime, "_KILL_TIMEOUT_S", 1.0)
        patch.setattr(container_stop, "OBEYS_S", 0.5)
        patch.setattr(container_stop, "KILLED_S", 3.0)
        patch.setattr(monitor, "_CREATE_TIMEOUT_S", 2.0)
        yield


@pytest.fixture
def impatient(monkeypatch: pytest.MonkeyPatch) -> None:
    """What the engine tries again every half minute, it tries several times a second."""
    monkeypatch.setattr(recovery, "TRY_AGAIN_S", 0.3)
    monkeypatch.setattr(network, "TRY_AGAIN_S", 0.3)


@pytest.fixture
async def engine(node: FaultyNode, impatient: None) -> AsyncIterator[Engine]:
    del impatient
    engine = node.engine()
    await engine.recover()
    running = asyncio.Task(engine.run())
    await asyncio.sleep(0)
    yield engine
    await Scene(node, engine).remove_everything()
    running.cancel()
    await asyncio.wait([running])


async def call(scene: Scene, verb: str, exec_s: float = 30.0) -> str:
    """Call and return what the caller is told, "" for success. Any other exception is a bug."""
    try:
        async with asyncio.timeout(CALL_S):
            if verb != "exec":
                await scene.call(verb)
            else:
                command = ("/bin/busybox", "true")
                result = await scene.engine.exec_sync(scene.container_id, command, exec_s)
                return "" if result.exit_code == 0 else f"exit code {result.exit_code}"
    except NodeRuntimeError as error:
        assert error.for_kubelet()
        return error.for_kubelet()
    return ""


@pytest.mark.parametrize(("place", "fault"), CASES)
async def test_a_faulty_program_fails_a_call_within_its_time_and_the_retry_works(
    node: FaultyNode, engine: Engine, place: str, fault: str
) -> None:
    empty = node.census()
    scene = Scene(node, engine)
    node.fail(place, fault)
    with short_deadlines():
        told = [answer for verb in (*LIFE, *END) if (answer := await call(scene, verb, 3.0))]
    node.fail(place, "")
    silent = [sentence for sentence in told if not sentence.strip("}{ :")]
    assert silent == []
    for verb in (*END, *LIFE, *END):  # what failed to end is retried first
        assert await call(scene, verb) == "", verb
    await scene.remove_everything()
    until = time.monotonic() + SETTLE_S
    while node.census() != empty and time.monotonic() < until:
        await asyncio.sleep(0.1)  # the engine lets go of the rest meanwhile
    assert node.leftovers(empty) == []


@pytest.mark.parametrize("place", MONITORED)
async def test_a_monitor_killed_at_any_step_fails_no_more_than_that_call(
    node: FaultyNode, impatient: None, place: str
) -> None:
    del impatient
    empty, killed = node.census(), list[str]()

    async def kill(verb: str, step: str) -> None:
        if f"{verb}/{step}" == place and not killed:
            killed.append(place)
            node.kill_monitors()

    engine = node.engine(kill)
    await engine.recover()
    scene = Scene(node, engine)
    verb = place.partition("/")[0]
    await scene.prepare(verb)
    with short_deadlines():
        await call(scene, verb)
    assert killed == [place]
    for again in (*END, *LIFE, *END):
        assert await call(scene, again) == "", again
    await scene.remove_everything()
    assert node.leftovers(empty) == []
    await engine.close()
