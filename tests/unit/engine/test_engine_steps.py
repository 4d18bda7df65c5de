"""Every verb, cut off at every step in every way: nothing stays behind, and the retry works."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable

import pytest

from noderuntime.engine.container_stop import LONGEST_GRACE_S
from noderuntime.engine.engine import Engine, steps_of
from noderuntime.engine.verbs import CONTAINER_VERBS, SANDBOX_VERBS
from noderuntime.errors import HostError, NodeRuntimeError
from tests.fakes.engine import World, container_config, new_engine, sandbox_config

MAKING = ("run_sandbox", "create_container", "start_container")


def test_every_step_has_a_deadline() -> None:
    found = [(v.name, s.name, s.deadline_s) for v in SANDBOX_VERBS for s in v.steps]
    found += [(v.name, s.name, s.deadline_s) for v in CONTAINER_VERBS for s in v.steps]
    for verb, step, deadline_s in found:
        is_grace = (verb, step) == ("stop_container", "wait")
        assert 0 < deadline_s <= (LONGEST_GRACE_S + 60 if is_grace else 180), (verb, step)


class Fault:
    """Fails, cancels or freezes the engine at one place, once."""

    def __init__(self, place: str, how: str) -> None:
        self._place = place
        self._how = how
        self.hit = asyncio.Event()

    async def __call__(self, verb: str, step: str) -> None:
        if f"{verb}/{step}" != self._place or self.hit.is_set():
            return
        self.hit.set()
        if self._how == "error":
            raise HostError("injected")
        if self._how == "cancel":
            raise asyncio.CancelledError
        await asyncio.Event().wait()  # killed: this process does nothing any more


class Scene:
    """A Pod brought to where a verb can be called."""

    def __init__(self, engine: Engine) -> None:
        self.engine = engine
        self.sandbox_id = ""
        self.container_id = ""

    async def prepare(self, verb: str) -> None:
        if verb == "run_sandbox":
            return
        self.sandbox_id = await self.engine.run_sandbox(sandbox_config(), "")
        if verb == "create_container":
            return
        self.container_id = await self.engine.create_container(self.sandbox_id, container_config())
        if verb != "start_container":
            await self.engine.start_container(self.container_id)

    async def call(self, verb: str) -> None:
        calls: dict[str, Callable[[], Awaitable[object]]] = {
            "run_sandbox": lambda: self.engine.run_sandbox(sandbox_config(), ""),
            "stop_sandbox": lambda: self.engine.stop_sandbox(self.sandbox_id),
            "remove_sandbox": lambda: self.engine.remove_sandbox(self.sandbox_id),
            "create_container": lambda: self.engine.create_container(
                self.sandbox_id, container_config()
            ),
            "start_container": lambda: self.engine.start_container(self.container_id),
            "stop_container": lambda: self.engine.stop_container(self.container_id, 5.0),
            "remove_container": lambda: self.engine.remove_container(self.container_id),
        }
        await calls[verb]()

    async def remove_everything(self) -> None:
        for record in self.engine.sandboxes():
            await self.engine.remove_sandbox(record.id)


# What is cut off after a step is cut off before the next one, but for the last.
LAST = {step.partition("/")[0]: step for step in steps_of()}
PLACES = [f"{step}:before" for step in steps_of()] + [f"{step}:after" for step in LAST.values()]


@pytest.mark.parametrize("how", ["error", "cancel"])
@pytest.mark.parametrize("place", PLACES)
async def test_a_verb_leaves_nothing_behind_and_can_be_retried_when_a_step_fails(
    world: World, place: str, how: str
) -> None:
    verb = place.partition("/")[0]
    fault = Fault(place, how)
    engine = new_engine(world, faults=fault)
    await engine.recover()
    empty = world.census()
    scene = Scene(engine)
    await scene.prepare(verb)
    before = world.census()

    with pytest.raises(NodeRuntimeError):
        await scene.call(verb)

    assert fault.hit.is_set()
    if verb in MAKING:
        assert world.census() == before
    if verb == "start_container" and how == "error":
        failed = engine.container(scene.container_id)
        assert (failed.state, failed.exit_code, failed.reason) == (
            "CONTAINER_EXITED",
            128,
            "StartError",
        )
        assert "injected" in failed.message
        new = await engine.create_container(scene.sandbox_id, container_config(attempt=1))
        await engine.start_container(new)
    else:
        await scene.call(verb)
    await scene.remove_everything()
    assert world.census() == empty
    await engine.close()


@pytest.mark.parametrize("place", PLACES)
async def test_a_verb_is_undone_or_done_by_the_next_start_when_the_runtime_is_killed(
    world: World, place: str
) -> None:
    verb = place.partition("/")[0]
    fault = Fault(place, "kill")
    killed = new_engine(world, faults=fault)
    await killed.recover()
    empty = world.census()
    scene = Scene(killed)
    await scene.prepare(verb)
    before = world.census()
    async with asyncio.TaskGroup() as group:
        call = group.create_task(scene.call(verb))
        async with asyncio.timeout(5):
            await fault.hit.wait()

        engine = new_engine(world)
        await engine.recover()

        if verb in MAKING and not place.endswith("record:after"):
            assert world.census() == before
        scene.engine = engine
        await scene.call(verb)
        await scene.remove_everything()
        assert world.census() == empty
        await engine.close()
        call.cancel()
    await killed.close(grace_s=0.0)  # what the frozen one undoes now is not looked at any more
