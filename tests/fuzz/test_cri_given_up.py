"""Each verb given up at each moment, and asked twice at once: the retry finds it done, or does it."""

from __future__ import annotations

import asyncio
import tempfile
from pathlib import Path
from typing import Any

import grpc
import pytest

from noderuntime.cri.runtime_v1 import api_pb2 as pb
from tests.fuzz.profile import FACTOR
from tests.fuzz.real_engine import FuzzedNode
from tests.fuzz.test_cri_requests import plain_container, plain_sandbox

VERBS = (
    *("RunPodSandbox", "CreateContainer", "StartContainer", "StopContainer"),
    *("RemoveContainer", "StopPodSandbox", "RemovePodSandbox"),
)
MOST_TURNS = 400  # of the loop: the longest verb takes about a hundred
STRIDE = 4 if FACTOR == 1 else 1
OK = grpc.StatusCode.OK


class Life:
    """A Pod brought to just before a verb."""

    def __init__(self, node: FuzzedNode) -> None:
        self.node = node
        self.sandbox = self.container = ""

    def request(self, verb: str) -> Any:
        if verb == "RunPodSandbox":
            return plain_sandbox(self.node.root)
        if verb == "CreateContainer":
            return plain_container(self.sandbox)
        if verb in {"StopPodSandbox", "RemovePodSandbox"}:
            return getattr(pb, f"{verb}Request")(pod_sandbox_id=self.sandbox)
        return getattr(pb, f"{verb}Request")(container_id=self.container)

    async def call(self, verb: str, *, gives_up_after: int = -1) -> grpc.StatusCode | None:
        answer = await self.node.call(verb, self.request(verb), gives_up_after=gives_up_after)
        if answer.code is OK and verb == "RunPodSandbox":
            self.sandbox = pb.RunPodSandboxResponse.FromString(answer.parts[0]).pod_sandbox_id
        if answer.code is OK and verb == "CreateContainer":
            made = pb.CreateContainerResponse.FromString(answer.parts[0])
            self.container = made.container_id
        return answer.code

    async def up_to(self, verb: str) -> None:
        for earlier in VERBS[: min(VERBS.index(verb), 3)]:
            assert await self.call(earlier) is OK


async def _gives_up(root: Path, verb: str) -> int:
    """Give up one turn later each time, until the answer is there first; return how often."""
    node = FuzzedNode(root)
    await node.start()
    try:
        for turns in range(0, MOST_TURNS, STRIDE):
            life = Life(node)
            await life.up_to(verb)
            code = await life.call(verb, gives_up_after=turns)
            # Asked again at once, while the first is still under way.
            assert await life.call(verb) is OK
            await node.check()
            for record in node.engine.sandboxes():
                await node.engine.remove_sandbox(record.id)
            if code is OK:
                return turns
    finally:
        await node.end()
    raise AssertionError(f"{verb} has no end")


@pytest.mark.slow
@pytest.mark.parametrize("verb", VERBS)
def test_a_retry_finds_it_done_whenever_the_first_call_was_given_up(verb: str) -> None:
    with tempfile.TemporaryDirectory(prefix="nr-fuzz-") as root:
        assert asyncio.run(_gives_up(Path(root), verb)) > 3


async def _calls(root: Path, verb: str, times: int) -> tuple[str, ...]:
    """Ask so many times at once; return what was asked of the parts below."""
    node = FuzzedNode(root)
    await node.start()
    try:
        life = Life(node)
        await life.up_to(verb)
        node.world.calls.clear()
        message = life.request(verb)
        answers = await asyncio.gather(*(node.call(verb, message) for _ in range(times)))
        assert {answer.code for answer in answers} == {OK}
        assert len({answer.parts for answer in answers}) == 1
        await node.check()
        return tuple(node.world.calls)
    finally:
        await node.end()


@pytest.mark.slow
@pytest.mark.parametrize("verb", VERBS)
def test_a_duplicate_joins_the_first_and_nothing_is_done_twice(verb: str) -> None:
    with tempfile.TemporaryDirectory(prefix="nr-fuzz-") as root:
        once = asyncio.run(_calls(Path(root), verb, 1))
    with tempfile.TemporaryDirectory(prefix="nr-fuzz-") as root:
        assert asyncio.run(_calls(Path(root), verb, 3)) == once
