"""Messages of CRI made from their descriptors, with hostile values; and changes of ordinary ones."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, TypeVar

from google.protobuf import message_factory
from google.protobuf.descriptor import FieldDescriptor
from hypothesis import strategies as st

from noderuntime.cri.runtime_v1 import api_pb2 as pb
from tests.fakes.engine import IMAGE, IMAGE_ID

if TYPE_CHECKING:
    from google.protobuf.message import Message

M = TypeVar("M", bound="Message")

METHODS = {m.name: m for s in pb.DESCRIPTOR.services_by_name.values() for m in s.methods}
HOSTILE = (
    *("", "a", "/", "..", "/a/../b", "../../etc/passwd", "\0", "a\0b", "a\nb", "a\r\nb: c"),
    *(
        "\x1b[2J\x1b]0;x\x07",
        "\x9b31m",
        "\u202egnp",
        "\u200b",
        "\u2028",
        "\x7f",
        "\ud7ff",
        "\U0010ffff",
    ),
    *("a" * 300, "a" * 5000, "/" + "a" * 300, "/" + "a/" * 2000, "/" + "💥" * 1000, "💥" * 60),
    *(
        "-1",
        "--help",
        "%s%n",
        "${HOME}",
        "$(id)",
        "{}",
        "[]",
        "null",
        "0-3",
        "root",
        "0:0",
        "SYS_ADMIN",
    ),
    *("/proc/self/root", "/dev/zero", "/etc/passwd", "net.ipv4.tcp_syncookies", "kernel.shmmax"),
    *(IMAGE, IMAGE_ID, IMAGE_ID[7:20], "Not A Name", "a/" * 200, "http://x/y", "x@sha256:1", ":1"),
    *("unconfined", "runtime/default", "localhost/x", "r", "rwm", "mmm", "noexec", "0-4294967295"),
)
TEXTS = st.one_of(st.sampled_from(HOSTILE), st.text(max_size=20))
NUMBERS = {
    FieldDescriptor.CPPTYPE_INT32: st.sampled_from((0, 1, -1, 2**31 - 1, -(2**31), 80, 10**6)),
    FieldDescriptor.CPPTYPE_INT64: st.sampled_from((0, 1, -1, 2**63 - 1, -(2**63), 10**5, 2**32)),
    FieldDescriptor.CPPTYPE_UINT32: st.sampled_from((0, 1, 2**32 - 1, 2**31, 65536)),
    FieldDescriptor.CPPTYPE_UINT64: st.sampled_from((0, 1, 2**64 - 1, 2**63)),
    FieldDescriptor.CPPTYPE_DOUBLE: st.floats(),
    FieldDescriptor.CPPTYPE_BOOL: st.booleans(),
    FieldDescriptor.CPPTYPE_ENUM: st.integers(-3, 70),
}


def scalar(draw: st.DrawFn, field: Any) -> object:
    """Draw a value of a field that is no message."""
    if field.type == FieldDescriptor.TYPE_STRING:
        return draw(TEXTS)
    if field.type == FieldDescriptor.TYPE_BYTES:
        return draw(st.binary(max_size=20))
    return draw(NUMBERS[field.cpp_type])


def _is_map(field: Any) -> bool:
    kind = field.message_type
    return kind is not None and bool(kind.GetOptions().map_entry)


@st.composite
def messages(draw: st.DrawFn, descriptor: Any, depth: int = 0) -> Message:
    """Draw any message of a descriptor."""
    message = message_factory.GetMessageClass(descriptor)()
    for field in descriptor.fields:
        if not draw(st.booleans()) and field.name not in {"config", "metadata", "linux"}:
            continue
        kind, value = field.message_type, getattr(message, field.name)
        if _is_map(field):
            value.update(draw(st.dictionaries(TEXTS, TEXTS, max_size=3)))
        elif kind is not None and depth > 5:
            continue
        elif field.is_repeated:
            for _ in range(draw(st.integers(0, 2))):
                value.append(draw(messages(kind, depth + 1)) if kind else scalar(draw, field))
        elif kind is not None:
            value.CopyFrom(draw(messages(kind, depth + 1)))
        else:
            setattr(message, field.name, scalar(draw, field))
    return message


@st.composite
def changed(draw: st.DrawFn, ordinary: M, most: int = 3) -> M:
    """Draw ``ordinary`` with up to ``most`` of its fields, at any depth, made hostile."""
    message = type(ordinary)()
    message.CopyFrom(ordinary)
    for _ in range(draw(st.integers(0, most))):
        _change(draw, message)
    return message


def _change(draw: st.DrawFn, message: Message) -> None:
    if not message.DESCRIPTOR.fields:
        return
    field: Any = draw(st.sampled_from(list(message.DESCRIPTOR.fields)))
    kind, value = field.message_type, getattr(message, field.name)
    if _is_map(field):
        value[draw(TEXTS)] = draw(TEXTS)
    elif field.is_repeated and kind is not None:
        if len(value) and draw(st.booleans()):
            _change(draw, value[draw(st.integers(0, len(value) - 1))])
        else:
            value.append(draw(messages(kind, 4)))
    elif field.is_repeated:
        value.append(scalar(draw, field))
    elif kind is not None:
        value.SetInParent()
        _change(draw, value)
    else:
        setattr(message, field.name, scalar(draw, field))


@st.composite
def damaged(draw: st.DrawFn, raw: bytes) -> bytes:
    """Draw ``raw`` with some of its bytes replaced, lost or added: lengths lie, texts are not UTF-8."""
    data = bytearray(raw)
    for _ in range(draw(st.integers(1, 4))):
        at = draw(st.integers(0, len(data)))
        lost = draw(st.integers(0, 3))
        data[at : at + lost] = draw(st.binary(max_size=3))
    return bytes(data)
