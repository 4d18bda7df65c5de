"""The rtnetlink messages of the bridge network: links, addresses, routes.

Sources: rtnetlink(7), veth(4), include/uapi/linux/{if_link,rtnetlink}.h, net/core/rtnetlink.c.
"""

from __future__ import annotations

import ipaddress
import socket
import struct
from dataclasses import dataclass
from typing import Final

from noderuntime.network.netlink import (
    ACK,
    CREATE,
    EXCL,
    REPLACE,
    Message,
    attribute,
    attributes_of,
    each_attribute,
    nested,
    string_of,
    text,
    u32,
)

Address = ipaddress.IPv4Address | ipaddress.IPv6Address
Interface = ipaddress.IPv4Interface | ipaddress.IPv6Interface
Net = ipaddress.IPv4Network | ipaddress.IPv6Network

_NEWLINK, _DELLINK, _GETLINK = 16, 17, 18
_NEWADDR: Final = 20
_NEWROUTE, _GETROUTE = 24, 26
_LINK: Final = struct.Struct("=BxHiII")  # family, type, index, flags, change
_ADDR: Final = struct.Struct("=BBBBI")  # family, prefix, flags, scope, index
_ROUTE: Final = struct.Struct("=BBBBBBBBI")  # family, dst, src, tos, table, protocol, scope, type

_UP: Final = 1
_ADDRESS, _IFNAME, _MTU, _LINKINFO, _MASTER, _IFALIAS, _NET_NS_FD = 1, 3, 4, 18, 10, 20, 28
_INFO_KIND, _INFO_DATA, _SLAVE_KIND, _SLAVE_DATA = 1, 2, 4, 5
_VETH_PEER: Final = 1
_PORT_STATE, _PORT_HAIRPIN = 1, 4
_STATE_LISTENING: Final = 1
_FORWARD_DELAY: Final = 1
_IFA_ADDRESS, _IFA_LOCAL, _IFA_FLAGS = 1, 2, 8
_NODAD: Final = 0x02
_RTA_DST, _RTA_OIF, _RTA_GATEWAY, _RTA_PRIORITY = 1, 4, 5, 6
_TABLE_MAIN: Final = 254
_PROTOCOL_STATIC: Final = 4
_UNICAST: Final = 1
LOOPBACK_INDEX: Final = 1


@dataclass(frozen=True, slots=True, kw_only=True)
class Link:
    """A link as the kernel has it; ``alias`` is a text that anyone may give it."""

    index: int
    name: str
    kind: str = ""
    alias: str = ""
    master: int = 0
    mtu: int = 0
    is_up: bool = False


@dataclass(frozen=True, slots=True, kw_only=True)
class Route:
    """A route of the main table; ``oif`` is the link's index, 0 where it has several."""

    destination: Net
    oif: int


@dataclass(frozen=True, slots=True, kw_only=True)
class Veth:
    """A pair: ``name`` on the node, ``inner`` in the namespace of ``netns`` (a descriptor)."""

    name: str
    inner: str
    netns: int
    master: int
    mac: bytes
    mtu: int
    alias: str


def _link(index: int = 0, *, up: bool = False) -> bytes:
    flags = _UP if up else 0
    return _LINK.pack(socket.AF_UNSPEC, 0, index, flags, flags)


def new_bridge(name: str, *, mac: bytes, alias: str) -> tuple[Message, ...]:
    """Make a bridge. Its address is set, else it changes with every port.

    Without a forward delay no timer changes what ``close_port`` set.
    """
    made = _link() + text(_IFNAME, name) + attribute(_ADDRESS, mac)
    data = nested(_INFO_DATA, u32(_FORWARD_DELAY, 0))
    made += nested(_LINKINFO, text(_INFO_KIND, "bridge"), data)
    return (
        Message(_NEWLINK, made, ACK | CREATE | EXCL),
        Message(_NEWLINK, _link() + text(_IFNAME, name) + text(_IFALIAS, alias), ACK),
    )


def new_veth(veth: Veth) -> tuple[Message, ...]:
    """Make a pair, the outer end up and a port of ``master`` that may talk to itself.

    The inner end cannot be up yet: while it is made, it has no other end (ENOTCONN).
    """
    mtu = u32(_MTU, veth.mtu)
    inner = _link() + text(_IFNAME, veth.inner) + attribute(_ADDRESS, veth.mac)
    inner += mtu + u32(_NET_NS_FD, veth.netns)
    info = nested(
        _LINKINFO, text(_INFO_KIND, "veth"), nested(_INFO_DATA, nested(_VETH_PEER, inner))
    )
    outer = _link(up=True) + text(_IFNAME, veth.name) + u32(_MASTER, veth.master) + mtu + info
    port = _port(attribute(_PORT_HAIRPIN, b"\1"))
    rest = _link() + text(_IFNAME, veth.name) + text(_IFALIAS, veth.alias) + port
    return Message(_NEWLINK, outer, ACK | CREATE | EXCL), Message(_NEWLINK, rest, ACK)


def _port(*attributes: bytes) -> bytes:
    return nested(_LINKINFO, text(_SLAVE_KIND, "bridge"), nested(_SLAVE_DATA, *attributes))


def close_port(name: str) -> Message:
    """Let a port of a bridge forward nothing any more: at once, and without a wait.

    To delete a link, to take it down or off its bridge all wait for a grace period of the kernel.
    Listening is a state of STP; the bridge itself turns disabled and blocking back into forwarding.
    """
    off = attribute(_PORT_STATE, bytes([_STATE_LISTENING]))
    return Message(_NEWLINK, _link() + text(_IFNAME, name) + _port(off), ACK)


def set_master(name: str, master: int) -> Message:
    """Make a link a port of a bridge."""
    return Message(_NEWLINK, _link() + text(_IFNAME, name) + u32(_MASTER, master), ACK)


def delete_link(name: str) -> Message:
    """Remove a link, with its peer. Takes some 30 ms, of which nothing is work."""
    return Message(_DELLINK, _link() + text(_IFNAME, name), ACK)


def set_up(index: int) -> Message:
    """Take a link up."""
    return Message(_NEWLINK, _link(index, up=True), ACK)


def new_address(index: int, interface: Interface) -> Message:
    """Give a link an address; an IPv6 one is good at once, as nobody else can have it."""
    family, packed = _family(interface.ip), interface.ip.packed
    flags = _NODAD if interface.version == 6 else 0
    body = _ADDR.pack(family, interface.network.prefixlen, flags, 0, index)
    body += attribute(_IFA_LOCAL, packed) + attribute(_IFA_ADDRESS, packed)
    return Message(_NEWADDR, body + u32(_IFA_FLAGS, flags), ACK | CREATE | REPLACE)


def default_route(index: int, gateway: Address) -> Message:
    """Send everything else through ``gateway``."""
    header = _ROUTE.pack(_family(gateway), 0, 0, 0, _TABLE_MAIN, _PROTOCOL_STATIC, 0, _UNICAST, 0)
    body = header + attribute(_RTA_GATEWAY, gateway.packed) + u32(_RTA_OIF, index)
    return Message(_NEWROUTE, body, ACK | CREATE)


def _family(address: Address) -> int:
    return socket.AF_INET if address.version == 4 else socket.AF_INET6


def get_links() -> Message:
    """Ask for all links."""
    return Message(_GETLINK, _link())


def link_of(body: bytes) -> Link:
    """Parse one of ``get_links``."""
    _, _, index, flags, _ = _LINK.unpack_from(body)
    found = attributes_of(body[_LINK.size :])
    info = attributes_of(found.get(_LINKINFO, b""))
    return Link(
        index=index,
        name=string_of(found.get(_IFNAME, b"")),
        kind=string_of(info.get(_INFO_KIND, b"")),
        alias=string_of(found.get(_IFALIAS, b"")),
        master=_number(found.get(_MASTER)),
        mtu=_number(found.get(_MTU)),
        is_up=bool(flags & _UP),
    )


def _number(value: bytes | None) -> int:
    return int(struct.unpack("=I", value)[0]) if value else 0


def get_routes() -> Message:
    """Ask for all routes."""
    return Message(_GETROUTE, _ROUTE.pack(*(0,) * 9))


def route_of(body: bytes) -> Route | None:
    """Parse one of ``get_routes``; None for what is not of the main table, or goes nowhere."""
    family, prefix, _, _, table, _, _, kind, _ = _ROUTE.unpack_from(body)
    if table != _TABLE_MAIN or kind != _UNICAST or family not in (socket.AF_INET, socket.AF_INET6):
        return None
    found = dict(each_attribute(body[_ROUTE.size :]))
    packed = found.get(_RTA_DST, bytes(4 if family == socket.AF_INET else 16))
    destination = ipaddress.ip_network((packed, prefix), strict=False)
    return Route(destination=destination, oif=_number(found.get(_RTA_OIF)))
