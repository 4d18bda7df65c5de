"""The agent's loop: what is declared for the node goes into the file, what is served into the status.

It is level-triggered: a look does the same whether it comes from a change or from the clock. The
API server or the runtime may be away at any time; both are asked again, and Pods go on meanwhile.
Nothing is undone when the agent ends.
"""

from __future__ import annotations

import asyncio
import logging
import random
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import TYPE_CHECKING, Final

from noderuntime.agent import publish
from noderuntime.agent.report import Observation, status_of
from noderuntime.errors import NodeRuntimeError, NotFoundError, UnavailableError

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable
    from pathlib import Path

    from noderuntime.agent.cluster import Cluster, NodeState
    from noderuntime.api.revision import Revision
    from noderuntime.cri.client import RuntimeStatus

LOOK_S: Final = 10.0
RUNTIME_TIMEOUT_S: Final = 5.0
SERVED_WITHIN_S: Final = 5.0
SERVED_POLL_S: Final = 0.1
BACKOFF_FIRST_S: Final = 0.5
BACKOFF_LAST_S: Final = 30.0

_log = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True, kw_only=True)
class AgentSettings:
    """Which node, and where its files are."""

    node_name: str
    revision_file: Path


def backoff_s(failures: int) -> float:
    """Return how long to wait after so many failures in a row: doubling, with a fifth of jitter."""
    longest = min(BACKOFF_LAST_S, BACKOFF_FIRST_S * 2.0 ** min(failures - 1, 16))
    return longest * random.uniform(0.8, 1.0)  # noqa: S311 - spreads load, keeps no secret


class Agent:
    """One node's agent."""

    def __init__(
        self,
        settings: AgentSettings,
        cluster: Cluster,
        read_runtime: Callable[[], Awaitable[RuntimeStatus]],
    ) -> None:
        """``read_runtime`` asks the runtime with a deadline; it raises NodeRuntimeError."""
        self._settings = settings
        self._cluster = cluster
        self._read_runtime = read_runtime
        self._state: NodeState | None = None
        self._revision: Revision | None = None  # the one last fetched; revisions never change
        self._changed = asyncio.Event()

    async def run(self) -> None:
        """Run until cancelled."""
        async with asyncio.TaskGroup() as group:
            group.create_task(self._watch(), name="watch")
            group.create_task(self._look_again_and_again(), name="look")

    async def _watch(self) -> None:
        failures = 0
        while True:
            try:
                async for state in self._cluster.watch(self._settings.node_name):
                    failures = 0
                    self._state = state
                    self._changed.set()
            except NodeRuntimeError as error:
                failures += 1
                _log.warning("cannot watch", extra={"reason": error.reason, "text": str(error)})
                await asyncio.sleep(backoff_s(failures))

    async def _look_again_and_again(self) -> None:
        failures = 0
        while True:
            try:
                await self.look()
                failures = 0
                await self._wait(LOOK_S)
            except UnavailableError as error:
                failures += 1
                _log.warning("cannot report", extra={"reason": error.reason, "text": str(error)})
                await asyncio.sleep(backoff_s(failures))

    async def _wait(self, timeout_s: float) -> None:
        try:
            async with asyncio.timeout(timeout_s):
                await self._changed.wait()
        except TimeoutError:
            return
        self._changed.clear()

    async def look(self) -> None:
        """Bring the file up to date, ask the runtime, report. Raises UnavailableError."""
        state = self._state
        if state is None:
            return  # nothing is declared for this node: what it serves stays as it is
        seen = await self._observe(state)
        status = status_of(state, seen, _now())
        if status == state.status:
            return
        try:
            written = await self._cluster.write_status(state, status)
        except NotFoundError as error:
            _log.info("state is gone", extra={"text": str(error)})
            written = None
        if self._state is state:  # else a newer one came in meanwhile, and has set `_changed`
            self._state = written
        _log.info(
            "status reported",
            extra={
                "ready": status.conditions[0].status,
                "reason": status.conditions[0].reason,
                "text": status.conditions[0].message,
            },
        )

    async def _observe(self, state: NodeState) -> Observation:
        revision_error: NodeRuntimeError | None = None
        try:
            await self._publish(state)
        except UnavailableError:
            raise  # the API server is away: a status cannot be written either
        except NodeRuntimeError as error:
            revision_error = error
        try:
            runtime = await self._until_served("" if revision_error else state.spec.revision.digest)
        except NodeRuntimeError as error:
            return Observation(runtime=None, revision_error=revision_error, runtime_error=error)
        return Observation(runtime=runtime, revision_error=revision_error)

    async def _publish(self, state: NodeState) -> None:
        wanted = state.spec.revision
        if self._revision is None or self._revision.digest != wanted.digest:
            self._revision = await self._cluster.revision(wanted.name, wanted.digest)
        if await publish.publish(self._revision, self._settings.revision_file):
            _log.info("revision written", extra={"revision": wanted.digest})

    async def _until_served(self, digest: str) -> RuntimeStatus:
        """Ask until the runtime serves ``digest``, for a short time; "" asks once."""
        deadline = asyncio.get_running_loop().time() + SERVED_WITHIN_S
        while True:
            runtime = await self._read_runtime()
            if not digest or runtime.served.revision == digest:
                return runtime
            if asyncio.get_running_loop().time() >= deadline:
                return runtime
            await asyncio.sleep(SERVED_POLL_S)


def _now() -> str:
    return datetime.now(UTC).strftime("%Y-%m-%dT%H:%M:%SZ")
