"""An engine on fakes, recovered and watching, as it is when the socket answers."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from pathlib import Path

import pytest

from noderuntime.engine.engine import Engine
from tests.fakes.engine import World, new_engine, new_world


@pytest.fixture
def world(tmp_path: Path) -> World:
    return new_world(tmp_path)


@pytest.fixture(autouse=True)
def no_fsync(monkeypatch: pytest.MonkeyPatch) -> None:
    """What a power loss takes is not looked at in here, and a disk's flush takes milliseconds."""
    monkeypatch.setattr("os.fsync", lambda _descriptor: None)


@pytest.fixture
async def engine(world: World) -> AsyncIterator[Engine]:
    engine = new_engine(world)
    await engine.recover()
    running = asyncio.Task(engine.run())
    await asyncio.sleep(0)
    yield engine
    running.cancel()
    with pytest.raises(asyncio.CancelledError):
        await running
