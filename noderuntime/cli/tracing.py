"""Tracing follows the revision: on, off or to another collector, without a restart.

The first handler by name that declares ``tracing`` decides for the node, because a node's spans are
of the node: one Pod's start touches images and networks that others share.
"""

from __future__ import annotations

import asyncio
import logging
from typing import TYPE_CHECKING, Final

import noderuntime
from noderuntime.api.revision import Revision
from noderuntime.errors import NodeRuntimeError
from noderuntime.host import durable
from noderuntime.telemetry import trace

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

LOOK_S: Final = 1.0

_log = logging.getLogger(__name__)


def settings_of(revision: Revision | None) -> trace.TraceSettings | None:
    """Return what the revision declares, or None."""
    if revision is None:
        return None
    for handler in sorted(revision.handlers, key=lambda handler: handler.name):
        if handler.tracing is not None:
            return trace.TraceSettings(
                endpoint=handler.tracing.endpoint,
                sampling_rate_per_million=handler.tracing.sampling_rate_per_million,
                version=noderuntime.__version__,
            )
    return None


async def follow(path: Path, served: Callable[[], str]) -> None:
    """Configure tracing from the file whenever another revision is ``served``, until cancelled."""
    applied = ""
    while True:
        digest = served()
        if digest != applied:
            revision = _read(path) if digest else None
            # A file that is newer than what is served is looked at again when it is served.
            if not digest or (revision is not None and revision.digest == digest):
                await _apply(settings_of(revision))
                applied = digest
        await asyncio.sleep(LOOK_S)


def _read(path: Path) -> Revision | None:
    try:
        data = durable.read(path)
        return None if data is None else Revision.model_validate_json(data)
    except (NodeRuntimeError, ValueError):
        return None


async def _apply(settings: trace.TraceSettings | None) -> None:
    if settings is not None:
        await asyncio.to_thread(trace.preload)  # a quarter of a second, which calls need not wait
    trace.configure(settings)
    _log.info("tracing", extra={"endpoint": settings.endpoint if settings else "off"})
