"""Forgetting UDP flows to a host port whose Pod came or went.

A flow keeps the target that it had at its first packet, and for UDP nothing ends it as long as the
peer goes on sending: it would never reach a Pod that came later, or reach one that is gone. TCP
connections end by themselves. Best effort: a kernel without ctnetlink has its flows time out.
Source: include/uapi/linux/netfilter/nfnetlink_conntrack.h.
"""

from __future__ import annotations

import struct
from collections.abc import Iterable
from contextlib import suppress
from typing import Final

from noderuntime.network.netlink import ACK, Channel, Message, attribute, attributes_of, nested, u32
from noderuntime.network.nftables import PROTOCOLS, HostPort, family_of

_SUBSYSTEM: Final = 1
_GET, _DELETE = 1, 2
_ORIGINAL, _FILTER, _ZONE = 1, 25, 18
_PROTO, _PROTO_NUMBER, _PROTO_TARGET = 2, 1, 3
_BY_PROTOCOL_AND_TARGET: Final = 1 << 3 | 1 << 5
_UDP: Final = PROTOCOLS["udp"]


def forget_udp(channel: Channel, ports: Iterable[HostPort]) -> None:
    """Forget what was sent to these ports of the node."""
    for version, port in sorted({(p.pod.version, p.port) for p in ports if p.protocol == "udp"}):
        with suppress(OSError):
            for flow in channel.dump(_flows_to(version, port)):
                found = attributes_of(flow[4:])
                if is_flow_to(found, port):
                    with suppress(OSError):  # it ended by itself
                        channel.send([_forget(version, found)])


def _header(version: int) -> bytes:
    return struct.pack("=BBH", family_of(version), 0, 0)


def _flows_to(version: int, port: int) -> Message:
    """Ask for the flows to a port; before Linux 5.8 the answer has all there are."""
    proto = nested(
        _PROTO,
        attribute(_PROTO_NUMBER, bytes([_UDP])),
        attribute(_PROTO_TARGET, struct.pack(">H", port)),
    )
    chosen = nested(_FILTER, u32(1, _BY_PROTOCOL_AND_TARGET), u32(2, 0))
    return Message(_SUBSYSTEM << 8 | _GET, _header(version) + nested(_ORIGINAL, proto) + chosen)


def is_flow_to(flow: dict[int, bytes], port: int) -> bool:
    """Tell whether a flow, taken to pieces, is UDP to that port."""
    proto = attributes_of(attributes_of(flow.get(_ORIGINAL, b"")).get(_PROTO, b""))
    target = proto.get(_PROTO_TARGET, b"")
    return proto.get(_PROTO_NUMBER, b"")[:1] == bytes([_UDP]) and target == struct.pack(">H", port)


def _forget(version: int, flow: dict[int, bytes]) -> Message:
    zone = attribute(_ZONE, flow[_ZONE]) if _ZONE in flow else b""
    body = _header(version) + nested(_ORIGINAL, flow[_ORIGINAL]) + zone
    return Message(_SUBSYSTEM << 8 | _DELETE, body, ACK)
