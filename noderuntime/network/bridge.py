"""The built-in Pod network: a bridge of the node, over netlink, for when there is no CNI configuration.

Nothing of it is on disk. The kernel holds the truth: an address is taken as long as a link of the
bridge has it in its alias (``SANDBOX_ID ADDRESS...``), a host port as long as the table has it. So a
crash, a full disk or a lost file can neither leak an address nor hand it out twice, and after a
reboot there is nothing to collect. In this process the same is held in memory: it is read from the
kernel once, and looked at again every while.

A detach closes the bridge's port and is done: the link goes with its network namespace, which the
kernel takes down on its own time, and its address is not given to another before that.
"""

from __future__ import annotations

import asyncio
import hashlib
import ipaddress
import logging
import re
from collections.abc import Callable, Iterable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import Final

from noderuntime.errors import FailedPreconditionError, InvalidArgumentError, NetworkError
from noderuntime.host.threads import in_own_thread
from noderuntime.network.addresses import GATEWAY, NoAddressError, Pool, mac_of, parse_subnets
from noderuntime.network.kernel import (
    Bridge,
    BridgeGoneError,
    BridgeKernel,
    Joint,
    LinuxBridge,
    Survey,
    has_ipv6,
)
from noderuntime.network.nftables import HostPort
from noderuntime.network.ports import Attachment
from noderuntime.network.rtnetlink import Address, Link
from noderuntime.policy.model import PortMapping

_log = logging.getLogger(__name__)

_PREFIX: Final = "nr"
_NAME_DIGITS: Final = 13  # of the sandbox's ID, as crictl shows it; a link's name has 15 at most
_HEX: Final = re.compile(r"[0-9a-f]{13,}")
_DELETED_AT_ONCE: Final = 20  # links that a look removes: each takes some 30 ms
_EVERYWHERE: Final = {"0.0.0.0": 4, "::": 6}  # noqa: S104 - as a host IP of a port mapping


@dataclass(frozen=True, slots=True, kw_only=True)
class _Held:
    """What one sandbox has; ``number`` is 0 for addresses of other subnets than today's."""

    name: str
    number: int
    ports: tuple[HostPort, ...] = ()


class BridgeNetwork:
    """The ``Network`` of ports.py."""

    def __init__(self, name: str, pool: Pool, kernel: BridgeKernel) -> None:
        """``name``: the bridge's. Nothing is made before the first Pod is attached."""
        self._name = name
        self._pool = pool
        self._kernel = kernel
        self._held: dict[str, _Held] = {}
        self._going: dict[str, int] = {}  # links on their way out, with their numbers
        self._late: set[str] = set()  # those that a look has seen already
        self._joining: set[str] = set()
        self._is_read = False
        self._is_prepared = False
        self._preparing = asyncio.Lock()
        self._status_error = ""

    def not_ready_because(self) -> str:
        """Return why no Pod can be attached now, or "" when one can."""
        return self._status_error

    async def check_status(self) -> None:
        """Look whether all is there, put right what is not, and remove what was left behind."""
        self._status_error = await self._look()

    async def _look(self) -> str:
        """Return why no Pod can be attached, "" when one can."""
        try:
            self._read()
            survey = await self._sweep()
            mapped = {port for held in self._joined() for port in held.ports}
            if not self._is_prepared and not self._held:
                await in_own_thread(self._kernel.require_room)
            elif not survey.is_whole or mapped - set(survey.ports):
                if self._is_prepared:
                    _log.warning("the bridge or its nftables were changed; they are made anew")
                self._is_prepared = False
                await self._prepare()
        except NetworkError as error:
            return str(error)
        return ""

    async def attach(self, attachment: Attachment) -> tuple[str, ...]:
        """Attach; returns the addresses, IPv4 first. Raises NetworkError, FailedPreconditionError."""
        self._read()
        try:
            held = self._reserve(attachment)
        except NoAddressError:
            await self._sweep()  # some may have become free
            held = self._reserve(attachment)
        self._joining.add(attachment.sandbox_id)
        try:
            await self._join(self._joint(attachment, held))
        except BaseException as error:
            # It may have got through: a cancel waits for the kernel, not for the reply.
            await self._take_back(attachment.sandbox_id, held, error)
            raise
        finally:
            self._joining.discard(attachment.sandbox_id)
        return tuple(map(str, self._pool.addresses(held.number)))

    async def detach(self, attachment: Attachment) -> None:
        """Detach; never attached is success. Raises NetworkError."""
        self._read()
        await self._let_go(attachment.sandbox_id)

    async def check(self, attachment: Attachment) -> None:
        """Raise NetworkError when the attachment is not as it was made."""
        self._read()
        held = self._held.get(attachment.sandbox_id)
        if held is None:
            raise NetworkError(f"sandbox {attachment.sandbox_id} is not attached to the bridge")
        survey = await in_own_thread(self._kernel.survey)
        if all(link.name != held.name or not link.is_up for link in survey.links):
            raise NetworkError(
                f"the link {held.name} of sandbox {attachment.sandbox_id} is gone, down, or off the bridge"
            )
        missing = set(held.ports) - set(survey.ports)
        if missing:
            port = min(missing, key=lambda each: each.port)
            raise NetworkError(
                f"host port {port.port}/{port.protocol} of sandbox {attachment.sandbox_id} is not mapped"
            )

    def attached(self) -> tuple[str, ...]:
        """Return the IDs of all sandboxes that have a place on the bridge."""
        self._read()
        return tuple(sorted(self._held))

    def has(self, sandbox_id: str) -> bool:
        """Tell whether the sandbox has a place on the bridge."""
        self._read()
        return sandbox_id in self._held

    def is_in_use(self) -> bool:
        """Tell whether something is on the bridge, or was until lately."""
        self._read()
        return bool(self._held or self._going)

    def served_by(self) -> str:
        """Return what attaches Pods now, for people."""
        subnets = ", ".join(map(str, self._pool.subnets))
        return f"the built-in bridge {self._name} ({subnets})"

    async def collect(self, sandbox_ids: Iterable[str]) -> None:
        """Close the ports of unknown sandboxes; their links are removed by the next looks."""
        self._read()
        for sandbox_id in sorted(set(self._held) - set(sandbox_ids)):
            await self._let_go(sandbox_id)
        await self._sweep()

    async def remove(self) -> None:
        """Take the bridge itself away, when the runtime is to leave nothing. Raises NetworkError."""
        await in_own_thread(self._kernel.remove)
        self._is_prepared = False

    async def _join(self, joint: Joint) -> None:
        for is_last in (False, True):
            await self._prepare()
            try:
                return await in_own_thread(self._kernel.join, joint)
            except BridgeGoneError:
                self._is_prepared = False
                if is_last:
                    raise
        return None

    async def _take_back(self, sandbox_id: str, held: _Held, error: BaseException) -> None:
        try:
            await in_own_thread(self._kernel.part, held.name, held.ports)
        except NetworkError as cleanup:
            error.add_note(f"and while cleaning up: {cleanup}")
        else:
            self._forget(sandbox_id)

    async def _let_go(self, sandbox_id: str) -> None:
        held = self._held.get(sandbox_id)
        if held is not None:
            await in_own_thread(self._kernel.part, held.name, held.ports)
            self._forget(sandbox_id)

    def _read(self) -> None:
        """Take over what an earlier process left in the kernel. Blocks a millisecond, once."""
        if self._is_read:
            return
        survey = _in_thread(self._kernel.survey)
        for link in survey.links:
            sandbox_id, number = self._parse_alias(link)
            if sandbox_id:
                addresses = self._pool.addresses(number) if number else ()
                ports = tuple(port for port in survey.ports if port.pod in addresses)
                self._held[sandbox_id] = _Held(name=link.name, number=number, ports=ports)
            else:
                self._going[link.name] = 0
            self._pool.rest_before(number)
        self._is_read = True

    def _parse_alias(self, link: Link) -> tuple[str, int]:
        """Return whose a link is; ("", 0) for one that was never finished."""
        sandbox_id, *addresses = link.alias.split() or [""]
        try:
            found = [self._pool.number_of(ipaddress.ip_address(text)) for text in addresses]
        except ValueError:
            return "", 0
        if link.name != link_name(sandbox_id):
            return "", 0
        return sandbox_id, next((number for number in found if number), 0)

    def _reserve(self, attachment: Attachment) -> _Held:
        """Take an address and the host ports, in memory: the kernel has them when it is attached."""
        name = link_name(attachment.sandbox_id)
        if attachment.sandbox_id in self._held:
            raise NetworkError(f"sandbox {attachment.sandbox_id} is attached already")
        self._going.pop(name, None)  # its own former link is replaced
        taken = {held.number for held in self._held.values()} | set(self._going.values())
        number = self._pool.take(taken)
        ports = host_ports(attachment.port_mappings, self._pool.addresses(number))
        self._require_free(ports)
        held = _Held(name=name, number=number, ports=ports)
        self._held[attachment.sandbox_id] = held
        return held

    def _require_free(self, ports: Sequence[HostPort]) -> None:
        for sandbox_id, held in self._held.items():
            for other in held.ports:
                for port in ports:
                    if is_same_place(port, other):
                        raise FailedPreconditionError(
                            f"host port {port.port}/{port.protocol} is taken by sandbox {sandbox_id}: "
                            "remove that pod, or choose another port"
                        )

    def _forget(self, sandbox_id: str) -> None:
        """Give up what a sandbox had; its number rests until its link is gone."""
        held = self._held.pop(sandbox_id, None)
        if held is not None:
            self._going[held.name] = held.number

    def _joined(self) -> list[_Held]:
        """Return what the kernel should have: not what is only being attached."""
        return [held for sandbox_id, held in self._held.items() if sandbox_id not in self._joining]

    async def _prepare(self) -> None:
        async with self._preparing:
            if not self._is_prepared:
                joined = self._joined()
                ports = [port for held in joined for port in held.ports]
                names = [held.name for held in joined]
                await in_own_thread(self._kernel.prepare, ports, names)
                self._is_prepared = True

    async def _sweep(self) -> Survey:
        """Free the numbers of links that are gone; remove those that should be, and are not.

        Host ports whose Pod is gone as well: its namespace may have ended while no runtime was there.
        """
        before = list(self._going)  # a link that is let go of later may not be in the survey
        ours = self._ports()
        survey = await in_own_thread(self._kernel.survey)
        there = {link.name for link in survey.links}
        late = [name for name in before if name in there and name in self._late]
        if late:
            # The namespace outlived its Pod: something still runs in it.
            await in_own_thread(self._kernel.delete, late[:_DELETED_AT_ONCE])
        for name in before:
            if name not in there:
                self._going.pop(name, None)
        self._late = set(before)
        stale = sorted(set(survey.ports) - ours - self._ports(), key=lambda port: port.key)
        if stale:
            await in_own_thread(self._kernel.unmap, stale)
        return survey

    def _ports(self) -> set[HostPort]:
        return {port for held in self._held.values() for port in held.ports}

    def _joint(self, attachment: Attachment, held: _Held) -> Joint:
        interfaces = self._pool.interfaces(held.number)
        return Joint(
            name=held.name,
            alias=" ".join((attachment.sandbox_id, *(str(each.ip) for each in interfaces))),
            netns=attachment.netns,
            mac=mac_of(self._pool.subnets, held.number),
            interfaces=interfaces,
            ports=held.ports,
        )


def link_name(sandbox_id: str) -> str:
    """Return the name of a sandbox's link on the node: always the same."""
    digits = (
        sandbox_id if _HEX.match(sandbox_id) else hashlib.sha256(sandbox_id.encode()).hexdigest()
    )
    return _PREFIX + digits[:_NAME_DIGITS]


def host_ports(
    mappings: Iterable[PortMapping], addresses: Sequence[Address]
) -> tuple[HostPort, ...]:
    """Return the host ports of a Pod, for each of its addresses that a mapping is for.

    Raises InvalidArgumentError that names the mapping.
    """
    found: dict[HostPort, None] = {}
    for index, mapping in enumerate(mappings):
        if mapping.host_port == 0:
            continue
        version, host_ip = _host_ip(f"port_mappings[{index}].host_ip", mapping.host_ip)
        pods = [address for address in addresses if version in (0, address.version)]
        if not pods:
            raise InvalidArgumentError(
                f"port_mappings[{index}].host_ip: {mapping.host_ip} is IPv{version}, which the pods of this "
                "node have no address of"
            )
        for pod in pods:
            port = HostPort(
                protocol=mapping.protocol.lower(),
                port=mapping.host_port,
                pod=pod,
                pod_port=mapping.container_port,
                host_ip=host_ip,
            )
            if any(is_same_place(port, other) and port != other for other in found):
                raise InvalidArgumentError(
                    f"port_mappings[{index}].host_port: {mapping.host_port}/{port.protocol} is mapped twice"
                )
            found[port] = None
    return tuple(found)


def _host_ip(field: str, text: str) -> tuple[int, Address | None]:
    """Return IP version (0: both) and address (None: all) of a mapping."""
    if not text or text in _EVERYWHERE:
        return _EVERYWHERE.get(text, 0), None
    try:
        address = ipaddress.ip_address(text)
    except ValueError as error:
        raise InvalidArgumentError(f"{field}: {text!r} is not an IP address") from error
    return address.version, address


def is_same_place(one: HostPort, other: HostPort) -> bool:
    """Tell whether a packet could be for both."""
    return (one.protocol, one.port, one.pod.version) == (
        other.protocol,
        other.port,
        other.pod.version,
    ) and (one.host_ip is None or other.host_ip is None or one.host_ip == other.host_ip)


def _in_thread(function: Callable[[], Survey]) -> Survey:
    """Run a call in a thread that dies after it, and wait for it here: for the first look only."""
    with ThreadPoolExecutor(max_workers=1, thread_name_prefix="host-once") as pool:
        return pool.submit(function).result()


def bridge_network(name: str, subnets: Sequence[str], *, owner: str) -> BridgeNetwork | None:
    """Return the bridge network of a node's settings; None where they have it off.

    ``owner``: what tells this runtime's bridge from another's. Raises ConfigError.
    """
    parsed = [net for net in parse_subnets(subnets) if net.version == 4 or has_ipv6()]
    if not parsed:
        return None
    pool = Pool(parsed)
    bridge = Bridge(
        name=name,
        owner=f"noderuntime {owner}",
        mac=mac_of(parsed, GATEWAY),
        interfaces=pool.interfaces(GATEWAY),
    )
    return BridgeNetwork(name, pool, LinuxBridge(bridge))
