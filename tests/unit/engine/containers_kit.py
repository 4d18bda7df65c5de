"""A container of the engine on fakes, brought to where a test begins."""

from __future__ import annotations

import asyncio

from noderuntime.engine.engine import Engine
from noderuntime.engine.state import ContainerRecord, ContainerState
from tests.fakes.engine import container_config, sandbox_config


async def created(engine: Engine, attempt: int = 0, **changes: object) -> str:
    sandbox_id = await engine.run_sandbox(sandbox_config(), "")
    return await engine.create_container(sandbox_id, container_config(attempt, **changes))


async def running(engine: Engine, attempt: int = 0, **changes: object) -> str:
    container_id = await created(engine, attempt, **changes)
    await engine.start_container(container_id)
    return container_id


async def ended(engine: Engine, container_id: str) -> ContainerRecord:
    async with asyncio.timeout(2):
        while (record := engine.container(container_id)).state is not ContainerState.EXITED:
            await engine._node.endings.wait(container_id, 0.1)  # pyright: ignore[reportPrivateUsage]
    return record
