"""Which protocol a request asks for, and the answer that begins it. Values only, no sockets.

A client names what it speaks in the order in which it likes it; the first that is served is taken,
as the Go servers do. WebSocket clients that name nothing get the channel protocol's first version.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Final

from noderuntime.cri.streaming import port_forward, remote_command, spdy, websocket
from noderuntime.cri.streaming.channels import BYTES, ChannelConnection
from noderuntime.cri.streaming.tokens import Forward, Ticket
from noderuntime.cri.streaming.tunnel import Tunnel

if TYPE_CHECKING:
    import h11

    from noderuntime.cri.streaming.wire import Wire

KINDS: Final = frozenset({"exec", "attach", "portforward"})
_SPDY_PROTOCOLS: Final = b"x-stream-protocol-version"
_WEBSOCKET_PROTOCOLS: Final = b"sec-websocket-protocol"
_ACCEPTED_HEADER: Final = b"X-Accepted-Stream-Protocol-Versions"


class Refused(Exception):  # noqa: N818  # an answer, not an error
    """The request gets this answer instead of an upgrade."""

    def __init__(self, status: int, text: str, headers: Sequence[tuple[bytes, bytes]] = ()) -> None:
        """Say it with ``text``, for a person."""
        super().__init__(text)
        self.status = status
        self.headers = headers


@dataclass(frozen=True, slots=True, kw_only=True)
class Upgrade:
    """What was agreed: ``headers`` of the answer; ``wire`` makes our end of it or raises Refused."""

    headers: tuple[tuple[bytes, bytes], ...]
    wire: Callable[[Ticket], Wire]


def kind_and_token(request: h11.Request) -> tuple[str, str]:
    """Return the two parts of the path; raises Refused."""
    path, _, _ = request.target.decode("latin-1").partition("?")
    kind, _, token = path.lstrip("/").partition("/")
    if request.method not in {b"GET", b"POST"}:
        raise Refused(405, "only GET and POST")
    if kind not in KINDS:
        raise Refused(404, "not found")
    return kind, token


def negotiate(request: h11.Request, kind: str) -> Upgrade:
    """Return what client and server agree on; raises Refused."""
    headers = {bytes(name).lower(): bytes(value) for name, value in request.headers}
    asked = headers.get(b"upgrade", b"").lower()
    if b"spdy/3.1" in asked:
        return _spdy(request, kind)
    if asked == b"websocket" and b"upgrade" in headers.get(b"connection", b"").lower():
        return _websocket(request, kind, headers)
    raise Refused(400, "unable to upgrade: the request asks for neither SPDY/3.1 nor a WebSocket")


def _spdy(request: h11.Request, kind: str) -> Upgrade:
    served = port_forward.PROTOCOLS if kind == "portforward" else remote_command.PROTOCOLS
    protocol = _first(_asked(request, _SPDY_PROTOCOLS), served)
    return Upgrade(
        headers=(
            (b"Connection", b"Upgrade"),
            (b"Upgrade", b"SPDY/3.1"),
            (b"X-Stream-Protocol-Version", protocol.encode()),
        ),
        wire=lambda _: spdy.Connection(),
    )


def _websocket(request: h11.Request, kind: str, headers: Mapping[bytes, bytes]) -> Upgrade:
    accept = websocket.answer_of(headers)
    if accept is None or request.method != b"GET":
        raise Refused(
            400, "not a WebSocket handshake of version 13", ((b"Sec-WebSocket-Version", b"13"),)
        )
    served: Sequence[str] = remote_command.CHANNEL_PROTOCOLS
    fallback = BYTES[-1]
    if kind == "portforward":
        served = (*port_forward.TUNNEL_PROTOCOLS, *port_forward.CHANNEL_PROTOCOLS)
        fallback = port_forward.CHANNEL_PROTOCOLS[0]
    asked = _asked(request, _WEBSOCKET_PROTOCOLS)
    protocol = _first(asked, served) if asked else fallback
    answer = [
        (b"Connection", b"Upgrade"),
        (b"Upgrade", b"websocket"),
        (b"Sec-WebSocket-Accept", accept),
    ]
    if asked:
        answer.append((b"Sec-WebSocket-Protocol", protocol.encode()))

    def wire(ticket: Ticket) -> Wire:
        if protocol in port_forward.TUNNEL_PROTOCOLS:
            return Tunnel()
        if isinstance(ticket, Forward):
            if not 0 < len(ticket.ports) <= port_forward.MAX_CHANNEL_PORTS:
                most = port_forward.MAX_CHANNEL_PORTS
                raise Refused(400, f"channels are for 1 to {most} ports, named in the request")
            return ChannelConnection(protocol, port_forward.channels(ticket))
        return ChannelConnection(protocol, remote_command.channels(ticket))

    return Upgrade(headers=tuple(answer), wire=wire)


def _asked(request: h11.Request, header: bytes) -> list[str]:
    return [
        word.strip()
        for name, value in request.headers
        if bytes(name).lower() == header
        for word in bytes(value).decode("latin-1").split(",")
    ]


def _first(asked: Sequence[str], served: Sequence[str]) -> str:
    for protocol in asked:
        if protocol in served:
            return protocol
    accepted = [(_ACCEPTED_HEADER, protocol.encode()) for protocol in served]
    raise Refused(403, f"unable to negotiate a protocol: served are {', '.join(served)}", accepted)
