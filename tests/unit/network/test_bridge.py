"""Who holds which address and port, on a kernel in memory."""

from __future__ import annotations

import asyncio
from ipaddress import ip_address, ip_network
from pathlib import Path

import pytest

from noderuntime.errors import (
    ConfigError,
    FailedPreconditionError,
    InvalidArgumentError,
    NetworkError,
)
from noderuntime.network.addresses import NoAddressError, Pool, mac_of, parse_subnets
from noderuntime.network.bridge import BridgeNetwork, bridge_network, host_ports, link_name
from noderuntime.network.ports import Attachment
from noderuntime.policy.model import PodIdentity, PortMapping
from tests.fakes.bridge import FakeBridge

SUBNETS = ("10.9.0.0/29", "fd09::/64")
ALL_V4 = "0.0.0.0"  # noqa: S104
BOTH = (ip_address("10.9.0.2"), ip_address("fd09::2"))


def network(kernel: FakeBridge, subnets: tuple[str, ...] = SUBNETS) -> BridgeNetwork:
    return BridgeNetwork("br0", Pool(parse_subnets(subnets)), kernel)


def pod(number: int, *ports: PortMapping) -> Attachment:
    return Attachment(
        sandbox_id=f"{number:064x}"[::-1],
        netns=Path("/ns"),
        pod=PodIdentity(name="web", namespace="prod", uid="u"),
        port_mappings=ports,
    )


def mapped(host_port: int, host_ip: str = "", protocol: str = "TCP") -> PortMapping:
    return PortMapping(protocol=protocol, container_port=80, host_port=host_port, host_ip=host_ip)


async def test_a_pod_gets_one_address_of_each_subnet_and_ipv4_first() -> None:
    kernel = FakeBridge()
    assert await network(kernel).attach(pod(1)) == ("10.9.0.2", "fd09::2")
    assert kernel.aliases == {link_name(pod(1).sandbox_id): f"{pod(1).sandbox_id} 10.9.0.2 fd09::2"}
    assert kernel.calls.count("prepare") == 1


async def test_an_address_is_not_given_again_before_its_link_is_gone() -> None:
    kernel = FakeBridge()
    bridge = network(kernel)
    for number in range(1, 6):  # a /29 has six hosts, one of which is the bridge
        await bridge.attach(pod(number))
    with pytest.raises(NoAddressError, match="every address of 10.9.0.0/29, fd09::/64 is taken"):
        await bridge.attach(pod(6))
    await bridge.detach(pod(2))
    assert bridge.attached() == tuple(sorted(pod(n).sandbox_id for n in (1, 3, 4, 5)))
    with pytest.raises(NoAddressError):
        await bridge.attach(pod(6))
    kernel.namespace_goes(link_name(pod(2).sandbox_id))
    assert await bridge.attach(pod(6)) == ("10.9.0.3", "fd09::3")


async def test_a_link_whose_namespace_lives_on_is_removed_by_the_second_look() -> None:
    kernel = FakeBridge()
    bridge = network(kernel)
    await bridge.attach(pod(1))
    await bridge.detach(pod(1))
    await bridge.check_status()
    assert kernel.aliases
    await bridge.check_status()
    assert not kernel.aliases
    await bridge.check_status()
    assert not bridge.is_in_use()


async def test_a_fresh_process_knows_from_the_kernel_who_has_what() -> None:
    kernel = FakeBridge()
    await network(kernel).attach(pod(1, mapped(8080)))
    kernel.aliases["nrtorn"] = ""
    kernel.aliases["nrforeign"] = "words of someone else"
    again = network(kernel)
    assert again.attached() == (pod(1).sandbox_id,)
    with pytest.raises(FailedPreconditionError, match="host port 8080/tcp is taken by sandbox"):
        await again.attach(pod(2, mapped(8080)))
    assert await again.attach(pod(2)) == ("10.9.0.4", "fd09::4")
    await again.collect(())
    assert again.attached() == ()
    assert kernel.ports == set()
    for _ in range(2):
        await again.check_status()
    assert kernel.aliases == {}


async def test_a_host_port_whose_pod_ended_with_no_runtime_there_is_removed() -> None:
    kernel = FakeBridge()
    await network(kernel).attach(pod(1, mapped(8080)))
    kernel.namespace_goes(link_name(pod(1).sandbox_id))
    again = network(kernel)
    await again.collect(())
    assert kernel.ports == set()
    await again.attach(pod(2, mapped(8080)))


@pytest.mark.parametrize("fault", [NetworkError("no"), asyncio.CancelledError()])
async def test_an_attach_that_fails_gives_back_address_and_ports(fault: BaseException) -> None:
    kernel = FakeBridge()
    bridge = network(kernel)
    kernel.faults["join"] = fault
    with pytest.raises(type(fault)):
        await bridge.attach(pod(1, mapped(8080)))
    assert bridge.attached() == ()
    assert kernel.ports == set()
    await bridge.check_status()
    assert not bridge.is_in_use()
    await bridge.attach(pod(1, mapped(8080)))


async def test_what_cannot_be_taken_back_stays_attached_to_be_tried_again() -> None:
    kernel = FakeBridge()
    bridge = network(kernel)
    kernel.faults = {"join": NetworkError("no"), "part": NetworkError("neither")}
    with pytest.raises(NetworkError, match="no") as caught:
        await bridge.attach(pod(1))
    assert caught.value.__notes__ == ["and while cleaning up: neither"]
    assert bridge.attached() == (pod(1).sandbox_id,)
    await bridge.detach(pod(1))
    assert bridge.attached() == ()


async def test_a_bridge_that_went_is_made_anew_with_the_ports_of_all() -> None:
    kernel = FakeBridge()
    bridge = network(kernel)
    await bridge.attach(pod(1, mapped(8080)))
    kernel.is_made, kernel.ports = False, set()
    await bridge.attach(pod(2, mapped(8081)))
    assert {port.port for port in kernel.ports} == {8080, 8081}
    kernel.ports = set()
    await bridge.check_status()
    assert {port.port for port in kernel.ports} == {8080, 8081}


async def test_a_node_where_the_bridge_cannot_be_is_not_ready_until_it_can() -> None:
    kernel = FakeBridge()
    bridge = network(kernel)
    kernel.faults["require_room"] = NetworkError("the subnet is someone else's")
    await bridge.check_status()
    assert bridge.not_ready_because() == "the subnet is someone else's"
    await bridge.check_status()
    assert bridge.not_ready_because() == ""
    assert "prepare" not in kernel.calls  # nothing is made before there is a Pod


async def test_a_check_says_what_is_missing() -> None:
    kernel = FakeBridge()
    bridge = network(kernel)
    with pytest.raises(NetworkError, match="is not attached to the bridge"):
        await bridge.check(pod(1))
    await bridge.attach(pod(1, mapped(8080)))
    await bridge.check(pod(1))
    kernel.ports.clear()
    with pytest.raises(NetworkError, match="host port 8080/tcp .* is not mapped"):
        await bridge.check(pod(1))
    kernel.aliases.clear()
    with pytest.raises(NetworkError, match="is gone, down, or off the bridge"):
        await bridge.check(pod(1))


@pytest.mark.parametrize(
    ("held", "asked", "is_free"),
    [
        pytest.param(mapped(80), mapped(80), False, id="same"),
        pytest.param(mapped(80), mapped(80, "192.0.2.1"), False, id="one address of all"),
        pytest.param(mapped(80, "192.0.2.1"), mapped(80), False, id="all, of which one is taken"),
        pytest.param(mapped(80, "192.0.2.1"), mapped(80, "192.0.2.2"), True, id="two addresses"),
        pytest.param(mapped(80, ALL_V4), mapped(80, "::"), True, id="IPv4 and IPv6"),
        pytest.param(mapped(80), mapped(80, protocol="UDP"), True, id="TCP and UDP"),
        pytest.param(mapped(80), mapped(81), True, id="two ports"),
    ],
)
async def test_a_host_port_is_given_once(
    held: PortMapping, asked: PortMapping, is_free: bool
) -> None:
    bridge = network(FakeBridge())
    await bridge.attach(pod(1, held))
    if is_free:
        await bridge.attach(pod(2, asked))
    else:
        with pytest.raises(FailedPreconditionError, match="host port 80/tcp is taken by sandbox"):
            await bridge.attach(pod(2, asked))
        assert bridge.attached() == (pod(1).sandbox_id,)


def test_a_mapping_is_for_the_addresses_of_its_own_kind() -> None:
    def targets(host_ip: str) -> list[str]:
        return [str(port.pod) for port in host_ports([mapped(80, host_ip)], BOTH)]

    assert targets("") == ["10.9.0.2", "fd09::2"]
    assert targets(ALL_V4) == ["10.9.0.2"]
    assert targets("::") == ["fd09::2"]
    assert targets("2001:db8::1") == ["fd09::2"]
    assert host_ports([mapped(0)], BOTH) == ()


@pytest.mark.parametrize(
    ("mappings", "message"),
    [
        pytest.param(
            [mapped(80, "x")], r"port_mappings\[0\]\.host_ip: 'x' is not an IP address", id="text"
        ),
        pytest.param(
            [mapped(80), mapped(81, "::1")],
            r"port_mappings\[1\]\.host_ip: ::1 is IPv6, which the pods of this node have no address",
            id="IPv6 without",
        ),
        pytest.param(
            [mapped(80), PortMapping(protocol="TCP", container_port=81, host_port=80)],
            r"port_mappings\[1\]\.host_port: 80/tcp is mapped twice",
            id="twice",
        ),
    ],
)
def test_a_mapping_that_is_none_is_refused_by_its_field(
    mappings: list[PortMapping], message: str
) -> None:
    with pytest.raises(InvalidArgumentError, match=message):
        host_ports(mappings, BOTH[:1])


@pytest.mark.parametrize(
    ("subnets", "message"),
    [
        pytest.param(["10.0.0.1/24"], "'10.0.0.1/24' is not a subnet", id="host bits"),
        pytest.param(["words"], "'words' is not a subnet", id="words"),
        pytest.param(["10.0.0.0/30"], "no room for pods; use /29 or larger", id="small"),
        pytest.param(["fd00::/126"], "no room for pods; use /125 or larger", id="small IPv6"),
        pytest.param(["10.0.0.0/24", "10.1.0.0/24"], "are both IPv4", id="two of a kind"),
        pytest.param(["127.0.0.0/24"], "is not for hosts", id="loopback"),
        pytest.param(["fe80::/64"], "is not for hosts", id="link-local"),
        pytest.param(["224.0.0.0/24"], "is not for hosts", id="multicast"),
    ],
)
def test_subnets_that_are_none_are_refused_by_the_key(subnets: list[str], message: str) -> None:
    with pytest.raises(ConfigError, match=f"cni.bridge_subnets: .*{message}"):
        parse_subnets(subnets)


def test_no_subnet_switches_the_bridge_off() -> None:
    assert bridge_network("br0", (), owner="x") is None


def test_numbers_go_round_and_leave_out_what_is_not_for_pods() -> None:
    pool = Pool(parse_subnets(("10.9.0.0/29",)))
    assert [pool.take(()) for _ in range(7)] == [2, 3, 4, 5, 6, 2, 3]
    assert pool.take({4, 5}) == 6
    assert [str(interface) for interface in pool.interfaces(6)] == ["10.9.0.6/29"]
    assert pool.number_of(ip_address("10.9.0.6")) == 6
    assert pool.number_of(ip_address("10.8.0.6")) is None


def test_a_hardware_address_belongs_to_a_number() -> None:
    subnets = parse_subnets(("10.9.0.0/16", "fd00::/64"))
    assert mac_of(subnets, 258).hex(":") == "0a:58:0a:09:01:02"
    assert mac_of((ip_network("fd00::/64"),), 258).hex(":") == "0a:58:00:00:01:02"


def test_a_link_has_the_digits_that_people_see() -> None:
    assert link_name("0123456789abcdef" * 4) == "nr0123456789abc"
    assert len(link_name("not hexadecimal")) == 15
    assert link_name("not hexadecimal") != link_name("not  hexadecimal")
