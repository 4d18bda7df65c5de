"""Which address which Pod gets: a number, which is the address' place in each of the subnets.

One number stands for the Pod's IPv4 and IPv6 address and for the link's hardware address, so a
neighbour that remembers an address that was handed out again is still right. Pure.
"""

from __future__ import annotations

import ipaddress
from collections.abc import Container, Iterable, Sequence
from typing import Final

from noderuntime.errors import ConfigError, NetworkError
from noderuntime.network.rtnetlink import Address, Interface, Link, Net, Route

GATEWAY: Final = 1  # the bridge's own number
_MOST: Final = 1 << 20  # numbers of a subnet that are used at most: a /64 has more than enough
_MAC_PREFIX: Final = b"\x0a\x58"  # locally administered, as CNI's bridge plugin had it
_SMALLEST: Final = {4: 29, 6: 125}


def parse_subnets(texts: Sequence[str]) -> tuple[Net, ...]:
    """Return the subnets, IPv4 first as the Pod's primary. Raises ConfigError that names the key."""
    found: dict[int, Net] = {}
    for text in texts:
        try:
            subnet = ipaddress.ip_network(text)
        except ValueError as error:
            raise ConfigError(f"cni.bridge_subnets: {text!r} is not a subnet: {error}") from error
        if subnet.version in found:
            raise ConfigError(
                f"cni.bridge_subnets: {found[subnet.version]} and {subnet} are both IPv{subnet.version}; "
                "one of each is what a pod can have"
            )
        if subnet.prefixlen > _SMALLEST[subnet.version]:
            raise ConfigError(
                f"cni.bridge_subnets: {subnet} has no room for pods; use /{_SMALLEST[subnet.version]} or larger"
            )
        if subnet.is_multicast or subnet.is_loopback or subnet.is_link_local:
            raise ConfigError(f"cni.bridge_subnets: {subnet} is not for hosts")
        found[subnet.version] = subnet
    return tuple(found[version] for version in sorted(found))


class NoAddressError(NetworkError):
    """Every address is taken."""


class Pool:
    """Numbers of Pods, handed out round robin: one that was given back rests as long as it can."""

    def __init__(self, subnets: Sequence[Net]) -> None:
        """Hand out of ``subnets``, at least one, as ``parse_subnets`` gives them."""
        self.subnets = tuple(subnets)
        smallest = min(subnet.num_addresses for subnet in self.subnets)
        self._end = min(smallest - 1, _MOST)  # the last address of an IPv4 subnet is for broadcast
        self._last = GATEWAY

    def take(self, held: Container[int]) -> int:
        """Return a number that is not ``held``. Raises NetworkError when there is none."""
        first = GATEWAY + 1
        for step in range(1, self._end - first + 1):
            number = first + (self._last + step - first) % (self._end - first)
            if number not in held:
                self._last = number
                return number
        raise NoAddressError(
            f"every address of {', '.join(map(str, self.subnets))} is taken: remove pods, or give the "
            "node larger subnets in cni.bridge_subnets"
        )

    def rest_before(self, number: int) -> None:
        """Begin behind ``number``."""
        self._last = max(self._last, min(number, self._end - 1))

    def interfaces(self, number: int) -> tuple[Interface, ...]:
        """Return the addresses of a number, each with its subnet's prefix."""
        return tuple(
            ipaddress.ip_interface(f"{subnet[number]}/{subnet.prefixlen}")
            for subnet in self.subnets
        )

    def addresses(self, number: int) -> tuple[Address, ...]:
        """Return the addresses of a number."""
        return tuple(interface.ip for interface in self.interfaces(number))

    def number_of(self, address: Address) -> int | None:
        """Return the number of an address, None for one that is of no subnet."""
        for subnet in self.subnets:
            if address.version == subnet.version and address in subnet:
                return int(address) - int(subnet.network_address)
        return None


def mac_of(subnets: Sequence[Net], number: int) -> bytes:
    """Return the hardware address of a number: six bytes."""
    return _MAC_PREFIX + (int(subnets[0][number]) & 0xFFFFFFFF).to_bytes(4, "big")


def require_free(
    subnets: Sequence[Net], routes: Iterable[Route], links: Sequence[Link], own: int
) -> None:
    """Refuse subnets that the node reaches by another link than ``own``. Raises NetworkError."""
    names = {link.index: link.name for link in links}
    for route in routes:
        for subnet in subnets:
            if (
                route.oif != own
                and route.destination.prefixlen
                and route.destination.version == subnet.version
                and _overlap(route.destination, subnet)
            ):
                raise NetworkError(
                    f"the pods' subnet {subnet} overlaps with {route.destination}, which this node "
                    f"reaches through {names.get(route.oif, 'another link')}: choose another one in "
                    "cni.bridge_subnets"
                )


def _overlap(one: Net, other: Net) -> bool:
    return one[0] in other or other[0] in one
