"""``noderuntime serve``: puts the parts together and runs them until a signal.

The order is what matters: the folders are ours alone, then what was cut off is finished or undone,
and only then the socket answers. At the end the socket goes first. Pods run on in both cases.
"""

from __future__ import annotations

import asyncio
import gc
import logging
import os
from collections import Counter
from typing import TYPE_CHECKING

from noderuntime.api.config import Config, load_config
from noderuntime.cli import heap, places, tracing
from noderuntime.cli.parts import parts_of
from noderuntime.cli.signals import notify, until_signal
from noderuntime.cri.image_service import ImageService
from noderuntime.cri.runtime_service import RuntimeService
from noderuntime.cri.server import AGENT_METHODS, CriServer
from noderuntime.cri.streaming.server import StreamingServer
from noderuntime.engine.engine import Engine
from noderuntime.engine.state import ContainerState
from noderuntime.telemetry import http, log, metrics, trace

if TYPE_CHECKING:
    import argparse

    from noderuntime.host.ports import CgroupDriver

_log = logging.getLogger(__name__)


def main(options: argparse.Namespace) -> int:
    """Run until a signal. Raises ConfigError, UnavailableError."""
    heap.keep_small()
    log.setup(logging.getLevelNamesMapping()[options.log_level.upper()])
    config = load_config(options.config)
    with places.only_one(config):
        asyncio.run(until_signal(serve(config)))
    return 0


async def serve(config: Config) -> None:
    """Recover, then answer until cancelled."""
    parts = parts_of(config)
    engine = Engine(parts)
    readiness = Readiness(config, engine)
    probes = http.Probes(not_ready_because=readiness.not_ready_because, metrics=metrics.render)
    async with http.serving(config.metrics.address, probes):
        await engine.recover()
        readiness.recovered = True
        metrics.watch_node(lambda: reading(engine))
        async with asyncio.TaskGroup() as group:
            running = group.create_task(engine.run(), name="engine")
            follows = group.create_task(
                tracing.follow(config.revision, lambda: engine.status().revision), name="tracing"
            )
            try:
                await answer(config, engine, parts.cgroups.driver())
            finally:
                running.cancel()
                follows.cancel()
        await trace.shutdown()


async def answer(config: Config, engine: Engine, driver: CgroupDriver) -> None:
    """Open the sockets until cancelled. Raises ConfigError, UnavailableError."""
    streaming = StreamingServer(engine, config.streaming.address)
    runtime = RuntimeService(engine, streaming, driver)
    images = ImageService(engine)
    server = CriServer(config.socket, runtime, images)
    # A folder of its own: what the agent mounts must hold neither Pods' namespaces nor their files.
    agents = CriServer(config.run_dir / places.AGENT_SOCKET, runtime, images, only=AGENT_METHODS)
    await streaming.start()
    try:
        await server.start()
        try:
            await agents.start()
            gc.collect()
            gc.freeze()  # what was imported stays: the collector need not walk it again and again
            notify("READY=1")
            _log.info("serving", extra={"socket": str(config.socket)})
            await asyncio.Event().wait()
        finally:
            engine.end_events()
            await agents.stop()
            await server.stop()
    finally:
        await streaming.stop()


class Readiness:
    """Why Pods cannot be run now, for /readyz."""

    def __init__(self, config: Config, engine: Engine) -> None:
        """Not ready until ``recovered`` is set."""
        self._config = config
        self._engine = engine
        self.recovered = False

    def not_ready_because(self) -> str:
        """Return a sentence, or "" when Pods can be run."""
        if not self.recovered:
            return "what was cut off by the last end is being finished or undone"
        for name, handler in self._config.handlers.items():
            if not os.access(handler.oci_runtime, os.X_OK):
                return f"handler {name}: {handler.oci_runtime} is not a program: install it"
        return self._engine.status().network_not_ready


def reading(engine: Engine) -> metrics.NodeReading:
    """Return what is there now, for /metrics."""
    status = engine.status()
    return metrics.NodeReading(
        sandboxes=Counter(record.state.value for record in engine.sandboxes()),
        containers=Counter(record.state.value for record in engine.containers()),
        revision=status.revision,
        revision_valid=not status.revision_error,
        stale_containers=len(status.stale_containers),
        ungoverned_pods=status.ungoverned_pods,
        lost_monitors=sum(
            record.monitor_lost and record.state is ContainerState.RUNNING
            for record in engine.containers()
        ),
    )
