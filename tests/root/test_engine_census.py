"""The runtime, killed at every step of every verb on a real node: nothing stays, retries work."""

from __future__ import annotations

import asyncio
import os
import signal
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import pytest
from pydantic import TypeAdapter

from noderuntime.engine.engine import steps_of
from noderuntime.errors import HostError, NodeRuntimeError
from noderuntime.policy.model import Namespaces
from tests.root.engine_kit import OWN_USERS, SHARED_PID, RealNode
from tests.root.engine_scene import MAKING, Scene, searchable_node
from tests.root.host_kit import descriptors
from tests.waiting import until

# A kill after a step is the kill before the next one, but for the last.
LAST = {place.partition("/")[0]: place for place in steps_of()}
PLACES = [f"{place}:before" for place in steps_of()] + [f"{p}:after" for p in LAST.values()]
UNDONE = [place for place in PLACES if place.partition("/")[0] in MAKING]


# Shared PID namespaces and user namespaces have a first process, which is the sandbox's.
MODES = [
    *((place, Namespaces()) for place in PLACES),
    *((place, SHARED_PID) for place in PLACES if "_sandbox/" in place),
    *((place, OWN_USERS) for place in PLACES if place.startswith(("run_", "create_"))),
]


@pytest.fixture(scope="module")
def node() -> Iterator[RealNode]:
    with searchable_node("census") as real:
        yield real


async def kill_at(node: RealNode, place: str) -> None:
    """Run the verb in a process of its own, which ends by SIGKILL at ``place``."""
    repository = Path(__file__).parents[2]
    namespaces = TypeAdapter(Namespaces).dump_json(node.namespaces).decode()
    arguments = (node.root, node.token, place, namespaces)
    command = (sys.executable, "-m", "tests.root.engine_driver", *arguments)
    driver = await asyncio.to_thread(
        subprocess.run,
        command,
        cwd=repository,
        env={**os.environ, "PYTHONPATH": f"{repository}:{repository / 'operator'}"},
        capture_output=True,
        timeout=60,
        check=False,
    )
    assert driver.returncode == -signal.SIGKILL, driver.stderr.decode()


async def leaves_nothing_killed_at(node: RealNode, place: str) -> None:
    """Kill the runtime at a step; the next one finds its way, and in the end nothing is left."""
    verb = place.partition("/")[0]
    empty, open_before = node.census(), descriptors()
    first = node.engine()
    await first.recover()
    await Scene(node, first).prepare(verb)
    await first.close()
    before = node.census()

    await kill_at(node, place)

    engine = node.engine()
    await engine.recover()
    if verb in MAKING and not place.endswith(":after"):
        assert node.leftovers(before) == []
    scene = Scene(node, engine)
    await scene.call(verb)
    await scene.remove_everything()
    assert node.leftovers(empty) == []
    await engine.close()
    await until(lambda: descriptors() <= open_before)


async def leaves_nothing_killed_after(node: RealNode, seconds: float) -> None:
    """Kill the runtime at a moment; the next one finds its way, and in the end nothing is left."""
    empty = node.census()
    await kill_at(node, f"after:{seconds:.3f}")
    engine = node.engine()
    await engine.recover()
    scene = Scene(node, engine)
    await scene.remove_everything()
    assert node.leftovers(empty) == []
    await scene.prepare("stop_container")
    await scene.remove_everything()
    assert node.leftovers(empty) == []
    await engine.close()


@pytest.mark.parametrize(("place", "namespaces"), MODES)
async def test_a_killed_runtime_leaves_nothing_behind_and_the_retry_works(
    node: RealNode, place: str, namespaces: Namespaces
) -> None:
    await leaves_nothing_killed_at(replace(node, namespaces=namespaces), place)


@pytest.mark.parametrize("namespaces", [Namespaces(), SHARED_PID, OWN_USERS])
@pytest.mark.parametrize("number", range(16))
async def test_a_runtime_killed_in_the_middle_of_a_step_leaves_nothing_behind(
    node: RealNode, number: int, namespaces: Namespaces
) -> None:
    node = replace(node, namespaces=namespaces)
    await leaves_nothing_killed_after(node, 0.005 + number * 0.017)


@pytest.mark.parametrize("how", ["error", "cancel"])
@pytest.mark.parametrize(("place", "namespaces"), [mode for mode in MODES if mode[0] in UNDONE])
async def test_a_failed_step_leaves_nothing_behind(
    node: RealNode, place: str, namespaces: Namespaces, how: str
) -> None:
    node = replace(node, namespaces=namespaces)
    verb = place.partition("/")[0]
    empty, open_before = node.census(), descriptors()

    async def fail_here(called: str, step: str) -> None:
        if f"{called}/{step}" == place:
            raise HostError("injected") if how == "error" else asyncio.CancelledError

    engine = node.engine(fail_here)
    await engine.recover()
    scene = Scene(node, engine)
    await scene.prepare(verb)
    before = node.census()
    with pytest.raises(NodeRuntimeError):
        await scene.call(verb)
    assert node.leftovers(before) == []
    await scene.remove_everything()
    assert node.leftovers(empty) == []
    await engine.close()
    await until(lambda: descriptors() <= open_before)
