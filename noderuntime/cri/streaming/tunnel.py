"""SPDY/3.1 inside the binary messages of a WebSocket: port-forward of today's clients.

Where a message begins and ends means nothing: their contents are one stream of bytes.
Source: KEP-4006, client-go v0.37.2 ``tools/portforward/tunneling_connection.go``.
"""

from __future__ import annotations

from noderuntime.cri.streaming import spdy
from noderuntime.cri.streaming.events import Closed, Event, ProtocolError
from noderuntime.cri.streaming.websocket import Frames


class Tunnel(spdy.Connection):
    """The server's end."""

    def __init__(self) -> None:
        """Begin behind both handshakes."""
        super().__init__()
        self._frames = Frames()

    def receive(self, data: bytes) -> list[Event]:
        """Read bytes of the WebSocket; raises ProtocolError."""
        events: list[Event] = []
        for piece in self._frames.receive(data):
            if piece is None:
                events.append(Closed())
            elif isinstance(piece.data, str):
                raise ProtocolError("a text message in a SPDY tunnel")
            else:
                events += super().receive(piece.data)
        return events

    def take_output(self) -> bytes:
        """Return the bytes to write now: what SPDY has to say is one message."""
        if output := super().take_output():
            self._frames.message(output)
        return self._frames.take()

    def keep_alive(self) -> None:
        """Queue a pong."""
        self._frames.pong()

    def close(self) -> None:
        """Say goodbye behind the last of SPDY's bytes."""
        if output := super().take_output():
            self._frames.message(output)
        self._frames.close()
