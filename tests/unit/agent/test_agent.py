from __future__ import annotations

import asyncio
from dataclasses import replace
from typing import TYPE_CHECKING

import pytest

from noderuntime.agent import agent as agent_module
from noderuntime.agent.agent import Agent, AgentSettings, backoff_s
from noderuntime.agent.cluster import NodeState
from noderuntime.agent.publish import content_of, publish
from noderuntime.api.revision import Revision, RevisionHandler, RevisionProfile, make_revision
from noderuntime.api.securityprofile import SecurityProfileSpec
from noderuntime.api.state import NodeRuntimeStateSpec, NodeRuntimeStateStatus, RevisionRef
from noderuntime.cri.client import RuntimeStatus, Served
from noderuntime.errors import ConfigError, NotFoundError, UnavailableError

if TYPE_CHECKING:
    from collections.abc import AsyncIterator
    from pathlib import Path


def a_revision(*names: str) -> Revision:
    profile = RevisionProfile(name="web", spec=SecurityProfileSpec())
    return make_revision(
        tuple(RevisionHandler(name=name, node_runtime=name, profile=profile) for name in names)
    )


def declaring(revision: Revision, generation: int = 1) -> NodeState:
    ref = RevisionRef(name=f"noderuntime-{revision.digest[7:19]}", digest=revision.digest)
    return NodeState(
        name="node-a",
        uid="u1",
        generation=generation,
        spec=NodeRuntimeStateSpec(node_name="node-a", revision=ref),
    )


class FakeCluster:
    """An API server that keeps one state and can be away."""

    def __init__(self, *revisions: Revision) -> None:
        self.revisions = {revision.digest: revision for revision in revisions}
        self.events: asyncio.Queue[NodeState | None] = asyncio.Queue()
        self.written: list[NodeRuntimeStateStatus] = []
        self.fetched: list[str] = []
        self.failures = 0
        self.gone = False

    async def watch(self, name: str) -> AsyncIterator[NodeState | None]:
        assert name == "node-a"
        while True:
            yield await self.events.get()

    async def revision(self, name: str, digest: str) -> Revision:
        self._fail_if_told()
        self.fetched.append(digest)
        if digest not in self.revisions:
            raise NotFoundError(f"there is no ControllerRevision {name}")
        return self.revisions[digest]

    async def write_status(self, state: NodeState, status: NodeRuntimeStateStatus) -> NodeState:
        self._fail_if_told()
        if self.gone:
            raise NotFoundError("gone")
        self.written.append(status)
        return replace(state, status=status)

    def _fail_if_told(self) -> None:
        if self.failures:
            self.failures -= 1
            raise UnavailableError("the API server: connection refused")


class Runtime:
    """A runtime that serves what is in the file, as ours does."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.away = False
        self.stale: tuple[str, ...] = ()

    async def __call__(self) -> RuntimeStatus:
        if self.away:
            raise UnavailableError("the runtime does not answer")
        text = self.path.read_text() if self.path.exists() else ""
        try:
            served = Revision.model_validate_json(text)
        except ValueError:
            served = None
        names = tuple(handler.name for handler in served.handlers) if served else ()
        return RuntimeStatus(
            name="noderuntime",
            version="1",
            conditions=(),
            handlers=("", *names),
            served=Served(
                revision=served.digest if served else "",
                handlers=names,
                stale_containers=self.stale,
            ),
        )


class Node:
    def __init__(self, tmp_path: Path, cluster: FakeCluster) -> None:
        self.file = tmp_path / "current"
        self.cluster = cluster
        self.runtime = Runtime(self.file)
        settings = AgentSettings(node_name="node-a", revision_file=self.file)
        self.agent = Agent(settings, cluster, self.runtime)

    def declare(self, state: NodeState | None) -> None:
        self.cluster.events.put_nowait(state)

    async def reported(self, count: int) -> NodeRuntimeStateStatus:
        async with asyncio.timeout(2):
            while len(self.cluster.written) < count:
                await asyncio.sleep(0.002)
        return self.cluster.written[count - 1]


@pytest.fixture(autouse=True)
def fast(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(agent_module, "LOOK_S", 0.02)
    monkeypatch.setattr(agent_module, "SERVED_WITHIN_S", 0.02)
    monkeypatch.setattr(agent_module, "SERVED_POLL_S", 0.002)
    monkeypatch.setattr(agent_module, "BACKOFF_FIRST_S", 0.005)


async def test_the_agent_writes_the_declared_revision_and_reports_it_served(
    tmp_path: Path,
) -> None:
    revision = a_revision("restricted")
    node = Node(tmp_path, FakeCluster(revision))
    async with asyncio.TaskGroup() as group:
        running = group.create_task(node.agent.run())
        node.declare(declaring(revision))
        status = await node.reported(1)
        running.cancel()
    assert Revision.model_validate_json(node.file.read_bytes()) == revision
    assert status.revision is not None
    assert status.revision.digest == revision.digest
    assert (status.handlers, status.conditions[0].status) == (("restricted",), "True")


async def test_the_agent_reports_once_when_nothing_changes(tmp_path: Path) -> None:
    revision = a_revision("restricted")
    node = Node(tmp_path, FakeCluster(revision))
    async with asyncio.TaskGroup() as group:
        running = group.create_task(node.agent.run())
        node.declare(declaring(revision))
        await node.reported(1)
        written = node.file.stat().st_mtime_ns
        await asyncio.sleep(0.1)
        running.cancel()
    assert len(node.cluster.written) == 1
    assert len(node.cluster.fetched) == 1
    assert node.file.stat().st_mtime_ns == written


async def test_the_agent_writes_the_file_again_when_someone_changed_it(tmp_path: Path) -> None:
    revision = a_revision("restricted")
    node = Node(tmp_path, FakeCluster(revision))
    async with asyncio.TaskGroup() as group:
        running = group.create_task(node.agent.run())
        node.declare(declaring(revision))
        await node.reported(1)
        node.file.write_text("{}")
        await asyncio.sleep(0.1)
        running.cancel()
    assert node.file.read_bytes() == content_of(revision)


async def test_the_agent_goes_on_to_the_next_revision(tmp_path: Path) -> None:
    first, second = a_revision("a"), a_revision("a", "b")
    node = Node(tmp_path, FakeCluster(first, second))
    async with asyncio.TaskGroup() as group:
        running = group.create_task(node.agent.run())
        node.declare(declaring(first))
        await node.reported(1)
        node.declare(declaring(second, generation=2))
        status = await node.reported(2)
        running.cancel()
    assert (status.observed_generation, status.handlers) == (2, ("a", "b"))


async def test_the_file_stays_when_the_state_is_deleted(tmp_path: Path) -> None:
    revision = a_revision("restricted")
    node = Node(tmp_path, FakeCluster(revision))
    async with asyncio.TaskGroup() as group:
        running = group.create_task(node.agent.run())
        node.declare(declaring(revision))
        await node.reported(1)
        node.declare(None)
        await asyncio.sleep(0.05)
        running.cancel()
    assert node.file.exists()


async def test_the_agent_keeps_trying_when_the_api_server_is_away(tmp_path: Path) -> None:
    revision = a_revision("restricted")
    node = Node(tmp_path, FakeCluster(revision))
    node.cluster.failures = 3
    async with asyncio.TaskGroup() as group:
        running = group.create_task(node.agent.run())
        node.declare(declaring(revision))
        status = await node.reported(1)
        running.cancel()
    assert status.conditions[0].status == "True"


async def test_the_agent_says_so_when_the_runtime_is_away_and_when_it_is_back(
    tmp_path: Path,
) -> None:
    revision = a_revision("restricted")
    node = Node(tmp_path, FakeCluster(revision))
    node.runtime.away = True
    async with asyncio.TaskGroup() as group:
        running = group.create_task(node.agent.run())
        node.declare(declaring(revision))
        away = await node.reported(1)
        assert node.file.exists()  # so that the runtime has it when it starts
        node.runtime.away = False
        back = await node.reported(2)
        running.cancel()
    assert away.conditions[0].reason == "RuntimeUnavailable"
    assert back.conditions[0].reason == "Served"


async def test_the_agent_keeps_the_file_when_the_revision_is_missing(tmp_path: Path) -> None:
    served, missing = a_revision("a"), a_revision("b")
    node = Node(tmp_path, FakeCluster(served))
    async with asyncio.TaskGroup() as group:
        running = group.create_task(node.agent.run())
        node.declare(declaring(served))
        await node.reported(1)
        node.declare(declaring(missing, generation=2))
        status = await node.reported(2)
        running.cancel()
    assert status.conditions[0].reason == "NotFound"
    assert status.revision is not None
    assert status.revision.digest == served.digest
    assert node.file.read_bytes() == content_of(served)


async def test_stale_containers_are_reported_as_they_come(tmp_path: Path) -> None:
    revision = a_revision("a")
    node = Node(tmp_path, FakeCluster(revision))
    async with asyncio.TaskGroup() as group:
        running = group.create_task(node.agent.run())
        node.declare(declaring(revision))
        await node.reported(1)
        node.runtime.stale = ("ns/pod/c",)
        status = await node.reported(2)
        running.cancel()
    assert status.stale_containers == ("ns/pod/c",)


async def test_the_agent_waits_for_a_new_state_when_its_own_is_gone(tmp_path: Path) -> None:
    revision = a_revision("a")
    node = Node(tmp_path, FakeCluster(revision))
    node.cluster.gone = True
    async with asyncio.TaskGroup() as group:
        running = group.create_task(node.agent.run())
        node.declare(declaring(revision))
        await asyncio.sleep(0.05)
        node.cluster.gone = False
        node.declare(declaring(revision))
        await node.reported(1)
        running.cancel()


async def test_publish_says_why_when_the_folder_is_missing(tmp_path: Path) -> None:
    with pytest.raises(Exception, match="cannot write"):
        await publish(a_revision("a"), tmp_path / "missing" / "current")


def test_backoff_doubles_up_to_its_bound() -> None:
    assert backoff_s(1) <= 0.5
    assert all(backoff_s(failures) <= 30 for failures in (10, 1000))
    assert ConfigError.reason  # the reasons of errors are the reasons of conditions
