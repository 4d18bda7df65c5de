"""``noderuntime-operator``: one process, one loop; ``noderuntime-operator release`` lets go before removal."""

from __future__ import annotations

import argparse
import asyncio
import logging
import os
from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from typing import Any, Final

import httpx2
import kopf
from lightkube import ApiError, AsyncClient

from noderuntime.telemetry import log
from noderuntime_operator import handlers
from noderuntime_operator.apply import carry_out
from noderuntime_operator.health import serving
from noderuntime_operator.kinds import DEPLOYMENT
from noderuntime_operator.loop import Loop
from noderuntime_operator.observe import observe
from noderuntime_operator.reconcile.names import FIELD_MANAGER
from noderuntime_operator.reconcile.observed import Observed, Settings
from noderuntime_operator.release import release

_API_TIMEOUT_S: Final = 20.0
_START_RETRY_S: Final = 2.0

_log = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True, kw_only=True)
class Options:
    """What the environment says."""

    namespace: str
    agent_image: str
    deployment: str  # the operator's own; empty outside of a cluster
    health_address: str


def options_from(environment: dict[str, str]) -> Options:
    """Read the environment; raises SystemExit naming what is missing."""
    image = environment.get("NODERUNTIME_AGENT_IMAGE", "")
    if not image:
        raise SystemExit("NODERUNTIME_AGENT_IMAGE is not set: the image of the agent's DaemonSet")
    return Options(
        namespace=environment.get("POD_NAMESPACE", "noderuntime-system"),
        agent_image=image,
        deployment=environment.get("NODERUNTIME_DEPLOYMENT", ""),
        health_address=environment.get("NODERUNTIME_HEALTH_ADDRESS", "0.0.0.0:8080"),
    )


def main() -> None:
    """Run the command."""
    parser = argparse.ArgumentParser(prog="noderuntime-operator", description=__doc__)
    parser.add_argument("command", nargs="?", choices=["run", "release"], default="run")
    command = parser.parse_args().command
    log.setup()
    handlers.quieten()
    if command == "release":
        asyncio.run(_release())
    else:
        asyncio.run(_run(options_from(dict(os.environ))))


def _client() -> AsyncClient:
    return AsyncClient(field_manager=FIELD_MANAGER, timeout=httpx2.Timeout(_API_TIMEOUT_S))


async def _release() -> None:
    names = await release(_client())
    _log.info("NodeRuntimes released", extra={"node_runtimes": names})


async def _run(options: Options) -> None:
    client = _client()
    settings: Settings | None = None

    async def look() -> Observed:
        nonlocal settings
        if settings is None:
            settings = await _settings(client, options)
        return await observe(client, settings)

    loop = Loop(look, lambda plan: carry_out(client, plan, options.namespace))
    async with serving(loop, options.health_address):
        first = await _until_served(look)
        async with asyncio.TaskGroup() as group:
            passes = group.create_task(loop.run(), name="passes")
            try:
                # Ends on SIGTERM and SIGINT.
                await kopf.operator(
                    registry=handlers.registry(loop.changed, admission=not first.admission.problem),
                    settings=handlers.settings(),
                    standalone=True,
                    namespaces=[options.namespace],
                )
            finally:
                passes.cancel()


async def _settings(client: AsyncClient, options: Options) -> Settings:
    return Settings(
        namespace=options.namespace,
        agent_image=options.agent_image,
        owner=await _owner(client, options),
    )


async def _owner(client: AsyncClient, options: Options) -> dict[str, Any] | None:
    """Return the ownerReference to our Deployment: what we make beside it goes with it."""
    if not options.deployment:
        return None
    try:
        found: Any = await client.get(DEPLOYMENT, options.deployment, namespace=options.namespace)
    except ApiError as error:
        if error.status.code != 404:
            raise
        return None
    return {
        "apiVersion": "apps/v1",
        "kind": "Deployment",
        "name": options.deployment,
        "uid": found["metadata"]["uid"],
    }


async def _until_served(look: Callable[[], Awaitable[Observed]]) -> Observed:
    """Wait for the CRDs and the permissions: kopf looks only once which resources there are."""
    while True:
        try:
            return await look()
        except (httpx2.HTTPError, OSError) as error:
            _log.warning("waiting for the API", extra={"error": str(error) or type(error).__name__})
            await asyncio.sleep(_START_RETRY_S)


if __name__ == "__main__":
    main()
