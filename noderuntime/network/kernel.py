"""What the bridge network asks of the kernel, and the real one: links, addresses, nftables.

All calls block, for a millisecond or so, and change the namespaces of their thread: each is for a
thread of its own (``host.threads.in_own_thread``). veth(4), network_namespaces(7).
"""

from __future__ import annotations

import errno
import os
import socket
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Final, Protocol

from noderuntime.errors import HostError, NetworkError
from noderuntime.host import syscalls
from noderuntime.network import netlink, nftables, rtnetlink
from noderuntime.network.addresses import require_free
from noderuntime.network.conntrack import forget_udp
from noderuntime.network.netlink import Channel, RefusedError
from noderuntime.network.nftables import HostPort
from noderuntime.network.rtnetlink import Interface, Link, Net

INTERFACE: Final = "eth0"
_USUAL_MTU: Final = 1500
_GONE: Final = frozenset({errno.ENODEV, errno.ENOENT, errno.ENXIO})


@dataclass(frozen=True, slots=True, kw_only=True)
class Bridge:
    """The bridge: ``owner`` is the alias by which it is known for ours."""

    name: str
    owner: str
    mac: bytes
    interfaces: tuple[Interface, ...]

    @property
    def subnets(self) -> tuple[Net, ...]:
        """Return what its Pods are in."""
        return tuple(interface.network for interface in self.interfaces)


@dataclass(frozen=True, slots=True, kw_only=True)
class Joint:
    """One Pod's place on the bridge: its link on the node, and what is inside its namespace."""

    name: str
    alias: str
    netns: Path
    mac: bytes
    interfaces: tuple[Interface, ...]
    ports: tuple[HostPort, ...] = ()


@dataclass(frozen=True, slots=True, kw_only=True)
class Survey:
    """What there is: the ports of the bridge, and the host ports. ``is_whole``: nothing is missing."""

    links: tuple[Link, ...]
    ports: tuple[HostPort, ...]
    is_whole: bool


class BridgeGoneError(NetworkError):
    """There is no bridge: it was removed, or not made yet."""


class BridgeKernel(Protocol):
    """The kernel as the bridge network sees it. Errors are ``NetworkError``."""

    def survey(self) -> Survey:
        """Look; changes nothing."""
        ...

    def require_room(self) -> None:
        """Raise where the bridge cannot be made: its name or its subnets are someone else's."""
        ...

    def prepare(self, ports: Iterable[HostPort], links: Iterable[str]) -> None:
        """Make the bridge and the table, or put right what is there; ``links`` are its ports."""
        ...

    def join(self, joint: Joint) -> None:
        """Attach a Pod. Whole or not at all. Raises BridgeGoneError where it was not prepared."""
        ...

    def part(self, name: str, ports: Sequence[HostPort]) -> None:
        """Let nothing through any more, at once; the link stays until its namespace goes."""
        ...

    def delete(self, names: Iterable[str]) -> None:
        """Remove links, those that are still there."""
        ...

    def unmap(self, ports: Sequence[HostPort]) -> None:
        """Remove host ports, those that are still there."""
        ...

    def remove(self) -> None:
        """Remove the bridge and the table, where they are there and ours."""
        ...


class LinuxBridge:
    """The real one."""

    def __init__(self, bridge: Bridge, netns: Path | None = None) -> None:
        """``netns``: where the bridge is, the thread's own where it is None."""
        self._bridge = bridge
        self._netns = netns
        self._mtu = _USUAL_MTU

    def survey(self) -> Survey:
        """Look; changes nothing."""
        self._enter()
        with _failing("looking at the bridge"), Channel(netlink.ROUTE) as channel:
            links = [rtnetlink.link_of(body) for body in channel.dump(rtnetlink.get_links())]
        mine = self._find(links)
        if mine is None or mine.alias != self._bridge.owner:  # or someone else's: not to be touched
            return Survey(links=(), ports=(), is_whole=False)
        with _failing("reading the nftables of the bridge"):
            ports = self._ports()
        on_it = tuple(link for link in links if link.master == mine.index)
        is_whole = mine.is_up and ports is not None
        return Survey(links=on_it, ports=tuple(ports or ()), is_whole=is_whole)

    def require_room(self) -> None:
        """Raise where the bridge cannot be made."""
        self._enter()
        with _failing("looking at the bridge"), Channel(netlink.ROUTE) as channel:
            self._look(channel)

    def prepare(self, ports: Iterable[HostPort], links: Iterable[str]) -> None:
        """Make the bridge and the table, or put right what is there."""
        self._enter()
        bridge = self._bridge
        with _failing(f"making the bridge {bridge.name}"), Channel(netlink.ROUTE) as channel:
            mine = self._look(channel)
            if mine is None:
                channel.send(rtnetlink.new_bridge(bridge.name, mac=bridge.mac, alias=bridge.owner))
            index = socket.if_nametoindex(bridge.name)
            _trust_addresses(bridge.name)
            addresses = (rtnetlink.new_address(index, each) for each in bridge.interfaces)
            channel.send([rtnetlink.set_up(index), *addresses])
            with suppress(RefusedError):  # of those that go meanwhile
                channel.send([rtnetlink.set_master(name, index) for name in links])
        with _failing("letting the node forward"):
            _forward(bridge)
        table = nftables.write_table(bridge.name, bridge.subnets, ports)
        with (
            _failing("writing the nftables of the bridge (the kernel needs CONFIG_NF_TABLES_INET)"),
            Channel(netlink.NETFILTER) as channel,
        ):
            channel.send(table)

    def join(self, joint: Joint) -> None:
        """Attach a Pod; what was done is taken back when a part of it fails."""
        self._enter()
        with Channel(netlink.ROUTE) as channel, Channel(netlink.NETFILTER) as filters:
            try:
                with _failing(f"attaching the pod to the bridge {self._bridge.name}"):
                    self._connect(channel, joint)
                    if joint.ports:
                        filters.send(nftables.add_ports(self._bridge.name, joint.ports))
                        forget_udp(filters, joint.ports)
                    syscalls.setns(joint.netns, syscalls.CLONE_NEWNET)
                    _set_up_inside(joint.interfaces, self._bridge.interfaces)
            except BaseException:
                with suppress(OSError):
                    if joint.ports:
                        _remove_ports(filters, self._bridge.name, joint.ports)
                with suppress(OSError):
                    channel.send([rtnetlink.delete_link(joint.name)])
                raise

    def part(self, name: str, ports: Sequence[HostPort]) -> None:
        """Let nothing through any more."""
        self._enter()
        with _failing(f"closing the bridge's port {name}"):
            if ports:
                with Channel(netlink.NETFILTER) as filters:
                    _remove_ports(filters, self._bridge.name, ports)
                    forget_udp(filters, ports)
            with Channel(netlink.ROUTE) as channel:
                try:
                    channel.send([rtnetlink.close_port(name)])
                except RefusedError as error:
                    # ENETDOWN: the Pod's end is down, so a state cannot be set; or it is on no bridge
                    # any more. That is rare, so it may take its time.
                    if error.errno not in _GONE:
                        _delete(channel, name)

    def delete(self, names: Iterable[str]) -> None:
        """Remove links, those that are still there."""
        self._enter()
        with _failing("removing links"), Channel(netlink.ROUTE) as channel:
            for name in names:
                _delete(channel, name)

    def unmap(self, ports: Sequence[HostPort]) -> None:
        """Remove host ports, those that are still there."""
        self._enter()
        with _failing("removing host ports"), Channel(netlink.NETFILTER) as filters:
            _remove_ports(filters, self._bridge.name, ports)
            forget_udp(filters, ports)

    def remove(self) -> None:
        """Remove the bridge and the table; one that has another owner stays as it is."""
        self._enter()
        with (
            _failing(f"removing the bridge {self._bridge.name}"),
            Channel(netlink.ROUTE) as channel,
        ):
            links = [rtnetlink.link_of(body) for body in channel.dump(rtnetlink.get_links())]
            mine = self._find(links)
            if mine is None or mine.alias != self._bridge.owner:
                return
            _delete_table(
                mine.name
            )  # first: while the bridge is there, its table is known for ours
            _delete(channel, mine.name)

    def _enter(self) -> None:
        if self._netns is not None:
            syscalls.setns(self._netns, syscalls.CLONE_NEWNET)

    def _find(self, links: Iterable[Link]) -> Link | None:
        return next((link for link in links if link.name == self._bridge.name), None)

    def _ports(self) -> list[HostPort] | None:
        """Return the elements of the table, None where there is none."""
        found: list[HostPort] = []
        try:
            with Channel(netlink.NETFILTER) as channel:
                for name in nftables.MAP_NAMES:
                    for body in channel.dump(nftables.get_ports(self._bridge.name, name)):
                        found += nftables.ports_of(body, name)
        except RefusedError as error:
            if error.errno != errno.ENOENT:
                raise
            return None
        return found

    def _look(self, channel: Channel) -> Link | None:
        """Return the bridge, None where it is to be made. Raises NetworkError for a conflict."""
        links = [rtnetlink.link_of(body) for body in channel.dump(rtnetlink.get_links())]
        mine = self._find(links)
        if mine is not None and (mine.kind != "bridge" or mine.alias != self._bridge.owner):
            whose = f"belongs to {mine.alias}" if mine.alias else "was not made by this runtime"
            raise NetworkError(
                f"the link {mine.name} {whose}: remove it, or name another in cni.bridge"
            )
        bodies = channel.dump(rtnetlink.get_routes())
        routes = [route for route in map(rtnetlink.route_of, bodies) if route is not None]
        require_free(self._bridge.subnets, routes, links, 0 if mine is None else mine.index)
        outward = {route.oif for route in routes if route.destination.prefixlen == 0}
        self._mtu = min((link.mtu for link in links if link.index in outward), default=_USUAL_MTU)
        return mine

    def _connect(self, channel: Channel, joint: Joint) -> None:
        """Make the veth pair; one of an attach that was cut off is replaced."""
        try:
            master = socket.if_nametoindex(self._bridge.name)
        except OSError as error:
            raise BridgeGoneError(f"there is no bridge {self._bridge.name}") from error
        netns = os.open(joint.netns, os.O_RDONLY | os.O_CLOEXEC)
        try:
            messages = rtnetlink.new_veth(
                rtnetlink.Veth(
                    name=joint.name,
                    inner=INTERFACE,
                    netns=netns,
                    master=master,
                    mac=joint.mac,
                    mtu=self._mtu,
                    alias=joint.alias,
                )
            )
            try:
                channel.send(messages)
            except RefusedError as error:
                if error.errno != errno.EEXIST:
                    raise
                with suppress(RefusedError):  # then the other end's name is what is taken
                    channel.send([rtnetlink.delete_link(joint.name)])
                channel.send(messages)
        finally:
            os.close(netns)


def has_ipv6() -> bool:
    """Tell whether this node has IPv6 at all."""
    try:
        return _read(Path("/proc/sys/net/ipv6/conf/all/disable_ipv6")) == "0"
    except OSError:
        return False


def _set_up_inside(interfaces: Sequence[Interface], gateways: Sequence[Interface]) -> None:
    """In the Pod's namespace: loopback, addresses, and a way out for each."""
    index = socket.if_nametoindex(INTERFACE)
    _trust_addresses(INTERFACE)
    messages = [rtnetlink.set_up(rtnetlink.LOOPBACK_INDEX), rtnetlink.set_up(index)]
    messages += [rtnetlink.new_address(index, interface) for interface in interfaces]
    messages += [rtnetlink.default_route(index, gateway.ip) for gateway in gateways]
    with Channel(netlink.ROUTE) as channel:
        channel.send(messages)


def _delete(channel: Channel, name: str) -> None:
    try:
        channel.send([rtnetlink.delete_link(name)])
    except RefusedError as error:
        if error.errno not in _GONE:
            raise


def _delete_table(name: str) -> None:
    try:
        with Channel(netlink.NETFILTER) as filters:
            filters.send(nftables.delete_table(name))
    except RefusedError as error:
        if error.errno not in _GONE:
            raise


def _remove_ports(filters: Channel, table: str, ports: Sequence[HostPort]) -> None:
    """Remove elements, in one transaction, which waits for the packets under way: some 10 ms.

    One that is missing keeps the others there; then each is removed by itself.
    """
    try:
        filters.send(nftables.remove_ports(table, ports))
    except RefusedError as error:
        if error.errno not in _GONE:
            raise
        for port in ports if len(ports) > 1 else ():
            _remove_ports(filters, table, [port])


def _trust_addresses(link: str) -> None:
    """Let IPv6 addresses of a link be good at once: who has which is decided here.

    The link-local one too: while the kernel looks for another that has it, for a second or two, it
    asks no neighbour, and what was sent waits.
    """
    with suppress(FileNotFoundError):  # no IPv6
        _write(Path("/proc/sys/net/ipv6/conf") / link / "accept_dad", "0")


def _forward(bridge: Bridge) -> None:
    """Let the node forward, and its own 127.0.0.1 reach a host port. ip-sysctl of the kernel."""
    net = Path("/proc/sys/net")
    _write(net / "ipv4/ip_forward", "1")
    _write(net / "ipv4/conf" / bridge.name / "route_localnet", "1")
    forwarding = net / "ipv6/conf/all/forwarding"
    if any(subnet.version == 6 for subnet in bridge.subnets) and _read(forwarding) == "0":
        # A node that forwards ignores router advertisements unless it is told not to.
        for file in (net / "ipv6/conf").glob("*/accept_ra"):
            if _read(file) == "1":
                _write(file, "2")
        _write(forwarding, "1")


def _read(file: Path) -> str:
    return file.read_text().strip()


def _write(file: Path, value: str) -> None:
    if _read(file) != value:
        file.write_text(value)


@contextmanager
def _failing(what: str) -> Iterator[None]:
    """Turn what the kernel says into a NetworkError that says what was being done."""
    try:
        yield
    except OSError as error:
        raise NetworkError(f"{what}: {(error.strerror or str(error)).lower()}") from error
    except HostError as error:
        raise NetworkError(f"{what}: {error}") from error
