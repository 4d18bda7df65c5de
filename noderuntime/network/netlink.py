"""Netlink in small: attributes, messages, and one exchange on a socket.

A library for it costs 150 ms of CPU at start and 20 MiB (pyroute2 0.9.7, measured), more than the
rest of the network part; what is needed here are a dozen messages. The kernel works off everything
within sendmsg(2), so the answers are there when it returns and nothing in here waits for long.
netlink(7), rtnetlink(7); include/uapi/linux/netlink.h.
"""

from __future__ import annotations

import errno
import os
import socket
import struct
from collections.abc import Iterable, Iterator, Sequence
from contextlib import suppress
from dataclasses import dataclass
from typing import Final, Self

ROUTE: Final = 0
NETFILTER: Final = 12

ACK: Final = 0x004
REPLACE: Final = 0x100
EXCL: Final = 0x200
CREATE: Final = 0x400
_REQUEST: Final = 0x001
_DUMP: Final = 0x300
_NESTED: Final = 0x8000
_TYPE_MASK: Final = 0x3FFF

_ERROR: Final = 2
_DONE: Final = 3
_HEADER: Final = struct.Struct("=IHHII")  # length, type, flags, sequence, port
_ATTRIBUTE: Final = struct.Struct("=HH")  # length, type

_SOL_NETLINK: Final = 270
_CAP_ACK: Final = 10
_EXT_ACK: Final = 11
_ACK_CAPPED: Final = 0x100
_ACK_HAS_ATTRIBUTES: Final = 0x200
_ACK_TEXT: Final = 1
_RECEIVE_BYTES: Final = 256 * 1024
_TIMEOUT_S: Final = 5.0


class RefusedError(OSError):
    """The kernel refused a message; ``index`` is its place among those that were sent."""

    def __init__(self, number: int, text: str, index: int) -> None:
        """Keep the number as an OSError has it; ``text`` is the kernel's, or strerror's."""
        super().__init__(number, text)
        self.index = index


@dataclass(frozen=True, slots=True)
class Message:
    """One message: ``body`` is the family's own header with the attributes behind it."""

    kind: int
    body: bytes
    flags: int = 0


def attribute(kind: int, value: bytes) -> bytes:
    """Return one attribute, padded to four bytes."""
    return _ATTRIBUTE.pack(4 + len(value), kind) + value + bytes(-len(value) % 4)


def nested(kind: int, *attributes: bytes) -> bytes:
    """Return an attribute that holds attributes."""
    return attribute(kind | _NESTED, b"".join(attributes))


def text(kind: int, value: str) -> bytes:
    """Return an attribute that holds a string."""
    return attribute(kind, value.encode() + b"\0")


def u32(kind: int, value: int) -> bytes:
    """Return an attribute that holds a number in the machine's order, as rtnetlink has them."""
    return attribute(kind, struct.pack("=I", value))


def attributes_of(data: bytes) -> dict[int, bytes]:
    """Take attributes to pieces; of a kind that is there twice, the last counts."""
    return dict(each_attribute(data))


def each_attribute(data: bytes) -> Iterator[tuple[int, bytes]]:
    """Yield kind and value of each attribute; stops at what is no attribute."""
    offset = 0
    while offset + 4 <= len(data):
        length, kind = _ATTRIBUTE.unpack_from(data, offset)
        if length < 4 or offset + length > len(data):
            return
        yield kind & _TYPE_MASK, data[offset + 4 : offset + length]
        offset += length + (-length % 4)


def string_of(value: bytes) -> str:
    """Return the text of an attribute."""
    return value.rstrip(b"\0").decode(errors="replace")


class Channel:
    """A socket of one netlink family, in the network namespace of the thread that opens it."""

    def __init__(self, family: int) -> None:
        """Open it. Raises OSError."""
        self._socket = socket.socket(
            socket.AF_NETLINK, socket.SOCK_RAW | socket.SOCK_CLOEXEC, family
        )
        self._socket.settimeout(_TIMEOUT_S)
        self._sequence = 0
        for option in (_CAP_ACK, _EXT_ACK):
            with suppress(OSError):  # only for better words
                self._socket.setsockopt(_SOL_NETLINK, option, 1)

    def __enter__(self) -> Self:
        """Return itself."""
        return self

    def __exit__(self, *_: object) -> None:
        """Close it."""
        self._socket.close()

    def send(self, messages: Sequence[Message]) -> None:
        """Send all at once. Raises RefusedError for the first refused; the others were done.

        (The messages of an nftables batch are all done or none.)
        """
        if not messages:
            return  # the kernel takes nothing for an error
        first = self._sequence + 1
        self._socket.send(b"".join(self._frame(message) for message in messages))
        owed = {first + i for i, message in enumerate(messages) if message.flags & ACK}
        refused: dict[int, tuple[int, str]] = {}
        while owed:
            for kind, flags, sequence, body in self._receive():
                if kind == _ERROR and sequence >= first:
                    owed.discard(sequence)
                    number, words = _refusal(flags, body)
                    if number:
                        refused.setdefault(sequence - first, (number, words))
                        if not messages[sequence - first].flags & ACK:
                            owed.clear()  # of a batch that was refused whole, nothing more comes
        if refused:
            index, (number, words) = min(refused.items())
            raise RefusedError(number, words, index)

    def dump(self, message: Message) -> list[bytes]:
        """Ask for all of a kind; returns the bodies. Raises RefusedError."""
        request = Message(message.kind, message.body, message.flags | _DUMP)
        self._socket.send(self._frame(request))
        found: list[bytes] = []
        while True:
            for kind, flags, sequence, body in self._receive():
                if sequence != self._sequence:
                    continue
                if kind == _DONE:
                    return found
                if kind == _ERROR:
                    number, words = _refusal(flags, body)
                    raise RefusedError(number, words, 0)
                found.append(body)

    def _frame(self, message: Message) -> bytes:
        self._sequence += 1
        length = _HEADER.size + len(message.body)
        flags = message.flags | _REQUEST
        header = _HEADER.pack(length, message.kind, flags, self._sequence, 0)
        return header + message.body + bytes(-length % 4)

    def _receive(self) -> Iterable[tuple[int, int, int, bytes]]:
        try:
            data = self._socket.recv(_RECEIVE_BYTES)
        except TimeoutError as error:
            raise OSError(errno.ETIMEDOUT, "the kernel did not answer") from error
        offset = 0
        while offset + _HEADER.size <= len(data):
            length, kind, flags, sequence, _ = _HEADER.unpack_from(data, offset)
            if length < _HEADER.size:
                return
            yield kind, flags, sequence, data[offset + _HEADER.size : offset + length]
            offset += length + (-length % 4)


def _refusal(flags: int, body: bytes) -> tuple[int, str]:
    """Return the number of an answer, 0 for an acknowledgement, and the kernel's words."""
    number = -struct.unpack_from("=i", body)[0]
    words = ""
    if number and flags & _ACK_HAS_ATTRIBUTES:
        length = _HEADER.size
        if not flags & _ACK_CAPPED:
            length = _HEADER.unpack_from(body, 4)[0]
        words = string_of(attributes_of(body[4 + length :]).get(_ACK_TEXT, b""))
    reason = os.strerror(number).lower()
    return number, f"{reason} ({words})" if words else reason
