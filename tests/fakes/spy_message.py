"""A protobuf message that notes which of its fields are read, for every message within it too."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from google.protobuf.message import Message

Read = tuple[str, str]  # message, field


class Spy:
    """Stands for ``message``; what is read is added to ``seen`` as (message's name, field)."""

    def __init__(self, message: Message, seen: set[Read]) -> None:
        """Note nothing yet."""
        self._message = message
        self._seen = seen

    def __getattr__(self, name: str) -> Any:
        value = getattr(self._message, name)
        field = self._message.DESCRIPTOR.fields_by_name.get(name)
        if field is None:
            return value
        self._seen.add((self._message.DESCRIPTOR.name, name))
        if field.message_type is None or field.message_type.GetOptions().map_entry:
            return value
        if field.is_repeated:
            return [Spy(each, self._seen) for each in value]
        return Spy(value, self._seen)

    def HasField(self, name: str) -> bool:  # noqa: N802 - protobuf's name
        self._seen.add((self._message.DESCRIPTOR.name, name))
        return self._message.HasField(name)
