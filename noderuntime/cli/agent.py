"""``noderuntime agent``: runs in the DaemonSet; knows the API server and the runtime's socket."""

from __future__ import annotations

import asyncio
import logging
from typing import TYPE_CHECKING

import httpx2
from lightkube import AsyncClient
from lightkube.core.exceptions import ConfigError as LightkubeConfigError

from noderuntime.agent.agent import RUNTIME_TIMEOUT_S, Agent, AgentSettings
from noderuntime.agent.cluster import FIELD_MANAGER, ApiServer
from noderuntime.cli.signals import notify, until_signal
from noderuntime.cri.client import RuntimeStatus, read_status
from noderuntime.errors import ConfigError
from noderuntime.telemetry import log

if TYPE_CHECKING:
    import argparse

API_TIMEOUT_S = 10.0


def main(options: argparse.Namespace) -> int:
    """Run until a signal. Raises ConfigError where it cannot know the node or the API server."""
    log.setup(logging.getLevelNamesMapping()[options.log_level.upper()])
    if not options.node_name:
        raise ConfigError("the node's name is not known: set NODE_NAME or --node-name")
    asyncio.run(until_signal(_run(options)))
    return 0


async def _run(options: argparse.Namespace) -> None:
    async def read_runtime() -> RuntimeStatus:
        return await read_status(options.socket, RUNTIME_TIMEOUT_S)

    try:
        client = AsyncClient(field_manager=FIELD_MANAGER, timeout=httpx2.Timeout(API_TIMEOUT_S))
    except (LightkubeConfigError, KeyError, OSError) as error:
        raise ConfigError(f"there is no way to the API server: {error}") from error
    settings = AgentSettings(node_name=options.node_name, revision_file=options.revision_file)
    async with client:
        agent = Agent(settings, ApiServer(client, options.namespace), read_runtime)
        notify("READY=1")
        await agent.run()
