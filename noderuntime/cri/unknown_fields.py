"""A field that this version does not know was meant by the caller: it is refused, never dropped.

protobuf keeps unknown fields silently. For a Pod that may be the field that was to confine it, so a
request with one is answered with InvalidArgument instead.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from google.protobuf.unknown_fields import UnknownFieldSet

from noderuntime.errors import InvalidArgumentError

if TYPE_CHECKING:
    from google.protobuf.message import Message


def refuse_unknown_fields(message: Message, path: str = "") -> None:
    """Raise InvalidArgumentError for the first unknown field of ``message`` or anything in it."""
    unknown = UnknownFieldSet(message)
    if len(unknown):
        where = path or message.DESCRIPTOR.name
        raise InvalidArgumentError(
            f"{where} holds field number {unknown[0].field_number}, which this version does not "
            "know: upgrade noderuntime, or do not ask for it"
        )
    for field, value in message.ListFields():
        if field.message_type is None or _is_map_of_plain_values(field):
            continue
        name = f"{path}.{field.name}" if path else field.name
        if field.is_repeated:
            for index, item in enumerate(value):
                refuse_unknown_fields(item, f"{name}[{index}]")
        else:
            refuse_unknown_fields(value, name)


def _is_map_of_plain_values(field: Any) -> bool:  # noqa: ANN401  # stubs lack GetOptions().map_entry
    return bool(field.message_type.GetOptions().map_entry)
