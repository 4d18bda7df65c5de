"""Requests in any order, hostile, twice, given up, and a runtime that is killed in between.

One machine is one node with its kubelet. After each step nothing may be half done: records, what is
in memory and what the node has agree; and in the end, when every Pod is removed, nothing is left.
"""

from __future__ import annotations

import asyncio
import shutil
import tempfile
from pathlib import Path
from typing import TYPE_CHECKING, Any

import grpc
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, rule, run_state_machine_as_test

from noderuntime.cri.runtime_v1 import api_pb2 as pb
from tests.fuzz.messages import METHODS, TEXTS, changed, damaged, messages
from tests.fuzz.profile import FACTOR
from tests.fuzz.real_engine import Answer, FuzzedNode
from tests.fuzz.test_cri_requests import SLOW, plain_container, plain_sandbox

if TYPE_CHECKING:
    from google.protobuf.message import Message

Aim = tuple[int, int, str]
MOST_PODS = 3
AIMS = st.tuples(st.integers(0, 8), st.integers(0, 7), TEXTS)
GIVES_UP = st.one_of(st.just(-1), st.just(-1), st.integers(0, 60))
HOSTILITY = st.sampled_from((0, 0, 1, 2))
DATA = st.data()
ENDING = ("StopContainer", "RemoveContainer", "StopPodSandbox", "RemovePodSandbox")
READING = sorted(name for name in METHODS if name.startswith(("List", "Stream", "Get", "Image")))
OF_A_CONTAINER = sorted(
    name
    for name, method in METHODS.items()
    if "container_id" in method.input_type.fields_by_name
    and name not in {"CheckpointContainer"}  # looks for a program
)
OF_A_SANDBOX = sorted(
    name
    for name, method in METHODS.items()
    if "pod_sandbox_id" in method.input_type.fields_by_name and name != "CreateContainer"
)


class Machine(RuleBasedStateMachine):
    """A node under a kubelet that means no good."""

    def __init__(self) -> None:
        super().__init__()
        self.folder = Path(tempfile.mkdtemp(prefix="nr-fuzz-"))
        self.runner = asyncio.Runner()
        self.node = FuzzedNode(self.folder)
        self.runner.run(self.node.start())

    def teardown(self) -> None:
        try:
            self.node.process.dies_in = -1
            self.runner.run(self.node.end())
        finally:
            self.runner.close()
            shutil.rmtree(self.folder)

    def call(self, name: str, message: Message | bytes, gives_up_after: int = -1) -> Answer:
        return self.runner.run(self._call(name, message, gives_up_after))

    async def _call(self, name: str, message: Message | bytes, gives_up_after: int) -> Answer:
        answer = await self.node.call(name, message, gives_up_after=gives_up_after)
        if not self.node.process.is_alive:
            await self.node.restart(kill=True)
        return answer

    def sandbox(self, aim: Aim) -> str:
        """Return what may be a sandbox: an ID, the beginning of one, a container's, any text."""
        return self._one([record.id for record in self.node.engine.sandboxes()], aim)

    def container(self, aim: Aim) -> str:
        return self._one([record.id for record in self.node.engine.containers()], aim)

    def _one(self, mine: list[str], aim: Aim) -> str:
        # What is drawn may not depend on what is there: else a run cannot be repeated.
        how, which, text = aim
        others: list[str] = [record.id for record in self.node.engine.sandboxes()]
        others += [record.id for record in self.node.engine.containers()]
        known = others if how == 6 else mine
        if how == 8 or not known:
            return text
        found: str = sorted(known)[which % len(known)]
        return found[:10] if how == 7 else found

    @rule(data=DATA, number=st.integers(0, 4), gives_up_after=GIVES_UP, most=HOSTILITY)
    def run_sandbox(self, data: st.DataObject, number: int, gives_up_after: int, most: int) -> None:
        ordinary = plain_sandbox(self.folder)
        ordinary.config.metadata.uid = f"uid-{number}"
        request = data.draw(changed(ordinary, most))
        if request.config.log_directory:
            request.config.log_directory = f"{self.folder}/logs"
        if len(self.node.engine.sandboxes()) < MOST_PODS:
            self.call("RunPodSandbox", request, gives_up_after)

    @rule(data=DATA, number=st.integers(0, 2), gives_up_after=GIVES_UP, most=HOSTILITY)
    def create_container(
        self, data: st.DataObject, number: int, gives_up_after: int, most: int
    ) -> None:
        ordinary = plain_container(self.sandbox(data.draw(AIMS)))
        ordinary.config.metadata.name = f"app-{number}"
        self.call("CreateContainer", data.draw(changed(ordinary, most)), gives_up_after)

    @rule(number=st.integers(0, 4), gives_up_after=GIVES_UP)
    def run_a_pod(self, number: int, gives_up_after: int) -> None:
        """Bring a Pod to where it runs, as long as the runtime lives."""
        sandbox = plain_sandbox(self.folder)
        sandbox.config.metadata.uid = f"uid-{number}"
        ran = self.call("RunPodSandbox", sandbox)
        if ran.code is not grpc.StatusCode.OK:
            return
        made = self.call(
            "CreateContainer",
            plain_container(pb.RunPodSandboxResponse.FromString(ran.parts[0]).pod_sandbox_id),
        )
        if made.code is not grpc.StatusCode.OK:
            return
        container_id = pb.CreateContainerResponse.FromString(made.parts[0]).container_id
        request = pb.StartContainerRequest(container_id=container_id)
        self.call("StartContainer", request, gives_up_after)

    @rule(data=DATA, gives_up_after=GIVES_UP)
    def start_container(self, data: st.DataObject, gives_up_after: int) -> None:
        request = pb.StartContainerRequest(container_id=self.container(data.draw(AIMS)))
        self.call("StartContainer", request, gives_up_after)

    @rule(data=DATA, name=st.sampled_from(OF_A_CONTAINER), gives_up_after=GIVES_UP)
    def do_to_a_container(self, data: st.DataObject, name: str, gives_up_after: int) -> None:
        request: Any = data.draw(messages(METHODS[name].input_type))
        request.container_id = self.container(data.draw(AIMS))
        self.call(name, request, gives_up_after)

    @rule(data=DATA, name=st.sampled_from(OF_A_SANDBOX), gives_up_after=GIVES_UP)
    def do_to_a_sandbox(self, data: st.DataObject, name: str, gives_up_after: int) -> None:
        request: Any = data.draw(messages(METHODS[name].input_type))
        request.pod_sandbox_id = self.sandbox(data.draw(AIMS))
        self.call(name, request, gives_up_after)

    @rule(data=DATA, name=st.sampled_from(READING))
    def read(self, data: st.DataObject, name: str) -> None:
        self.call(name, data.draw(messages(METHODS[name].input_type)))

    @rule(data=DATA, name=st.sampled_from(sorted(METHODS)))
    def send_rubbish(self, data: st.DataObject, name: str) -> None:
        raw = data.draw(messages(METHODS[name].input_type)).SerializeToString()
        if name == "RunPodSandbox":
            raw = b""  # its logs could be anywhere
        self.call(name, data.draw(damaged(raw)))

    @rule(data=DATA, times=st.integers(2, 3), gives_up_after=GIVES_UP, verb=st.integers(0, 5))
    def ask_twice(self, data: st.DataObject, times: int, gives_up_after: int, verb: int) -> None:
        """The kubelet gives up and asks again; both are one, and get the same answer."""
        sandbox, container = self.sandbox(data.draw(AIMS)), self.container(data.draw(AIMS))
        again = plain_sandbox(self.folder)
        again.config.metadata.uid = "uid-twice"
        name, request = (
            ("RunPodSandbox", again),
            ("StopPodSandbox", pb.StopPodSandboxRequest(pod_sandbox_id=sandbox)),
            ("RemovePodSandbox", pb.RemovePodSandboxRequest(pod_sandbox_id=sandbox)),
            ("StartContainer", pb.StartContainerRequest(container_id=container)),
            ("StopContainer", pb.StopContainerRequest(container_id=container)),
            ("RemoveContainer", pb.RemoveContainerRequest(container_id=container)),
        )[verb]
        answers = self.runner.run(self._ask(name, request, times, gives_up_after))
        finished = {(answer.code, answer.parts) for answer in answers if answer.code is not None}
        assert len(finished) <= 1, answers

    async def _ask(
        self, name: str, request: Message, times: int, gives_up_after: int
    ) -> list[Answer]:
        patience = [gives_up_after, *[-1] * (times - 1)]
        calls = [self.node.call(name, request, gives_up_after=each) for each in patience]
        answers = await asyncio.gather(*calls)
        if not self.node.process.is_alive:
            await self.node.restart(kill=True)
        return answers

    @rule(which=st.integers(0, 7), code=st.integers(0, 255), oom=st.booleans())
    def a_process_ends(self, which: int, code: int, oom: bool) -> None:
        running = self._running()
        if running:
            self.runner.run(self._end(running[which % len(running)], code, oom=oom))

    async def _end(self, name: str, code: int, *, oom: bool) -> None:
        self.node.world.end(name, code, oom=oom)
        await asyncio.sleep(0)

    @rule(moments=st.integers(0, 60))
    def is_going_to_be_killed(self, moments: int) -> None:
        """In one of the next verbs, at a step, a write or a call of what is below."""
        self.node.process.dies_in = moments

    @rule(kill=st.booleans(), dies_in=GIVES_UP, ends=st.integers(-4, 3))
    def restart(self, kill: bool, dies_in: int, ends: int) -> None:
        """A process may end while there is no runtime."""

        def meanwhile() -> None:
            running = self._running()
            if ends >= 0 and running:
                self.node.world.end(running[ends % len(running)], 7)

        self.runner.run(self.node.restart(kill=kill, dies_in=dies_in, meanwhile=meanwhile))

    def _running(self) -> list[str]:
        states = self.node.world.processes.items()
        return sorted(name for name, state in states if state == "running")

    @rule(which=st.integers(0, 7), moments=st.integers(0, 40), verb=st.sampled_from(ENDING))
    def is_killed_while_it_takes_something_away(self, which: int, moments: int, verb: str) -> None:
        """What was begun to be taken away is away after the next start; see ``_check_settled``."""
        of_a_pod = verb.endswith("PodSandbox")
        records = self.node.engine.sandboxes() if of_a_pod else self.node.engine.containers()
        if records:
            known = sorted(record.id for record in records)[which % len(records)]
            field = "pod_sandbox_id" if of_a_pod else "container_id"
            self.node.process.dies_in = moments
            self.call(verb, getattr(pb, f"{verb}Request")(**{field: known}))
            self.node.process.dies_in = -1

    @invariant()
    def nothing_is_half_done(self) -> None:
        self.runner.run(self._check())

    async def _check(self) -> None:
        if not self.node.process.is_alive:
            await self.node.restart(kill=True)
        until = self.node.process.dies_in
        self.node.process.dies_in = -1
        await self.node.check()
        self.node.process.dies_in = until


def test_nothing_is_lost_or_left_whatever_is_asked() -> None:
    run_state_machine_as_test(
        Machine,
        settings=settings(
            max_examples=20 * FACTOR,
            stateful_step_count=25,
            deadline=None,
            suppress_health_check=SLOW,
        ),
    )


def test_a_whole_life_is_answered_with_ok() -> None:
    """The machine can do what it is for: an ordinary kubelet is refused nothing."""
    machine = Machine()
    try:
        sandbox = machine.call("RunPodSandbox", plain_sandbox(machine.folder))
        sandbox_id = pb.RunPodSandboxResponse.FromString(sandbox.parts[0]).pod_sandbox_id
        made = machine.call("CreateContainer", plain_container(sandbox_id))
        container_id = pb.CreateContainerResponse.FromString(made.parts[0]).container_id
        for request in (
            pb.StartContainerRequest(container_id=container_id),
            pb.ExecSyncRequest(container_id=container_id, cmd=["true"]),
            pb.ContainerStatsRequest(container_id=container_id),
            pb.ReopenContainerLogRequest(container_id=container_id),
            pb.StopContainerRequest(container_id=container_id),
            pb.RemoveContainerRequest(container_id=container_id),
            pb.StopPodSandboxRequest(pod_sandbox_id=sandbox_id),
        ):
            name = type(request).__name__.removesuffix("Request")
            assert machine.call(name, request).code is grpc.StatusCode.OK
            machine.nothing_is_half_done()
    finally:
        machine.teardown()
