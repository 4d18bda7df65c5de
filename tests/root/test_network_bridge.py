"""The built-in bridge on real namespaces: who reaches whom, and what is left."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from dataclasses import replace
from pathlib import Path

import pytest

from noderuntime.errors import FailedPreconditionError, NetworkError
from noderuntime.host.threads import in_own_thread
from noderuntime.policy.model import PortMapping
from tests.root.bridge_kit import BRIDGE, NODE, OUTSIDE, Lab, made_lab, udp
from tests.root.host_kit import eventually


@pytest.fixture
async def lab() -> AsyncIterator[Lab]:
    async with made_lab() as made:
        yield made


async def test_pods_reach_each_other_the_node_and_the_outside_over_both_protocols(
    lab: Lab,
) -> None:
    network = lab.network()
    one, two = await lab.pod(), await lab.pod()
    ours, theirs = await network.attach(one), await network.attach(two)
    assert ours == ("10.99.0.2", "fd99::2")
    assert theirs == ("10.99.0.3", "fd99::3")
    for version in (0, 1):
        me, peer = ours[version], theirs[version]
        gateway = ("10.99.0.1", "fd99::1")[version]
        anywhere = ("0.0.0.0", "::")[version]  # noqa: S104
        assert await lab.talk((two.netns, peer, 80), one.netns, (peer, 80)) == me
        assert await lab.talk((lab.pin("host"), anywhere, 81), one.netns, (gateway, 81)) == me
        assert await lab.talk((one.netns, me, 82), lab.pin("host"), (me, 82)) == gateway
        # The outside has no way back to a Pod's address: it sees the node's.
        outside = (OUTSIDE[version], 83)
        seen = await lab.talk((lab.pin("outside"), *outside), one.netns, outside)
        assert seen == NODE[version]
        assert await lab.talk((one.netns, anywhere, 84), one.netns, (me, 84)) == me
    lab.run(one.netns, "/bin/busybox", "ping", "-c1", "-W2", "127.0.0.1")
    assert "mtu 1400" in lab.run(one.netns, "ip", "link", "show", "eth0")
    await network.check(one)


async def test_host_ports_lead_to_the_pod_from_everywhere(lab: Lab) -> None:
    network = lab.network()
    ports = (
        PortMapping(protocol="TCP", container_port=80, host_port=8080),
        PortMapping(protocol="TCP", container_port=80, host_port=8081, host_ip=NODE[0]),
        PortMapping(protocol="SCTP", container_port=80, host_port=8080),
        PortMapping(protocol="UDP", container_port=53, host_port=0),
    )
    pod, other = await lab.pod(*ports), await lab.pod()
    addresses = await network.attach(pod)
    others = await network.attach(other)
    host, outside = lab.pin("host"), lab.pin("outside")
    for version in (0, 1):
        server = (pod.netns, addresses[version], 80)
        gateway = ("10.99.0.1", "fd99::1")[version]
        assert await lab.talk(server, outside, (NODE[version], 8080)) == OUTSIDE[version]
        assert await lab.talk(server, host, (NODE[version], 8080)) in (NODE[version], gateway)
        assert await lab.talk(server, other.netns, (NODE[version], 8080)) == gateway
        assert await lab.talk(server, pod.netns, (gateway, 8080)) == gateway  # hairpin
        assert others[version] != addresses[version]
    server = (pod.netns, addresses[0], 80)
    assert await lab.talk(server, host, ("127.0.0.1", 8080)) == "10.99.0.1"
    assert await lab.talk(server, outside, (NODE[0], 8081)) == OUTSIDE[0]
    with pytest.raises(OSError, match="refused"):
        await lab.talk(server, host, ("127.0.0.1", 8081))
    taken = await lab.pod(PortMapping(protocol="TCP", container_port=1, host_port=8081))
    with pytest.raises(FailedPreconditionError, match="host port 8081/tcp is taken by sandbox"):
        await network.attach(taken)
    await network.detach(pod)
    with pytest.raises(OSError, match="refused"):
        await lab.talk(server, outside, (NODE[0], 8080))
    await network.attach(taken)


async def test_a_udp_peer_that_never_stops_reaches_the_pod_of_the_day(lab: Lab) -> None:
    network = lab.network()
    mapping = PortMapping(protocol="UDP", container_port=53, host_port=5353)
    peers = [await in_own_thread(udp, lab.pin("outside"), address, 0) for address in OUTSIDE]
    for peer, node in zip(peers, NODE, strict=True):
        peer.sendto(b"anyone?", (node, 5353))
    for _ in range(2):
        pod = await lab.pod(mapping)
        addresses = await network.attach(pod)
        for peer, node, address in zip(peers, NODE, addresses, strict=True):
            with await in_own_thread(udp, pod.netns, address, 53) as server:
                peer.sendto(b"hello", (node, 5353))
                assert server.recv(100) == b"hello"
        await network.detach(pod)
    for peer in peers:
        peer.close()


async def test_a_pod_does_not_reach_what_listens_on_the_nodes_loopback(lab: Lab) -> None:
    network = lab.network()
    pod = await lab.pod()
    await network.attach(pod)
    lab.run(pod.netns, "ip", "route", "add", "127.0.0.2", "via", "10.99.0.1")
    lab.run(pod.netns, "ip", "rule", "add", "pref", "0", "to", "127.0.0.2", "table", "main")
    lab.run(pod.netns, "sh", "-c", "echo 1 >/proc/sys/net/ipv4/conf/eth0/route_localnet")
    with pytest.raises(OSError):
        await lab.talk((lab.pin("host"), "127.0.0.2", 90), pod.netns, ("127.0.0.2", 90))


async def test_fifty_pods_at_once_get_fifty_addresses_and_leave_nothing(lab: Lab) -> None:
    network = lab.network()
    pods = [await lab.pod() for _ in range(50)]
    found = await asyncio.gather(*(network.attach(pod) for pod in pods))
    assert len({address for pair in found for address in pair}) == 100
    assert len(lab.links()) == 50
    assert network.attached() == tuple(sorted(pod.sandbox_id for pod in pods))
    await asyncio.gather(*(network.detach(pod) for pod in pods))
    await asyncio.gather(*(lab.remove(pod) for pod in pods))
    assert network.attached() == ()

    async def gone() -> bool | None:
        return not lab.links() or None

    await eventually(gone)
    await network.check_status()
    assert not network.is_in_use()


async def test_a_restart_finds_what_is_attached_and_no_address_twice(lab: Lab) -> None:
    before = lab.network()
    stays = await lab.pod(PortMapping(protocol="TCP", container_port=80, host_port=8080))
    goes = await lab.pod()
    addresses = await before.attach(stays)
    await before.attach(goes)
    after = lab.network()
    assert after.attached() == tuple(sorted((stays.sandbox_id, goes.sandbox_id)))
    await after.collect((stays.sandbox_id,))
    assert after.attached() == (stays.sandbox_id,)
    await after.check(stays)
    new = await lab.pod()
    assert (await after.attach(new))[0] == "10.99.0.4"  # that of `goes` rests: its link is there
    server = (stays.netns, addresses[0], 80)
    assert await lab.talk(server, lab.pin("outside"), (NODE[0], 8080)) == OUTSIDE[0]
    again = await lab.pod(PortMapping(protocol="TCP", container_port=80, host_port=8080))
    with pytest.raises(FailedPreconditionError, match="8080/tcp is taken"):
        await after.attach(again)
    await after.check_status()
    await after.check_status()  # the second look removes what the first has seen
    assert len(lab.links()) == 2
    await after.detach(stays)
    await after.detach(stays)
    await after.attach(again)


async def test_a_detached_pod_that_still_runs_is_cut_off(lab: Lab) -> None:
    network = lab.network()
    one, two = await lab.pod(), await lab.pod()
    await network.attach(one)
    peer = (await network.attach(two))[0]
    await network.detach(one)
    with pytest.raises(OSError):
        await lab.talk((two.netns, peer, 80), one.netns, (peer, 80))
    await network.attach(one)  # and again: its former link is replaced
    assert await lab.talk((two.netns, peer, 80), one.netns, (peer, 80))
    await network.detach(one)
    await lab.remove(one)
    await network.detach(one)


async def test_a_pod_that_took_its_interface_down_is_detached_as_any(lab: Lab) -> None:
    network = lab.network()
    down, away = await lab.pod(), await lab.pod()
    await network.attach(down)
    await network.attach(away)
    lab.run(down.netns, "ip", "link", "set", "eth0", "down")
    lab.host("ip", "link", "set", lab.links()[0], "nomaster")
    for pod in (down, away):
        await network.detach(pod)
    assert network.attached() == ()
    lab.run(down.netns, "sh", "-c", "! ip link show eth0 2>/dev/null")


async def test_a_failed_attach_leaves_nothing(lab: Lab) -> None:
    network = lab.network()
    await network.attach(await lab.pod())
    before = (lab.links(), await in_own_thread(lab.kernel().survey))
    pod = await lab.pod(PortMapping(protocol="TCP", container_port=80, host_port=8080))
    lab.run(pod.netns, "ip", "link", "add", "eth0", "type", "bridge")
    with pytest.raises(NetworkError, match="attaching the pod to the bridge nrlab0: file exists"):
        await network.attach(pod)
    gone = replace(pod, netns=Path(f"{pod.netns}-none"))
    with pytest.raises(NetworkError, match="no such file"):
        await network.attach(gone)
    assert (lab.links(), await in_own_thread(lab.kernel().survey)) == before
    lab.run(pod.netns, "ip", "link", "delete", "eth0")
    await network.attach(pod)


async def test_what_someone_removed_is_made_anew(lab: Lab) -> None:
    network = lab.network()
    pod = await lab.pod(PortMapping(protocol="TCP", container_port=80, host_port=8080))
    address = (await network.attach(pod))[0]
    lab.host("ip", "link", "delete", BRIDGE)
    with pytest.raises(NetworkError, match="is gone, down, or off the bridge"):
        await network.check(pod)
    other = await lab.pod()
    await network.attach(other)  # finds no bridge, makes it again
    await network.check(pod)
    await in_own_thread(drop_table, lab)
    with pytest.raises(NetworkError, match="host port 8080/tcp .* is not mapped"):
        await network.check(pod)
    await network.check_status()
    assert network.not_ready_because() == ""
    server = (pod.netns, address, 80)
    assert await lab.talk(server, lab.pin("outside"), (NODE[0], 8080)) == OUTSIDE[0]


async def test_a_conflict_is_said_in_the_words_of_the_settings(lab: Lab) -> None:
    overlapping = lab.network(("192.0.0.0/16",))
    await overlapping.check_status()
    assert "subnet 192.0.0.0/16 overlaps with 192.0.2.0/24" in overlapping.not_ready_because()
    assert (
        "through out0: choose another one in cni.bridge_subnets" in overlapping.not_ready_because()
    )
    with pytest.raises(NetworkError, match="overlaps"):
        await overlapping.attach(await lab.pod())
    await lab.network().attach(await lab.pod())
    stranger = lab.network(owner="another")
    await stranger.check_status()
    assert stranger.not_ready_because() == (
        "the link nrlab0 belongs to lab: remove it, or name another in cni.bridge"
    )


async def test_a_bridge_is_removed_by_its_owner_alone(lab: Lab) -> None:
    network = lab.network()
    await network.attach(
        await lab.pod(PortMapping(protocol="tcp", container_port=80, host_port=8080))
    )
    await lab.network(owner="another").remove()
    assert network.not_ready_because() == ""
    assert BRIDGE in lab.host("ip", "-br", "link")
    for _ in range(2):  # what is not there is removed as well
        await network.remove()
        assert BRIDGE not in lab.host("ip", "-br", "link")
        with pytest.raises(OSError, match="(?i)no such file"):
            await in_own_thread(drop_table, lab)
    other = await lab.pod()
    await network.attach(other)  # and it is made again for who needs it
    await network.check(other)


def drop_table(lab: Lab) -> None:
    from noderuntime.host import syscalls
    from noderuntime.network import netlink, nftables

    syscalls.setns(lab.pin("host"), syscalls.CLONE_NEWNET)
    with netlink.Channel(netlink.NETFILTER) as channel:
        channel.send(nftables.delete_table(BRIDGE))
