"""Each verb killed at each moment, and the recovery after it too: what was begun is settled.

``FuzzedNode`` asserts that after each start, before anything else looks.
"""

from __future__ import annotations

import asyncio
import tempfile
from pathlib import Path

import pytest

from noderuntime.engine.store import COPY
from tests.fuzz.profile import FACTOR
from tests.fuzz.real_engine import FuzzedNode
from tests.fuzz.test_cri_given_up import MOST_TURNS, OK, VERBS, Life

RUNS = 3  # verbs that bring a container to where it runs
STRIDE = 3 if FACTOR == 1 else 1


async def _killed(root: Path, verb: str, *, again: bool) -> int:
    """Kill one moment later each time, until the verb is through; return how often."""
    node = FuzzedNode(root)
    await node.start()
    try:
        for moment in range(0, MOST_TURNS, 1 if not again else STRIDE):
            life = Life(node)
            await life.up_to(verb)
            node.process.dies_in = moment
            code = await life.call(verb)
            node.process.dies_in = -1
            if code is OK:
                return moment
            await node.restart(kill=True, dies_in=moment // 2 if again else -1)
            await node.check()
            assert await life.call(verb) is OK  # the kubelet's retry
            await node.check()
            for record in node.engine.sandboxes():
                await node.engine.remove_sandbox(record.id)
    finally:
        await node.end()
    raise AssertionError(f"{verb} has no end")


@pytest.mark.slow
@pytest.mark.parametrize("again", [False, True], ids=["once", "and in its recovery"])
@pytest.mark.parametrize("verb", VERBS)
def test_what_a_kill_left_is_settled_by_the_next_start(verb: str, again: bool) -> None:
    with tempfile.TemporaryDirectory(prefix="nr-fuzz-") as root:
        assert asyncio.run(_killed(Path(root), verb, again=again)) > 3


async def _ends_meanwhile(root: Path) -> None:
    node = FuzzedNode(root)
    await node.start()
    try:
        life = Life(node)
        await life.up_to(VERBS[RUNS])
        await node.restart(kill=True, meanwhile=lambda: node.world.end(life.container, 7))
        assert node.engine.container(life.container).exit_code == 7
        await node.check()
    finally:
        await node.end()


def test_what_ended_while_there_was_no_runtime_is_known_before_it_answers() -> None:
    with tempfile.TemporaryDirectory(prefix="nr-fuzz-") as root:
        asyncio.run(_ends_meanwhile(Path(root)))


async def _loses(root: Path, kind: str) -> None:
    """Damage a record and its copy while there is no runtime."""
    node = FuzzedNode(root)
    await node.start()
    try:
        life = Life(node)
        await life.up_to(VERBS[RUNS])
        lost = life.sandbox if kind == "sandboxes" else life.container

        def damage() -> None:
            for file in (f"state/{kind}/{lost}.json", f"run/{kind}/{lost}/{COPY}"):
                (root / file).write_text("{")

        node.is_damaged = True
        await node.restart(kill=True, meanwhile=damage)  # asserts that nothing of it is left
        node.is_damaged = False
        assert len(node.engine.sandboxes()) == (kind != "sandboxes")
        assert node.engine.containers() == ()
        assert "corrupted" in node.log.take()
        for aside in root.glob("state/*/*.corrupt"):
            aside.unlink()
    finally:
        await node.end()


@pytest.mark.parametrize("kind", ["sandboxes", "containers"])
def test_nothing_is_left_of_what_no_record_knows(kind: str) -> None:
    with tempfile.TemporaryDirectory(prefix="nr-fuzz-") as root:
        asyncio.run(_loses(Path(root), kind))
