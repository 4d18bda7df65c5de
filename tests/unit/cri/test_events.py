"""GetContainerEvents as a client sees it."""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING, Any

import grpc
import pytest
from grpc import aio

from noderuntime.cri.runtime_v1 import api_pb2 as pb
from noderuntime.engine.events import MAX_WAITING, Event, EventKind
from noderuntime.policy.model import PodIdentity, SandboxConfig

if TYPE_CHECKING:
    from noderuntime.engine.events import Subscription
    from tests.unit.cri.conftest import Client


def events_of(cri: Client) -> Any:  # grpc.aio's call is generic in what it cannot know here
    path = "/runtime.v1.RuntimeService/GetContainerEvents"
    stream = cri.channel.unary_stream(
        path, pb.GetEventsRequest.SerializeToString, pb.ContainerEventResponse.FromString
    )
    return stream(pb.GetEventsRequest(), timeout=5)


async def subscription_of(cri: Client) -> Subscription:
    async with asyncio.timeout(2):
        while not (found := cri.engine.feed.subscriptions()):
            await asyncio.sleep(0.001)
    return found[0]


async def stopped(cri: Client) -> Event:
    sandbox_id = await cri.engine.run_sandbox(
        SandboxConfig(pod=PodIdentity(name="web", namespace="shop", uid="u1")), ""
    )
    return Event(
        kind=EventKind.STOPPED,
        object_id="c1",
        created_at_ns=7,
        sandbox=cri.engine.sandbox(sandbox_id),
        containers=(),
    )


async def test_an_event_has_what_the_kubelet_looks_for(cri: Client) -> None:
    call = events_of(cri)
    (await subscription_of(cri)).offer(await stopped(cri))
    answer = await call.read()
    assert answer.container_event_type == pb.CONTAINER_STOPPED_EVENT
    assert (answer.container_id, answer.created_at) == ("c1", 7)
    assert answer.pod_sandbox_status.metadata.uid == "u1"
    call.cancel()


async def test_a_caller_that_goes_is_forgotten(cri: Client) -> None:
    call = events_of(cri)
    (await subscription_of(cri)).offer(await stopped(cri))
    await call.read()
    call.cancel()
    async with asyncio.timeout(2):
        while cri.engine.feed.subscriptions():
            await asyncio.sleep(0.001)


async def test_a_caller_that_does_not_read_is_told_why_it_is_cut_off(cri: Client) -> None:
    call = events_of(cri)
    subscription, event = await subscription_of(cri), await stopped(cri)
    for _ in range(MAX_WAITING + 1):
        subscription.offer(event)
    with pytest.raises(aio.AioRpcError, match="list what there is") as caught:
        while await call.read() is not aio.EOF:
            pass
    assert caught.value.code() is grpc.StatusCode.RESOURCE_EXHAUSTED


async def test_the_end_of_the_node_ends_the_call(cri: Client) -> None:
    call = events_of(cri)
    await subscription_of(cri)
    cri.engine.end_events()
    assert await call.read() is aio.EOF
