"""Messages as they go over the wire, and what is made of hostile or torn ones."""

from __future__ import annotations

import struct
from ipaddress import ip_address, ip_network

from hypothesis import given
from hypothesis import strategies as st

from noderuntime.network import conntrack, netlink, nftables, rtnetlink
from noderuntime.network.nftables import HostPort

PORTS = [
    HostPort(protocol="tcp", port=8080, pod=ip_address("10.9.0.2"), pod_port=80),
    HostPort(protocol="udp", port=53, pod=ip_address("fd09::2"), pod_port=5353),
    HostPort(
        protocol="sctp",
        port=1,
        pod=ip_address("10.9.0.2"),
        pod_port=65535,
        host_ip=ip_address("192.0.2.1"),
    ),
    HostPort(
        protocol="tcp", port=1, pod=ip_address("fd09::2"), pod_port=1, host_ip=ip_address("::1")
    ),
]


def test_attributes_are_padded_and_read_again() -> None:
    data = netlink.text(3, "eth0") + netlink.nested(18, netlink.u32(1, 7))
    assert len(data) % 4 == 0
    found = netlink.attributes_of(data)
    assert netlink.string_of(found[3]) == "eth0"
    assert netlink.attributes_of(found[18]) == {1: struct.pack("=I", 7)}


def test_host_ports_are_read_as_they_were_written() -> None:
    for port in PORTS:
        begin, message, end = nftables.add_ports("br0", [port])
        assert (begin.flags, end.flags) == (0, 0)
        assert nftables.ports_of(message.body, port.map_name) == [port]


def test_the_maps_have_room_for_their_keys() -> None:
    sizes = {"any4": (8, 8), "any6": (8, 20), "to4": (12, 8), "to6": (24, 20)}
    for port in PORTS:
        assert (len(port.key), len(port.data)) == sizes[port.map_name]


def test_a_table_is_one_transaction_that_replaces_what_was_there() -> None:
    messages = nftables.write_table("br0", [ip_network("10.9.0.0/24")], PORTS)
    kinds = [message.kind & 0xFF for message in messages]
    assert kinds[:4] == [0x10, 0, 2, 0]  # begin, new, delete, new
    assert kinds[-1] == 0x11
    assert kinds.count(12) == len(PORTS)  # one message a map


@given(st.binary(max_size=200))
def test_whatever_the_bytes_are_they_are_taken_to_pieces(data: bytes) -> None:
    for name in nftables.MAP_NAMES:
        nftables.ports_of(data, name)
    conntrack.is_flow_to(netlink.attributes_of(data), 53)
    netlink.attributes_of(data)
    rtnetlink.link_of(bytes(16) + data)
