"""The real engine on a remembered node, called as gRPC calls it: bytes in, code and bytes out.

A node's process can be killed at any moment (at a step, at a call of a part below, at a write) and started
again on what is left. What must always hold is asserted after each call and by ``check``.
"""

from __future__ import annotations

import asyncio
import hashlib
import logging
import string
from contextvars import ContextVar
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any
from unittest import mock
from urllib.parse import quote

import grpc
from grpc import aio
from pydantic import TypeAdapter

from noderuntime.cri.image_service import ImageService
from noderuntime.cri.runtime_service import RuntimeService
from noderuntime.cri.runtime_v1 import api_pb2 as pb
from noderuntime.cri.server import MAX_MESSAGE_BYTES, generic_handler
from noderuntime.engine.disk import Disk
from noderuntime.engine.journal import Intent
from noderuntime.engine.state import ContainerState
from noderuntime.host.ports import CgroupDriver
from noderuntime.host.syscalls import host_error
from noderuntime.telemetry.log import JsonFormatter
from tests.fakes.engine import new_engine, new_world
from tests.fakes.world import World
from tests.fuzz.messages import METHODS

if TYPE_CHECKING:
    from collections.abc import Callable, Collection
    from pathlib import Path

    from google.protobuf.message import Message

    from noderuntime.cri.streaming.tokens import Ticket
    from noderuntime.engine.engine import Engine
    from noderuntime.engine.state import ContainerRecord, SandboxRecord

MAX_TEXT = 2000
MAX_HEADER = 6000  # of the text as it travels; gRPC cuts all headers together at 8 KiB
ENOUGH_S = 60.0
SWEPT = "something without a record was removed"
MISTAKES_OF_OURS = {grpc.StatusCode.INTERNAL, grpc.StatusCode.UNKNOWN, grpc.StatusCode.DATA_LOSS}


class Process:
    """One run of the runtime. A killed one does nothing any more: what it awaits never comes."""

    def __init__(self) -> None:
        self.is_alive = True
        self.dies_in = -1  # so many steps, calls and writes from now; negative: never
        self.died = asyncio.Event()
        self.buried = asyncio.Event()

    def kill(self) -> None:
        self.is_alive = False
        self.died.set()

    async def passes(self) -> None:
        """A place where a process may be killed, and where a dead one stays."""
        if self.is_alive and self.dies_in >= 0:
            self.dies_in -= 1
            if self.dies_in < 0:
                self.kill()
        if not self.is_alive:
            await self.buried.wait()
            raise asyncio.CancelledError


_process: ContextVar[Process] = ContextVar("process")


class MortalWorld(World):
    """A world that a dead process cannot change."""

    async def call(self, name: str) -> None:
        await _process.get().passes()
        await super().call(name)
        await _process.get().passes()


class MortalDisk(Disk):
    """A disk that a dead process cannot change; without threads, so that runs can be repeated."""

    async def run(self, function: Callable[..., Any], *args: Any, **kwargs: Any) -> Any:
        await _process.get().passes()
        try:
            found = function(*args, **kwargs)
        except OSError as error:
            where = error.filename2 or error.filename or "the node's disk"
            raise host_error(f"cannot change {where}", error.errno or 0) from error
        await asyncio.sleep(0)
        await _process.get().passes()
        return found


class Log(logging.Handler):
    """Keeps what may not be in a log."""

    def __init__(self) -> None:
        super().__init__(logging.INFO)
        self.bad: list[str] = []
        self.swept: list[
            str
        ] = []  # what belonged to no record: of a recovery that forgot something
        self._format = JsonFormatter().format

    def emit(self, record: logging.LogRecord) -> None:
        line = self._format(record)
        if record.exc_info or record.levelno >= logging.ERROR or not line.isprintable():
            self.bad.append(line)
        if record.getMessage() == SWEPT:
            self.swept.append(line)

    def take(self) -> str:
        """Return what is bad so far, once."""
        bad, self.bad = self.bad, []
        return "\n".join(bad).replace("\\n", "\n")


class Context:
    """What a handler needs of grpc's context; keeps the code."""

    def __init__(self) -> None:
        self.found = grpc.StatusCode.OK
        self.details = ""

    def invocation_metadata(self) -> tuple[tuple[str, str], ...]:
        return (("traceparent", "00-\x1b"),)

    def code(self) -> grpc.StatusCode:
        return self.found

    async def abort(self, code: grpc.StatusCode, details: str) -> None:
        self.found, self.details = code, details
        raise aio.AbortError


class Urls:
    """Stands for the streaming server."""

    def url(self, ticket: Ticket) -> str:
        return f"http://127.0.0.1/{ticket.kind}/x"


@dataclass(frozen=True, slots=True)
class Answer:
    """What came back. A call that was given up, or whose runtime was killed, has no code."""

    code: grpc.StatusCode | None
    details: str = ""
    parts: tuple[bytes, ...] = ()


class FuzzedNode:
    """One node, and its runtime of now."""

    def __init__(self, root: Path) -> None:
        self.root = root
        self.world = new_world(root, MortalWorld)
        self.world.yields = True
        self.log = Log()
        self.is_damaged = False  # by a test, which takes records away
        self._ids = 0
        self._dead: list[tuple[Process, asyncio.Task[None]]] = []
        self._patches = (
            mock.patch("noderuntime.engine.engine.Disk", MortalDisk),
            mock.patch("os.fsync"),
            mock.patch("secrets.token_hex", self._new_id),
        )

    def _new_id(self, _length: int = 32) -> str:
        """Return the same IDs in each run, so that it can be repeated."""
        self._ids += 1
        return hashlib.sha256(str(self._ids).encode()).hexdigest()

    async def start(self) -> None:
        """Start the runtime for the first time."""
        for patch in self._patches:
            patch.start()
        logger = logging.getLogger("noderuntime")
        logger.addHandler(self.log)
        logger.setLevel(logging.INFO)
        (self.root / "logs").mkdir(exist_ok=True)
        await self._boot()
        self.empty = self.census()

    async def _boot(self, dies_in: int = -1) -> None:
        """Start on what is there; one that is killed in its recovery is followed by another one."""
        begun = self._intents()
        self.process = Process()
        self.process.dies_in = dies_in
        _process.set(self.process)
        self.engine: Engine = new_engine(self.world, faults=self._fault)
        recovering = asyncio.Task(self.engine.recover())
        died = asyncio.Task(self.process.died.wait())
        await asyncio.wait({recovering, died}, return_when="FIRST_COMPLETED")
        died.cancel()
        if not self.process.is_alive:
            self._dead.append((self.process, recovering))
            await self._boot()
            self._check_settled(begun)
            return
        recovering.result()
        self.process.dies_in = -1
        self._check_settled(begun)  # before the watchers look: the socket would answer now
        self._serve()
        await asyncio.sleep(0)

    def _serve(self) -> None:
        runtime = RuntimeService(self.engine, Urls(), CgroupDriver.SYSTEMD)
        services: dict[str, RuntimeService | ImageService] = {
            "RuntimeService": runtime,
            "ImageService": ImageService(self.engine),
        }
        self._handlers = [
            generic_handler(pb.DESCRIPTOR.services_by_name[name], service)
            for name, service in services.items()
        ]
        self._running = asyncio.Task(self.engine.run())

    def _intents(self) -> list[Intent]:
        """Return the verbs that are on disk as begun."""
        files = sorted(self.root.glob("state/intents/*.json"))
        return [TypeAdapter(Intent).validate_json(file.read_bytes()) for file in files]

    def _check_settled(self, begun: list[Intent]) -> None:
        """Assert that a recovery has ended all that was begun, and that records tell the truth."""
        under_way = {word for key in self.engine._node.jobs._running for word in key}
        left = {intent.id for intent in self._intents()}
        assert left <= under_way, "an intent is neither settled nor under way"
        sandboxes: dict[str, SandboxRecord] = {each.id: each for each in self.engine.sandboxes()}
        containers: dict[str, ContainerRecord] = {
            each.id: each for each in self.engine.containers()
        }
        for intent in begun:
            there = intent.id in sandboxes or intent.id in containers
            assert not (there and intent.verb.startswith("remove_")), intent
            if intent.verb == "stop_sandbox" and there:
                assert sandboxes[intent.id].released, intent
                inside = [c for c in containers.values() if c.sandbox_id == intent.id]
                assert all(c.state is not ContainerState.RUNNING for c in inside), intent
            if intent.verb == "stop_container" and there and intent.id not in under_way:
                assert containers[intent.id].state is not ContainerState.RUNNING, intent
        # Where no record is lost, the intents alone bring all of it in order.
        assert self.is_damaged or not self.log.swept, self.log.swept
        self.log.swept.clear()
        self._check_world(under_way)

    async def _fault(self, verb: str, step: str) -> None:
        del verb, step
        await _process.get().passes()

    async def restart(
        self, *, kill: bool, dies_in: int = -1, meanwhile: Callable[[], None] = lambda: None
    ) -> None:
        """Kill the runtime, or end it as a signal does; then start it again.

        ``dies_in``: the new one is killed so many steps, calls and writes into its recovery.
        ``meanwhile``: what happens on the node while there is none.
        """
        if kill:
            self.process.kill()
            self.world.ended.clear()
        if not self.process.is_alive:
            self._dead.append((self.process, self._running))
        else:
            self._running.cancel()
            await asyncio.wait([self._running])
        meanwhile()
        await self._boot(dies_in)

    async def call(
        self, name: str, message: Message | bytes, *, gives_up_after: int = -1
    ) -> Answer:
        """Call an RPC; give up after so many turns of the loop, as a cancelled or late client does."""
        raw = message if isinstance(message, bytes) else message.SerializeToString()
        context, parts = Context(), list[bytes]()
        task = asyncio.Task(self._handle(name, raw, context, parts))
        died = asyncio.Task(self.process.died.wait())
        if gives_up_after >= 0:
            for _ in range(gives_up_after):
                await asyncio.sleep(0)
            task.cancel()
        done, _ = await asyncio.wait({task, died}, return_when="FIRST_COMPLETED", timeout=ENOUGH_S)
        died.cancel()
        assert done, f"{name} has no end"
        if task not in done or task.cancelled():
            return Answer(None)
        task.result()
        return judged(name, Answer(context.found, context.details, tuple(parts)))

    async def _handle(self, name: str, raw: bytes, context: Context, parts: list[bytes]) -> None:
        method = METHODS[name]
        details = mock.Mock(method=f"/{method.containing_service.full_name}/{name}")
        found = (each.service(details) for each in self._handlers)
        handler: Any = next(each for each in found if each is not None)
        try:
            if method.server_streaming:
                if name == "GetContainerEvents":  # has no end of its own
                    asyncio.get_running_loop().call_soon(self.engine.end_events)
                async for part in handler.unary_stream(raw, context):
                    parts.append(part)  # noqa: PERF401  # what came before an error counts
            else:
                parts.append(await handler.unary_unary(raw, context))
        except aio.AbortError:
            pass

    async def check(self) -> None:
        """Assert what holds whenever no call is under way."""
        node = self.engine._node
        async with asyncio.timeout(ENOUGH_S):
            while node.jobs._running:  # the watchers begin new ones now and then
                await node.jobs.settle(lambda _key: True, ENOUGH_S)
                await asyncio.sleep(0)
        assert not (bad := self.log.take()), bad
        assert (node.jobs._running, node.jobs._waiting) == ({}, {})
        assert (node.store.closing, node.stop_deadlines) == (set(), {})
        assert not node.locks._locks
        assert not list(self.root.glob("state/intents/*"))
        assert not list(self.root.glob("state/*/*.corrupt"))
        self._check_records()
        self._check_world()

    def _check_records(self) -> None:
        store = self.engine._node.store
        for table in (store.sandboxes, store.containers):
            files = {f.stem: f.read_bytes() for f in table._directory.iterdir()}
            records: Any = table.all()
            assert files.keys() == {record.id for record in records}
            for record in records:
                adapter: Any = table._adapter
                assert adapter.validate_json(files[record.id]) == record
            assert set(table._names.values()) == files.keys()

    def _check_world(self, under_way: Collection[str] = ()) -> None:
        """Assert that what is there belongs to a record, and runs if that says so.

        Of a container in ``under_way`` the record may be behind.
        """
        sandboxes = {record.id for record in self.engine.sandboxes()}
        containers = {record.id: record for record in self.engine.containers()}
        world, run = self.world, self.root / "run"
        assert {p.name for p in run.glob("sandboxes/*")} == sandboxes
        assert {p.name for p in run.glob("containers/*")} == containers.keys()
        assert all(c.sandbox_id in sandboxes for c in containers.values())
        live = {r.id for r in self.engine.sandboxes() if not r.released}
        assert world.attachments <= live
        for path in (*world.pins, *world.mounts):
            assert any(f"/{known}/" in path for known in (*live, *containers)), path
        assert {name.partition("-")[0] for name in world.snapshots} == containers.keys()
        assert {cgroup.rpartition("/")[2] for cgroup in world.cgroups} <= {*live, *containers}
        assert world.processes.keys() <= {*live, *containers}
        assert world.monitors <= containers.keys()
        assert world.exits.keys() <= containers.keys()
        for record in containers.values():
            if record.id in under_way:
                continue
            state = world.processes.get(record.id)
            assert (state == "running") == (record.state is ContainerState.RUNNING), record
            assert state != "created", record

    def census(self) -> dict[str, object]:
        """Return all that is there but logs."""
        census = self.world.census()
        files: Any = census["files"]
        return {**census, "files": [name for name in files if not name.startswith("logs/")]}

    async def end(self) -> None:
        """Take every Pod away, as the kubelet does; then nothing may be left. End the runtime."""
        try:
            for record in self.engine.sandboxes():
                for verb in ("Stop", "Remove"):
                    request: Any = getattr(pb, f"{verb}PodSandboxRequest")
                    answer = await self.call(f"{verb}PodSandbox", request(pod_sandbox_id=record.id))
                    assert answer.code is grpc.StatusCode.OK, answer
            await self.check()
            assert self.census() == self.empty
        finally:
            await self.close()

    async def close(self) -> None:
        """End the runtime, and lay the killed ones to rest."""
        logging.getLogger("noderuntime").removeHandler(self.log)
        for patch in self._patches:
            patch.stop()
        every = [*self._dead, (self.process, self._running)]
        for process, running in every:
            if not process.is_alive:
                process.buried.set()
            running.cancel()
        await asyncio.wait({running for _, running in every})


def judged(name: str, answer: Answer) -> Answer:
    """Return the answer. Asserts that no mistake of the caller looks like one of ours."""
    # What the kubelet knows by its text comes under UNKNOWN; what a registry says is no one's mistake.
    is_for_kubelet = answer.details.startswith(("ImageVolumeMountFailed: ", "registry "))
    assert answer.code not in MISTAKES_OF_OURS or is_for_kubelet, (name, answer)
    assert len(answer.details) <= MAX_TEXT, (name, answer)
    travelling = quote(answer.details, safe=string.printable.replace("%", ""))
    assert len(travelling) <= MAX_HEADER, (name, answer)
    assert answer.details.isprintable(), (name, answer)
    assert bool(answer.details) == (answer.code is not grpc.StatusCode.OK), (name, answer)
    assert all(len(part) <= MAX_MESSAGE_BYTES for part in answer.parts), name
    return answer
