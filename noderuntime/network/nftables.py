"""The nftables of the bridge network: one table, made once, and an element a host port.

A Pod without host ports changes nothing here, one with them adds elements to maps: no program is
run, and rules do not grow with Pods. What an element maps to says whose it is. The table is written
whole, in one transaction, so it is never there by half. In the words of nft(8):

    table inet BRIDGE {
        map any4 { type inet_proto . inet_service : ipv4_addr . inet_service; }  # any6, with host IP: to4, to6
        chain guard { type filter hook prerouting priority raw;
            iifname BRIDGE ip daddr 127.0.0.0/8 drop }  # route_localnet opened the node's own to it
        chain prerouting { type nat hook prerouting priority dstnat; fib daddr type local jump ports }
        chain output { type nat hook output priority dstnat; fib daddr type local jump ports }
        chain ports { mark set mark | 0x2000 dnat ip to ip daddr . meta l4proto . th dport map @to4, ... }
        chain postrouting { type nat hook postrouting priority srcnat;
            ip saddr SUBNET ip daddr != { SUBNET, 224.0.0.0/4 } masquerade   # to the outside
            ip saddr SUBNET oifname BRIDGE mark & 0x2000 masquerade          # a Pod to a host port
            ip saddr 127.0.0.0/8 oifname BRIDGE mark & 0x2000 masquerade }   # the node to one
    }

Sources: nft(8), include/uapi/linux/netfilter/nf_tables.h, nfnetlink(7).
"""

from __future__ import annotations

import ipaddress
import socket
import struct
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Final

from noderuntime.network.netlink import (
    ACK,
    CREATE,
    Message,
    attribute,
    attributes_of,
    each_attribute,
    nested,
    text,
)
from noderuntime.network.rtnetlink import Address, Net

_SUBSYSTEM: Final = 10
_BEGIN, _END = 0x10, 0x11
_NEWTABLE, _GETTABLE, _DELTABLE, _NEWCHAIN, _NEWRULE, _NEWSET = 0, 1, 2, 3, 6, 9
_NEWELEM, _GETELEM, _DELELEM = 12, 13, 14
_INET: Final = 1
_APPEND: Final = 0x800

_PREROUTING, _OUTPUT, _POSTROUTING = 0, 3, 4
_RAW, _DSTNAT, _SRCNAT = -300, -100, 100

# Registers of four bytes: what is looked up is put together from KEY on, what is found goes to DATA.
_KEY: Final = 8
_DATA: Final = 16
_VERDICT: Final = 0
_DROP: Final = 0
_JUMP: Final = -3 & 0xFFFFFFFF
_NETWORK_HEADER, _TRANSPORT_HEADER = 1, 2
_IIFNAME, _OIFNAME, _NFPROTO, _L4PROTO = 6, 7, 15, 16
_EQUAL, _NOT_EQUAL = 0, 1
_META_MARK: Final = 3
_MARK: Final = 0x2000  # the bit that CNI's portmap uses for the same
_MAP: Final = 8

PROTOCOLS: Final = {"tcp": 6, "udp": 17, "sctp": 132}
_PROTOCOL_NAMES: Final = {number: name for name, number in PROTOCOLS.items()}
# nft(8) reads these numbers to print the maps: five bits a part would do, it takes six.
_T_V4, _T_V6, _T_PROTOCOL, _T_PORT = 7, 8, 12, 13


@dataclass(frozen=True, slots=True, kw_only=True)
class HostPort:
    """A port of the node that leads to a Pod's. ``host_ip`` is None for every address."""

    protocol: str
    port: int
    pod: Address
    pod_port: int
    host_ip: Address | None = None

    @property
    def map_name(self) -> str:
        """Return the map that it belongs to."""
        return ("any" if self.host_ip is None else "to") + str(self.pod.version)

    @property
    def key(self) -> bytes:
        """Return what is looked up."""
        host = b"" if self.host_ip is None else self.host_ip.packed
        return host + struct.pack(">BxxxHxx", PROTOCOLS[self.protocol], self.port)

    @property
    def data(self) -> bytes:
        """Return what is found."""
        return self.pod.packed + struct.pack(">Hxx", self.pod_port)


def family_of(version: int) -> int:
    """Return the number of IPv4 or IPv6 in netlink messages."""
    return int(socket.AF_INET if version == 4 else socket.AF_INET6)


def _message(kind: int, *attributes: bytes, flags: int = ACK) -> Message:
    header = struct.pack("=BBH", _INET, 0, 0)
    return Message(_SUBSYSTEM << 8 | kind, header + b"".join(attributes), flags)


def _be32(kind: int, value: int) -> bytes:
    return attribute(kind, struct.pack(">I", value & 0xFFFFFFFF))


def _batch(messages: Iterable[Message]) -> list[Message]:
    """Return one transaction."""
    edge = struct.pack(">BBH", 0, 0, _SUBSYSTEM)
    return [Message(_BEGIN, edge), *messages, Message(_END, edge)]


def write_table(table: str, subnets: Sequence[Net], ports: Iterable[HostPort]) -> list[Message]:
    """Return what makes the whole table anew, whatever was there."""
    name = text(1, table)
    messages = [
        _message(_NEWTABLE, name, flags=ACK | CREATE),
        _message(_DELTABLE, name),
        _message(_NEWTABLE, name, flags=ACK | CREATE),
        *_maps(table),
        _chain(table, "guard", "filter", _PREROUTING, _RAW),
        _chain(table, "prerouting", "nat", _PREROUTING, _DSTNAT),
        _chain(table, "output", "nat", _OUTPUT, _DSTNAT),
        _chain(table, "postrouting", "nat", _POSTROUTING, _SRCNAT),
        _chain(table, "ports"),
        _rule(
            table,
            "guard",
            _name_is(_IIFNAME, table),
            _in_network(ipaddress.ip_network("127.0.0.0/8"), source=False),
            _verdict(_DROP),
        ),
        *(
            _rule(table, chain, _to_the_node(), _verdict(_JUMP, "ports"))
            for chain in ("prerouting", "output")
        ),
        *(
            _rule(table, "ports", _dnat(kind, version))
            for version in (4, 6)
            for kind in ("to", "any")
        ),
        *_postrouting(table, subnets),
    ]
    return _batch([*messages, *_elements(_NEWELEM, table, ports, ACK | CREATE)])


def delete_table(table: str) -> list[Message]:
    """Return what removes it."""
    return _batch([_message(_DELTABLE, text(1, table))])


def add_ports(table: str, ports: Iterable[HostPort]) -> list[Message]:
    """Return what adds elements; the kernel refuses one that is there with other data."""
    return _batch(_elements(_NEWELEM, table, ports, ACK | CREATE))


def remove_ports(table: str, ports: Iterable[HostPort]) -> list[Message]:
    """Return what removes elements; the kernel refuses one that is not there."""
    return _batch(_elements(_DELELEM, table, ports, ACK))


def get_table(table: str) -> Message:
    """Ask whether the table is there."""
    return _message(_GETTABLE, text(1, table))


def get_ports(table: str, map_name: str) -> Message:
    """Ask for the elements of a map."""
    return _message(_GETELEM, text(1, table), text(2, map_name), flags=0)


MAP_NAMES: Final = ("any4", "any6", "to4", "to6")


def ports_of(body: bytes, map_name: str) -> list[HostPort]:
    """Parse one of ``get_ports``; what is none of ours is left out."""
    found: list[HostPort] = []
    listed = attributes_of(body[4:]).get(3, b"")
    for _, element in each_attribute(listed):
        parts = attributes_of(element)
        key = attributes_of(parts.get(1, b"")).get(1, b"")
        data = attributes_of(parts.get(2, b"")).get(1, b"")
        size = 4 if map_name.endswith("4") else 16
        has_host = map_name.startswith("to")
        if len(data) < size + 2 or len(key) < (size if has_host else 0) + 6:
            continue
        host, rest = (key[:size], key[size:]) if has_host else (b"", key)
        protocol, port = struct.unpack(">BxxxH", rest[:6])
        if protocol not in _PROTOCOL_NAMES:
            continue
        found.append(
            HostPort(
                protocol=_PROTOCOL_NAMES[protocol],
                port=port,
                pod=ipaddress.ip_address(data[:size]),
                pod_port=struct.unpack(">H", data[size : size + 2])[0],
                host_ip=ipaddress.ip_address(host) if has_host else None,
            )
        )
    return found


def _maps(table: str) -> Iterable[Message]:
    service = _T_PROTOCOL << 6 | _T_PORT
    for number, name in enumerate(MAP_NAMES, 1):
        kind, size = (_T_V4, 4) if name.endswith("4") else (_T_V6, 16)
        has_host = name.startswith("to")
        yield _message(
            _NEWSET,
            text(1, table),
            text(2, name),
            _be32(3, _MAP),
            _be32(4, kind << 12 | service if has_host else service),
            _be32(5, size + 8 if has_host else 8),
            _be32(6, kind << 6 | _T_PORT),
            _be32(7, size + 4),
            _be32(10, number),
            flags=ACK | CREATE,
        )


def _elements(kind: int, table: str, ports: Iterable[HostPort], flags: int) -> Iterable[Message]:
    by_map: dict[str, list[bytes]] = {}
    for port in ports:
        element = nested(1, nested(1, attribute(1, port.key)), nested(2, attribute(1, port.data)))
        by_map.setdefault(port.map_name, []).append(element)
    for name, elements in by_map.items():
        yield _message(kind, text(1, table), text(2, name), nested(3, *elements), flags=flags)


def _chain(table: str, name: str, kind: str = "", hook: int = 0, priority: int = 0) -> Message:
    base = (nested(4, _be32(1, hook), _be32(2, priority)), text(7, kind)) if kind else ()
    return _message(_NEWCHAIN, text(1, table), text(3, name), *base, flags=ACK | CREATE)


def _rule(table: str, chain: str, *expressions: bytes) -> Message:
    return _message(
        _NEWRULE,
        text(1, table),
        text(2, chain),
        nested(4, *expressions),
        flags=ACK | CREATE | _APPEND,
    )


def _expression(name: str, *attributes: bytes) -> bytes:
    return nested(1, text(1, name), nested(2, *attributes))


def _compare(register: int, value: bytes, how: int = _EQUAL) -> bytes:
    return _expression("cmp", _be32(1, register), _be32(2, how), nested(3, attribute(1, value)))


def _meta(key: int, register: int = _KEY) -> bytes:
    return _expression("meta", _be32(1, register), _be32(2, key))


def _payload(base: int, offset: int, length: int, register: int = _KEY) -> bytes:
    return _expression(
        "payload", _be32(1, register), _be32(2, base), _be32(3, offset), _be32(4, length)
    )


def _is_version(version: int) -> bytes:
    return _meta(_NFPROTO) + _compare(_KEY, bytes([family_of(version)]))


def _address(version: int, *, source: bool, register: int = _KEY) -> bytes:
    """Load an address of the IP header: RFC 791 section 3.1, RFC 8200 section 3."""
    size = 4 if version == 4 else 16
    first = 12 if version == 4 else 8
    return _payload(_NETWORK_HEADER, first if source else first + size, size, register)


def _in_network(network: Net, *, source: bool, how: int = _EQUAL) -> bytes:
    size = len(network.network_address.packed)
    mask = nested(4, attribute(1, network.netmask.packed))
    nothing = nested(5, attribute(1, bytes(size)))
    masked = _expression("bitwise", _be32(1, _KEY), _be32(2, _KEY), _be32(3, size), mask, nothing)
    return (
        _is_version(network.version)
        + _address(network.version, source=source)
        + masked
        + _compare(_KEY, network.network_address.packed, how)
    )


def _name_is(key: int, name: str) -> bytes:
    return _meta(key) + _compare(_KEY, name.encode().ljust(16, b"\0"))


def _verdict(code: int, chain: str = "") -> bytes:
    target = (text(2, chain),) if chain else ()
    data = nested(2, nested(2, _be32(1, code), *target))
    return _expression("immediate", _be32(1, _VERDICT), data)


def _to_the_node() -> bytes:
    """Match what goes to an address of the node's own: fib daddr type local."""
    local = struct.pack("=I", 2)
    return _expression("fib", _be32(1, _KEY), _be32(2, 3), _be32(3, 2)) + _compare(_KEY, local)


def _mask_mark(mask: int, flip: int) -> bytes:
    return _expression(
        "bitwise",
        _be32(1, _KEY),
        _be32(2, _KEY),
        _be32(3, 4),
        nested(4, attribute(1, struct.pack("=I", mask))),
        nested(5, attribute(1, struct.pack("=I", flip))),
    )


def _set_mark() -> bytes:
    """Mark the packet as one for a host port: what kube-proxy rewrote is not to be taken for it."""
    mark = _mask_mark(_MARK ^ 0xFFFFFFFF, _MARK)
    return _meta(_META_MARK) + mark + _expression("meta", _be32(2, _META_MARK), _be32(3, _KEY))


def _has_mark() -> bytes:
    return _meta(_META_MARK) + _mask_mark(_MARK, 0) + _compare(_KEY, bytes(4), _NOT_EQUAL)


def _dnat(kind: str, version: int) -> bytes:
    """Look the target up in a map, and rewrite it."""
    words = (4 if version == 4 else 16) // 4
    parts, register = b"", _KEY
    if kind == "to":
        parts += _address(version, source=False, register=register)
        register += words
    parts += _meta(_L4PROTO, register)
    parts += _payload(_TRANSPORT_HEADER, 2, 2, register + 1)
    lookup = _expression("lookup", text(1, f"{kind}{version}"), _be32(2, _KEY), _be32(3, _DATA))
    port = _DATA + words
    nat = _expression(
        "nat",
        _be32(1, 1),
        _be32(2, family_of(version)),
        _be32(3, _DATA),
        _be32(4, _DATA),
        _be32(5, port),
        _be32(6, port),
    )
    return _is_version(version) + parts + lookup + _set_mark() + nat


def _postrouting(table: str, subnets: Sequence[Net]) -> Iterable[Message]:
    masquerade = _expression("masq")
    multicast = {4: ipaddress.ip_network("224.0.0.0/4"), 6: ipaddress.ip_network("ff00::/8")}
    hosts: list[Net] = [*subnets, ipaddress.ip_network("127.0.0.0/8")]
    for subnet in subnets:
        yield _rule(
            table,
            "postrouting",
            _in_network(subnet, source=True),
            _in_network(subnet, source=False, how=_NOT_EQUAL),
            _in_network(multicast[subnet.version], source=False, how=_NOT_EQUAL),
            masquerade,
        )
    for host in hosts:
        yield _rule(
            table,
            "postrouting",
            _in_network(host, source=True),
            _name_is(_OIFNAME, table),
            _has_mark(),
            masquerade,
        )
