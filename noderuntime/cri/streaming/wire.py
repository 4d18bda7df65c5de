"""What a session needs of a protocol: bytes in, events out, and back. No sockets here.

Three protocols speak it: SPDY/3.1 (``spdy``), SPDY/3.1 inside WebSocket messages (``tunnel``) and
the numbered channels of WebSocket (``channels``), which has neither an opening nor a reset of a
stream: its streams are there from the beginning.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Protocol

if TYPE_CHECKING:
    from noderuntime.cri.streaming.events import Event, Reset


class Wire(Protocol):
    """One end of a connection. Methods queue bytes; ``take_output`` hands them over."""

    @property
    def half_closes(self) -> bool:
        """Whether ``finished`` tells the peer anything; else the stream ends with the session."""
        ...

    @property
    def fixed_streams(self) -> int | None:
        """How many streams there are from the beginning; None when the peer opens them."""
        ...

    @property
    def has_plain_status(self) -> bool:
        """Whether the error stream carries text alone, as before v4 of the channel protocols."""
        ...

    def receive(self, data: bytes) -> list[Event]:
        """Read bytes; returns what happened, in order. Raises ProtocolError: close."""
        ...

    def take_output(self) -> bytes:
        """Return the bytes to write now."""
        ...

    def accept(self, stream_id: int) -> None:
        """Answer a StreamOpened."""
        ...

    def reset(self, stream_id: int, status: Reset) -> None:
        """End a stream in both directions; unknown is success."""
        ...

    def sendable(self, stream_id: int) -> int | None:
        """Return how many bytes may be sent now, or None when the stream takes no more for good."""
        ...

    def send(self, stream_id: int, data: bytes | memoryview, *, finished: bool = False) -> None:
        """Send at most ``sendable`` bytes; ``finished`` half-closes; nothing on an ended stream."""
        ...

    def consumed(self, stream_id: int, count: int) -> None:
        """Tell that ``count`` received bytes were used up."""
        ...

    def keep_alive(self) -> None:
        """Queue a sign of life, where the protocol has one that needs no answer."""
        ...

    def close(self) -> None:
        """Queue the word that this is the end, where the protocol has one."""
        ...
