"""Every RPC with messages made from the descriptors: a caller's mistake is never INTERNAL.

The handlers are called as gRPC calls them, without its sockets. Texts are hostile on purpose.
"""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING, Any

import grpc
import pytest
from google.protobuf import message_factory
from google.protobuf.descriptor import FieldDescriptor
from grpc import aio
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from noderuntime.cri.image_service import ImageService
from noderuntime.cri.runtime_service import RuntimeService
from noderuntime.cri.runtime_v1 import api_pb2 as pb
from noderuntime.cri.server import generic_handler
from noderuntime.host.ports import CgroupDriver
from noderuntime.policy.model import ContainerConfig, PodIdentity, SandboxConfig
from tests.fakes.cri_engine import IMAGE, FakeEngine
from tests.fakes.kubelet_requests import kubelets_container, kubelets_sandbox

if TYPE_CHECKING:
    from google.protobuf.descriptor import Descriptor, MethodDescriptor
    from google.protobuf.message import Message

    from noderuntime.cri.streaming.tokens import Ticket

SLOW = (HealthCheck.too_slow, HealthCheck.data_too_large, HealthCheck.large_base_example)
METHODS = [m for s in pb.DESCRIPTOR.services_by_name.values() for m in s.methods]
KNOWN = "known"  # stands for the ID of a container or sandbox that is there
HOSTILE = (
    *("", "a", "/", "..", "/a/../b", "\0", "a\0b", "a\nb", "\u2028", "\x7f", "a" * 5000),
    *("/" + "a/" * 3000, "app:1", IMAGE.id, "net.ipv4.tcp_syncookies", "0-3", "\ud7ff", "💥" * 99),
)
TEXTS = st.one_of(st.just(KNOWN), st.sampled_from(HOSTILE), st.text(max_size=20))
NUMBERS = {
    FieldDescriptor.CPPTYPE_INT32: st.integers(-(2**31), 2**31 - 1),
    FieldDescriptor.CPPTYPE_INT64: st.integers(-(2**63), 2**63 - 1),
    FieldDescriptor.CPPTYPE_UINT32: st.integers(0, 2**32 - 1),
    FieldDescriptor.CPPTYPE_UINT64: st.integers(0, 2**64 - 1),
    FieldDescriptor.CPPTYPE_DOUBLE: st.floats(),
    FieldDescriptor.CPPTYPE_BOOL: st.booleans(),
    FieldDescriptor.CPPTYPE_ENUM: st.integers(-3, 70),
}


class Context:
    """What a handler needs of grpc's context; keeps the code."""

    def __init__(self) -> None:
        self.found = grpc.StatusCode.OK
        self.details = ""

    def invocation_metadata(self) -> tuple[tuple[str, str], ...]:
        return (("traceparent", "00-x"),)

    def code(self) -> grpc.StatusCode:
        return self.found

    async def abort(self, code: grpc.StatusCode, details: str) -> None:
        self.found, self.details = code, details
        raise aio.AbortError


class NoUrls:
    def url(self, ticket: Ticket) -> str:
        return f"http://127.0.0.1/{ticket.kind}/x"


def scalar(draw: st.DrawFn, field: FieldDescriptor) -> object:
    if field.type == FieldDescriptor.TYPE_STRING:
        return draw(TEXTS)
    if field.type == FieldDescriptor.TYPE_BYTES:
        return draw(st.binary(max_size=20))
    return draw(NUMBERS[field.cpp_type])


@st.composite
def messages(draw: st.DrawFn, descriptor: Descriptor, depth: int = 0) -> Message:
    message = message_factory.GetMessageClass(descriptor)()
    for field in descriptor.fields:
        if not draw(st.booleans()) and field.name not in {"config", "metadata", "linux"}:
            continue
        kind = field.message_type
        if kind is not None and kind.GetOptions().map_entry:
            values = draw(st.dictionaries(TEXTS, TEXTS, max_size=3))
            getattr(message, field.name).update(values)
        elif kind is not None and depth > 5:
            continue
        elif field.is_repeated:
            for _ in range(draw(st.integers(0, 2))):
                if kind is not None:
                    getattr(message, field.name).append(draw(messages(kind, depth + 1)))
                else:
                    getattr(message, field.name).append(scalar(draw, field))
        elif kind is not None:
            getattr(message, field.name).CopyFrom(draw(messages(kind, depth + 1)))
        else:
            setattr(message, field.name, scalar(draw, field))
    return message


async def answer(method: MethodDescriptor, message: Message | bytes) -> Context:
    engine = FakeEngine(ends_events=True)
    config = SandboxConfig(pod=PodIdentity(name="a", namespace="b", uid="c"))
    sandbox_id = await engine.run_sandbox(config, "")
    container_id = await engine.create_container(
        sandbox_id, ContainerConfig(name="app", image="app:1")
    )
    await engine.start_container(container_id)
    if not isinstance(message, bytes):
        for name, known in (("pod_sandbox_id", sandbox_id), ("container_id", container_id)):
            if getattr(message, name, "") == KNOWN:
                setattr(message, name, known)
        message = message.SerializeToString()
    service = method.containing_service
    ours = (
        RuntimeService(engine, NoUrls(), CgroupDriver.SYSTEMD)
        if service.name == "RuntimeService"
        else ImageService(engine)
    )
    return await _call(generic_handler(service, ours), method, message)


async def _call(generic: grpc.GenericRpcHandler, method: MethodDescriptor, raw: bytes) -> Context:
    class Details:
        method: str
        invocation_metadata = ()

    details = Details()
    details.method = f"/{method.containing_service.full_name}/{method.name}"
    handler: Any = generic.service(details)  # type: ignore[arg-type]  # by shape
    context = Context()
    try:
        if method.server_streaming:
            async for part in handler.unary_stream(raw, context):
                assert isinstance(part, bytes)
        else:
            assert isinstance(await handler.unary_unary(raw, context), bytes)
    except aio.AbortError:
        pass
    return context


@pytest.mark.parametrize("method", METHODS, ids=lambda method: method.name)
@settings(max_examples=60, deadline=None, suppress_health_check=SLOW)
@given(data=st.data())
def test_no_request_is_internal(method: MethodDescriptor, data: st.DataObject) -> None:
    message = data.draw(messages(method.input_type))
    context = asyncio.run(answer(method, message))
    assert context.found is not grpc.StatusCode.INTERNAL, context.details
    assert len(context.details) <= 2000


@settings(max_examples=300, deadline=None, suppress_health_check=SLOW)
@given(messages(pb.PodSandboxConfig.DESCRIPTOR), messages(pb.ContainerConfig.DESCRIPTOR))
def test_what_is_added_to_the_kubelets_requests_is_never_internal(
    sandbox: Message, container: Message
) -> None:
    first = pb.RunPodSandboxRequest(config=kubelets_sandbox())
    first.config.MergeFrom(sandbox)  # type: ignore[arg-type]  # made from its descriptor
    second = pb.CreateContainerRequest(pod_sandbox_id=KNOWN, config=kubelets_container())
    second.config.MergeFrom(container)  # type: ignore[arg-type]  # made from its descriptor
    methods = {method.name: method for method in METHODS}
    for name, message in (("RunPodSandbox", first), ("CreateContainer", second)):
        context = asyncio.run(answer(methods[name], message))
        assert context.found in {grpc.StatusCode.OK, grpc.StatusCode.INVALID_ARGUMENT}


@settings(max_examples=200, deadline=None)
@given(st.sampled_from(METHODS), st.binary(max_size=64))
def test_no_bytes_are_internal(method: MethodDescriptor, raw: bytes) -> None:
    context = asyncio.run(answer(method, raw))
    assert context.found is not grpc.StatusCode.INTERNAL, context.details
