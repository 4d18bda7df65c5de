"""A field that we do not honour is refused, never ignored: every field of every request is read.

The requests of the kubelet are converted with spies in their place, then each with one field more.
What no code reads must be in ``unread_fields.toml``, with its reason.
"""

from __future__ import annotations

import tomllib
from contextlib import suppress
from fnmatch import fnmatch
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

import pytest
from google.protobuf import message_factory
from google.protobuf.descriptor import FieldDescriptor

from noderuntime.cri import convert, runtime_service
from noderuntime.cri.image_service import ImageService
from noderuntime.cri.runtime_service import RuntimeService
from noderuntime.cri.runtime_v1 import api_pb2 as pb
from noderuntime.errors import NodeRuntimeError
from noderuntime.host.ports import CgroupDriver
from tests.fakes.cri_engine import IMAGE, FakeEngine
from tests.fakes.kubelet_requests import kubelets_container, kubelets_sandbox
from tests.fakes.spy_message import Read, Spy
from tests.unit.cri.conftest import RecordedUrls

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Iterator

    from google.protobuf.descriptor import Descriptor, MethodDescriptor
    from google.protobuf.message import Message

EXCUSES: Final[dict[str, str]] = tomllib.loads(
    (Path(__file__).parent / "unread_fields.toml").read_text()
)
METHODS: Final = [m for s in pb.DESCRIPTOR.services_by_name.values() for m in s.methods]


def fields_of(descriptor: Descriptor, found: set[Read]) -> set[Read]:
    """Return every field of a message and of all that are within it."""
    for field in descriptor.fields:
        name = (descriptor.name, field.name)
        if name not in found:
            found.add(name)
            kind = field.message_type
            if kind is not None and not kind.GetOptions().map_entry:
                fields_of(kind, found)
    return found


class Scene:
    """The services, with a Pod and a running container of which every request may speak."""

    def __init__(self, seen: set[Read]) -> None:
        engine = FakeEngine()
        self.engine = engine
        self.services: dict[str, Any] = {
            "RuntimeService": RuntimeService(engine, RecordedUrls(), CgroupDriver.CGROUPFS),
            "ImageService": ImageService(engine),
        }
        self.seen = seen
        self.ids: dict[str, str] = {}

    async def prepare(self) -> None:
        sandbox = await self.engine.run_sandbox(convert.sandbox_config(kubelets_sandbox()), "")
        config = convert.container_config(kubelets_container())
        container = await self.engine.create_container(sandbox, config)
        await self.engine.start_container(container)
        self.ids = {"pod_sandbox_id": sandbox, "container_id": container}

    def is_served(self, method: MethodDescriptor) -> bool:
        service = self.services[method.containing_service.name]
        return method.name in service.methods or method.name in service.streams

    def base(self, method: MethodDescriptor) -> Message:
        """Return a request as the kubelet sends it."""
        request = message_factory.GetMessageClass(method.input_type)()
        values: dict[str, object] = {
            **self.ids,
            "cmd": ["true"],
            "stdout": True,
            "port": [80],
            "location": "/c",
        }
        for name, value in values.items():
            if name in method.input_type.fields_by_name:
                field = method.input_type.fields_by_name[name]
                if field.is_repeated:
                    getattr(request, name).extend(value)
                else:
                    setattr(request, name, value)
        if method.name == "RunPodSandbox":
            request.config.CopyFrom(kubelets_sandbox())  # type: ignore[attr-defined]
        if method.name == "CreateContainer":
            request.config.CopyFrom(kubelets_container())  # type: ignore[attr-defined]
            request.config.mounts.add(  # type: ignore[attr-defined]
                container_path="/i", readonly=True, image=pb.ImageSpec(image="app:1")
            )
        if "image" in method.input_type.fields_by_name:
            request.image.image = IMAGE.id  # type: ignore[attr-defined]
        return request

    async def call(self, method: MethodDescriptor, request: Message) -> None:
        """Answer a request that notes what is read of it; a refusal has read the field as well."""
        service = self.services[method.containing_service.name]
        spy: Any = Spy(request, self.seen)
        with suppress(NodeRuntimeError):
            if method.name in service.methods:
                await service.methods[method.name](spy)
            elif method.name != "GetContainerEvents":
                async for _ in service.streams[method.name](spy):
                    pass


async def call_anew(
    seen: set[Read],
    method: MethodDescriptor,
    requests: Callable[[Message], Iterable[Message]],
) -> None:
    """Make the calls, each on a node of its own: some of them take the Pod away."""
    scene = Scene(seen)
    await scene.prepare()
    for request in requests(scene.base(method)):
        await scene.call(method, request)


def with_one_more(base: Message, wanted: Read) -> Iterator[Message]:
    """Yield ``base`` with the wanted field set, wherever it may be set by one step from what is there."""
    descriptor: Any = base.DESCRIPTOR
    for path in paths_to(descriptor, wanted, ()):
        copy = type(base)()
        copy.CopyFrom(base)
        target: Any = copy
        for name in path[:-1]:
            field = target.DESCRIPTOR.fields_by_name[name]
            step = getattr(target, name)
            target = (step[0] if step else step.add()) if field.is_repeated else step
        set_something(target, path[-1])
        yield copy


def paths_to(
    descriptor: Descriptor, wanted: Read, way: tuple[str, ...]
) -> Iterator[tuple[str, ...]]:
    for field in descriptor.fields:
        if (descriptor.name, field.name) == wanted:
            yield (*way, field.name)
        kind = field.message_type
        if kind is not None and not kind.GetOptions().map_entry and len(way) < 6:
            yield from paths_to(kind, wanted, (*way, field.name))


def set_something(message: Any, name: str) -> None:
    field: FieldDescriptor = message.DESCRIPTOR.fields_by_name[name]
    if field.message_type is not None:
        if field.message_type.GetOptions().map_entry:
            getattr(message, name)["a"] = "b"
        elif field.is_repeated:
            getattr(message, name).add()
        else:
            getattr(message, name).SetInParent()
        return
    value: Any = 1
    if field.cpp_type == FieldDescriptor.CPPTYPE_STRING:
        value = b"x" if field.type == FieldDescriptor.TYPE_BYTES else "x"
    if field.is_repeated:
        getattr(message, name).append(value)
    else:
        setattr(message, name, value)


def is_excused(field: Read) -> bool:
    return any(fnmatch(".".join(field), each) for each in EXCUSES)


@pytest.mark.slow
async def test_every_field_of_every_request_is_read_or_excused(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    for module in (convert, runtime_service):  # walks what it cannot know: that is no reading
        monkeypatch.setattr(module, "refuse_unknown_fields", lambda *_: None)
    seen: set[Read] = set()
    wanted: set[Read] = set()
    for method in (each for each in METHODS if Scene(seen).is_served(each)):
        wanted |= fields_of(method.input_type, set())
        await call_anew(seen, method, lambda base: [base])
        for field in sorted(fields_of(method.input_type, set()) - seen):
            if is_excused(field):
                continue
            await call_anew(seen, method, partial(with_one_more, wanted=field))
    assert {".".join(field) for field in wanted - seen if not is_excused(field)} == set()


def test_every_excuse_has_a_reason() -> None:
    assert all(len(reason) > 20 for reason in EXCUSES.values())


def test_every_excuse_is_of_a_field_that_there_is() -> None:
    fields = {".".join(field) for m in METHODS for field in fields_of(m.input_type, set())}
    for name in EXCUSES:
        assert any(fnmatch(field, name) for field in fields), name
