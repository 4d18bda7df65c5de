"""Every RPC with messages made from the descriptors, through the boundary, on the real engine.

A caller's mistake is told in one clear line: never INTERNAL or UNKNOWN, never a traceback in the log.
"""

from __future__ import annotations

import asyncio
import tempfile
from pathlib import Path
from typing import TYPE_CHECKING, Any

import grpc
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from noderuntime.cri.runtime_v1 import api_pb2 as pb
from noderuntime.engine.state import ContainerState
from tests.fakes.engine import IMAGE, IMAGE_ID
from tests.fakes.kubelet_requests import kubelets_container, kubelets_sandbox
from tests.fuzz.messages import HOSTILE, METHODS, changed, damaged, messages
from tests.fuzz.profile import EXAMPLES
from tests.fuzz.real_engine import FuzzedNode

if TYPE_CHECKING:
    from collections.abc import Iterator

    from google.protobuf.message import Message

SLOW = (HealthCheck.too_slow, HealthCheck.data_too_large, HealthCheck.large_base_example)
IDS = ("pod_sandbox_id", "container_id", "target_id", "id")


class Scene:
    """A node with a Pod that runs a container, in a loop of its own; the same for all requests."""

    def __init__(self, root: Path) -> None:
        self.runner = asyncio.Runner()
        self.node = FuzzedNode(root)
        self.container = self.sandbox = ""
        self.runner.run(self.node.start())

    async def prepare(self) -> None:
        """Run the Pod again, if it is gone."""
        await self.call("PullImage", pb.PullImageRequest(image=pb.ImageSpec(image=IMAGE)))
        ran = await self.call("RunPodSandbox", plain_sandbox(self.node.root))
        self.sandbox = pb.RunPodSandboxResponse.FromString(ran).pod_sandbox_id
        made = await self.call("CreateContainer", plain_container(self.sandbox))
        self.container = pb.CreateContainerResponse.FromString(made).container_id
        await self.call("StartContainer", pb.StartContainerRequest(container_id=self.container))

    async def call(self, name: str, message: Message) -> bytes:
        answer = await self.node.call(name, message)
        assert answer.code is grpc.StatusCode.OK, answer
        return answer.parts[0]

    def ask(self, name: str, message: Message | bytes) -> grpc.StatusCode | None:
        """Ask, check the node, and put it back to where it was."""
        return self.runner.run(self._ask(name, message))

    async def _ask(self, name: str, message: Message | bytes) -> grpc.StatusCode | None:
        answer = await self.node.call(name, message)
        await self.node.check()
        engine = self.node.engine
        for record in engine.sandboxes():
            if record.id != self.sandbox or record.released:
                await engine.remove_sandbox(record.id)
        for container in engine.containers():
            if container.id != self.container or container.state is not ContainerState.RUNNING:
                await engine.remove_container(container.id)
        if not engine.containers() or not engine.list_images():
            await self.prepare()
        return answer.code


def plain_sandbox(root: Path) -> pb.RunPodSandboxRequest:
    """Return what the kubelet asks; logs are below ``root``."""
    request = pb.RunPodSandboxRequest(config=kubelets_sandbox())
    request.config.log_directory = str(root / "logs")
    return request


def plain_container(sandbox_id: str) -> pb.CreateContainerRequest:
    """Return what the kubelet asks, without what must be there on the node."""
    request = pb.CreateContainerRequest(pod_sandbox_id=sandbox_id, config=kubelets_container())
    config = request.config
    del config.mounts[:]
    del config.devices[:]
    config.image.image = IMAGE_ID
    config.linux.security_context.ClearField("seccomp")
    return request


@pytest.fixture(scope="module")
def scene() -> Iterator[Scene]:
    with tempfile.TemporaryDirectory(prefix="nr-fuzz-") as root:
        one = Scene(Path(root))
        one.runner.run(one.prepare())
        try:
            yield one
            one.runner.run(one.node.end())
        finally:
            one.runner.close()


def aimed(draw: st.DrawFn, message: Any, scene: Scene) -> Any:
    """Let the IDs of a message mean something now and then, and keep its logs below the root."""
    for field, value in message.ListFields():
        if field.message_type is None and field.name in IDS and isinstance(value, str):
            known = (scene.sandbox, scene.container, scene.container[:9], scene.sandbox + "0")
            setattr(message, field.name, draw(st.sampled_from((value, *known))))
        elif field.message_type is not None and not field.is_repeated:
            aimed(draw, value, scene)
        elif field.name == "log_directory" and value:
            root = f"{scene.node.root}/logs"
            message.log_directory = root if "/" in value[:1] else value
    return message


@st.composite
def requests(draw: st.DrawFn, name: str, scene: Scene) -> Any:
    """Draw a request: a wild one, or one of the kubelet's that is a little wrong."""
    ordinary: dict[str, Message] = {
        "RunPodSandbox": plain_sandbox(scene.node.root),
        "CreateContainer": plain_container(scene.sandbox),
    }
    if name in ordinary and draw(st.integers(0, 3)):
        return aimed(draw, draw(changed(ordinary[name])), scene)
    return aimed(draw, draw(messages(METHODS[name].input_type)), scene)


@pytest.mark.parametrize("name", METHODS)
@settings(max_examples=EXAMPLES, deadline=None, suppress_health_check=SLOW)
@given(data=st.data())
def test_no_request_is_a_mistake_of_ours(name: str, scene: Scene, data: st.DataObject) -> None:
    scene.ask(name, data.draw(requests(name, scene)))


@settings(max_examples=6 * EXAMPLES, deadline=None, suppress_health_check=SLOW)
@given(data=st.data())
def test_what_is_changed_in_the_kubelets_requests_is_taken_or_refused(
    scene: Scene, data: st.DataObject
) -> None:
    name = data.draw(st.sampled_from(("RunPodSandbox", "CreateContainer")))
    scene.ask(name, data.draw(requests(name, scene)))


@settings(max_examples=4 * EXAMPLES, deadline=None, suppress_health_check=SLOW)
@given(data=st.data())
def test_no_bytes_are_a_mistake_of_ours(scene: Scene, data: st.DataObject) -> None:
    name = data.draw(st.sampled_from(sorted(METHODS)))
    raw = data.draw(requests(name, scene)).SerializeToString()
    if name == "RunPodSandbox":  # damage may point its logs at the node
        raw = data.draw(st.binary(max_size=64))
    scene.ask(name, data.draw(damaged(raw)))


@pytest.mark.parametrize("value", HOSTILE, ids=ascii)
def test_every_text_of_the_kubelets_requests_may_be_hostile(value: str, scene: Scene) -> None:
    for name, ordinary in (
        ("RunPodSandbox", plain_sandbox(scene.node.root)),
        ("CreateContainer", plain_container(scene.sandbox)),
    ):
        for message in with_each_text(ordinary, value):
            scene.ask(name, message)


def with_each_text(message: Any, value: str) -> Iterator[Any]:
    """Yield a copy of the message for each of its texts, which is ``value`` in there."""
    for field, found in message.ListFields():
        if field.name == "log_directory":
            continue
        if field.type == field.TYPE_STRING and not field.is_repeated:
            copy = type(message)()
            copy.CopyFrom(message)
            setattr(copy, field.name, value)
            yield copy
        elif field.message_type is not None and not field.is_repeated:
            for inner in with_each_text(found, value):
                copy = type(message)()
                copy.CopyFrom(message)
                getattr(copy, field.name).CopyFrom(inner)
                yield copy
