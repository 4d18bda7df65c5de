"""One node for all attacks; each begins and ends with the same census of it."""

from __future__ import annotations

import asyncio
import shutil
from collections.abc import AsyncIterator, Iterator

import pytest

from noderuntime.engine.engine import Engine
from noderuntime.images.store import ImageStore
from tests.root.attacks.attack_kit import SECRET, Attack
from tests.root.engine_kit import RealNode
from tests.root.engine_scene import Scene, searchable_node


@pytest.fixture(scope="session")
def node() -> Iterator[RealNode]:
    with searchable_node("attacks") as real:
        yield real


@pytest.fixture
async def attack(node: RealNode) -> AsyncIterator[Attack]:
    for name in ("logs", "pods", "victim"):
        shutil.rmtree(node.root / name, ignore_errors=True)
    (node.root / "victim").mkdir(mode=0o755)
    (node.root / "current").unlink(missing_ok=True)  # a profile of another test
    empty = node.census()
    parts = node.parts()
    assert isinstance(parts.images, ImageStore)
    made = Attack(node, Engine(parts), parts.images)
    made.secret.write_text(SECRET)
    await made.engine.recover()
    running = asyncio.Task(made.engine.run())
    await asyncio.sleep(0)
    try:
        yield made
    finally:
        await Scene(node, made.engine).remove_everything()
        running.cancel()
        await asyncio.wait([running])
        await made.engine.close()
    assert node.leftovers(empty) == []
    assert [path.name for path in (node.root / "victim").iterdir()] == ["secret"]
    assert made.secret.read_text() == SECRET
