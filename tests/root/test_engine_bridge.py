"""The engine on the built-in bridge: killed at every step, and a CNI network that comes later."""

from __future__ import annotations

import asyncio
import json
import shutil
import subprocess
from collections.abc import Iterator
from contextlib import suppress
from dataclasses import replace
from pathlib import Path

import pytest

from noderuntime.errors import HostError, NodeRuntimeError
from noderuntime.network import netlink, nftables
from noderuntime.policy.model import PodIdentity, PortMapping, SandboxConfig
from tests.root.engine_kit import RealNode
from tests.root.engine_scene import Scene, searchable_node
from tests.root.test_engine_census import (
    PLACES,
    leaves_nothing_killed_after,
    leaves_nothing_killed_at,
)

MAPPING = PortMapping(protocol="tcp", container_port=80, host_port=39876)
SANDBOX = [place for place in PLACES if "_sandbox/" in place]


class BridgedNode(RealNode):
    """A node without a CNI configuration; it is kept beside, for who wants it."""

    @property
    def aside(self) -> Path:
        return self.root / "10-test.conflist"

    def prepare(self, subnet: str) -> None:
        RealNode.prepare(self, subnet)
        (self.root / "cni" / "10-test.conflist").replace(self.aside)

    def clean(self) -> None:
        RealNode.clean(self)
        with suppress(OSError), netlink.Channel(netlink.NETFILTER) as channel:
            channel.send(nftables.delete_table(self.bridge))


@pytest.fixture(scope="module")
def node() -> Iterator[RealNode]:
    with searchable_node("bridged", BridgedNode) as real:
        yield real


@pytest.mark.parametrize("place", SANDBOX)
async def test_a_killed_runtime_leaves_nothing_on_the_bridge(node: RealNode, place: str) -> None:
    await leaves_nothing_killed_at(node, place)


@pytest.mark.parametrize("number", range(12))
async def test_a_runtime_killed_in_the_middle_leaves_nothing_on_the_bridge(
    node: RealNode, number: int
) -> None:
    await leaves_nothing_killed_after(node, 0.004 + number * 0.006)


@pytest.mark.parametrize("how", ["error", "cancel"])
@pytest.mark.parametrize("place", [place for place in SANDBOX if place.startswith("run_")])
async def test_a_failed_step_leaves_nothing_on_the_bridge(
    node: RealNode, place: str, how: str
) -> None:
    empty = node.census()

    async def fail_here(called: str, step: str) -> None:
        if f"{called}/{step}" == place:
            raise HostError("injected") if how == "error" else asyncio.CancelledError

    engine = node.engine(fail_here)
    await engine.recover()
    with pytest.raises(NodeRuntimeError):
        await Scene(node, engine).call("run_sandbox")
    assert node.leftovers(empty) == []
    await engine.close()


async def test_pods_go_to_cni_once_it_is_configured_and_the_others_stay_till_they_end(
    node: RealNode,
) -> None:
    assert isinstance(node, BridgedNode)
    empty = node.census()
    engine = node.engine()
    await engine.recover()
    assert engine.status().network_not_ready == ""
    assert f"built-in bridge {node.bridge} ({node.bridge_subnet})" in engine.status().network
    bridged = await engine.run_sandbox(pod(node, "one", MAPPING), "")
    document = json.loads(node.aside.read_text())
    plugin = document["plugins"][0]
    plugin["bridge"] = f"{node.bridge}c"  # not the built-in one's
    configured = node.root / "cni" / "10-test.conflist"
    configured.write_text(json.dumps(document))
    try:
        assert f"CNI network {node.token} ({configured})" == engine.status().network
        plugged = await engine.run_sandbox(pod(node, "two"), "")
        addresses = {record.id: record.addresses[0] for record in engine.sandboxes()}
        prefix = node.bridge_subnet.rsplit(".", 1)[0] + "."
        assert addresses[bridged].startswith(prefix)
        assert not addresses[plugged].startswith(prefix)
        await engine.close()
        engine = node.engine()  # and a restart knows whose is whose
        await engine.recover()
        await engine.stop_sandbox(bridged)
        await engine.stop_sandbox(plugged)
        await Scene(node, engine).remove_everything()
        (node.root / "leases" / node.token / "lock").unlink()  # host-local's own
        (node.root / "leases" / node.token / "last_reserved_ip.0").unlink()
        (node.root / "leases" / node.token).rmdir()
        assert node.leftovers(empty) == []
    finally:
        configured.unlink()
        shutil.rmtree(node.root / "leases", ignore_errors=True)
        subprocess.run(("ip", "link", "delete", plugin["bridge"]), check=False)
        await engine.close()


def pod(node: RealNode, name: str, *ports: PortMapping) -> SandboxConfig:
    identity = PodIdentity(name=name, namespace="shop", uid=f"{node.token}-{name}", attempt=0)
    return replace(node.sandbox(), pod=identity, port_mappings=ports)
