"""The CNI network with Debian's real plugins: bridge, host-local, portmap."""

from __future__ import annotations

import json
import shutil
import subprocess
import tempfile
import uuid
from collections.abc import AsyncIterator
from dataclasses import dataclass
from pathlib import Path

import pytest

from noderuntime.errors import NetworkError
from noderuntime.host.mounts import KernelMounts
from noderuntime.host.netns import KernelNamespaces
from noderuntime.host.netstat import network_usage
from noderuntime.host.ports import NamespaceRequest
from noderuntime.network.cni import CniNetwork
from noderuntime.network.ports import Attachment
from noderuntime.policy.model import PodIdentity, PortMapping
from tests.root.host_kit import eventually

PLUGINS = Path("/usr/lib/cni")


@dataclass(slots=True)
class Lab:
    """The whole lab is in a network namespace of its own, so the machine's is never touched."""

    root: Path
    network: CniNetwork
    namespaces: KernelNamespaces

    async def attachment(self, *, ports: tuple[PortMapping, ...] = ()) -> Attachment:
        sandbox_id = uuid.uuid4().hex
        directory = self.root / "ns" / sandbox_id
        await self.namespaces.create(
            directory, NamespaceRequest(network=True, ipc=False, uts=False)
        )
        return Attachment(
            sandbox_id=sandbox_id,
            netns=directory / "net",
            pod=PodIdentity(name="web", namespace="default", uid="u-1"),
            port_mappings=ports,
        )

    def host(self, *argv: str) -> str:
        pin = self.root / "host" / "net"
        done = subprocess.run(
            ["nsenter", f"--net={pin}", *argv], check=True, capture_output=True, text=True
        )
        return done.stdout

    def census(self) -> list[str]:
        links = self.host("ip", "-o", "link").splitlines()
        rules = self.host("iptables-save", "-t", "nat").splitlines()
        leases = sorted(f.name for f in (self.root / "ipam").rglob("10.*"))
        state = sorted(f.name for f in (self.root / "state").iterdir())
        # The bridge's own state changes with its ports; portmap keeps its empty top chains.
        names = [line.split(":")[1].strip().split("@")[0] for line in links]
        return [*names, *(r for r in rules if "CNI-DN" in r or "10.99" in r), *leases, *state]


def conflist(root: Path, version: str = "1.0.0") -> dict[str, object]:
    return {
        "cniVersion": version,
        "name": "lab",
        "plugins": [
            {
                "type": "bridge",
                "bridge": "nrlab0",
                "isGateway": True,
                "ipMasq": False,
                "ipam": {
                    "type": "host-local",
                    "dataDir": str(root / "ipam"),
                    "ranges": [[{"subnet": "10.99.7.0/24"}]],
                    "routes": [{"dst": "0.0.0.0/0"}],
                },
            },
            {"type": "portmap", "capabilities": {"portMappings": True}, "snat": False},
        ],
    }


def wrappers(root: Path) -> Path:
    """Plugins that run in the lab's own network namespace instead of the machine's."""
    directory = root / "bin"
    directory.mkdir()
    for plugin in ("bridge", "portmap", "host-local"):
        script = directory / plugin
        script.write_text(f"#!/bin/sh\nexec nsenter --net={root}/host/net {PLUGINS / plugin}\n")
        script.chmod(0o755)
    return directory


@pytest.fixture
async def lab() -> AsyncIterator[Lab]:
    root = Path(tempfile.mkdtemp(prefix="nr-host-cni-"))
    namespaces = KernelNamespaces()
    await namespaces.prepare(root)
    await namespaces.create(root / "host", NamespaceRequest(network=True, ipc=False, uts=False))
    (root / "conf").mkdir()
    (root / "conf" / "10-lab.conflist").write_text(json.dumps(conflist(root)))
    (root / "conf" / "99-other.conf").write_text('{"name": "other", "type": "none"}')
    network = CniNetwork(root / "conf", (wrappers(root),), root / "state")
    yield Lab(root=root, network=network, namespaces=namespaces)
    await KernelMounts().unmount(root)
    shutil.rmtree(root)


async def test_a_pod_is_attached_and_detached_twice_and_nothing_is_left(lab: Lab) -> None:
    assert lab.network.not_ready_because() == ""
    first = await lab.attachment()
    await lab.network.attach(first)
    await lab.network.detach(first)
    before = lab.census()
    for _ in range(2):
        one, two = await lab.attachment(), await lab.attachment()
        addresses = [await lab.network.attach(pod) for pod in (one, two)]
        assert all(len(found) == 1 and found[0].startswith("10.99.7.") for found in addresses)
        assert addresses[0] != addresses[1]
        lab.host("/bin/busybox", "ping", "-c1", "-W2", addresses[0][0])
        usage = await network_usage(one.netns)
        assert [u.interface for u in usage] == ["eth0"]
        assert usage[0].rx_bytes > 0
        await lab.network.check(one)
        for pod in (one, two):
            await lab.network.detach(pod)
            await lab.network.detach(pod)
        assert lab.census() == before
        await lab.network.attach(one)  # and again after its DEL
        await lab.network.detach(one)
        assert lab.census() == before
        for pod in (one, two):
            await lab.namespaces.remove(pod.netns.parent)


async def test_a_port_is_mapped_and_unmapped(lab: Lab) -> None:
    warm = await lab.attachment()
    await lab.network.attach(warm)
    await lab.network.detach(warm)
    before = lab.census()
    ports = (
        PortMapping(protocol="TCP", container_port=80, host_port=8080),
        PortMapping(protocol="UDP", container_port=53, host_port=0),
    )
    pod = await lab.attachment(ports=ports)
    await lab.network.attach(pod)
    assert any(
        "--dport 8080" in rule for rule in lab.host("iptables-save", "-t", "nat").split("\n")
    )
    await lab.network.detach(pod)
    assert lab.census() == before


async def test_a_pod_is_detached_after_a_restart_and_without_its_netns(lab: Lab) -> None:
    warm = await lab.attachment()
    await lab.network.attach(warm)
    await lab.network.detach(warm)
    before = lab.census()
    pod = await lab.attachment()
    await lab.network.attach(pod)
    await lab.namespaces.remove(pod.netns.parent)
    (lab.root / "conf" / "10-lab.conflist").unlink()  # the network plugin was uninstalled, too
    after_restart = CniNetwork(lab.root / "conf", (lab.root / "bin",), lab.root / "state")
    assert "no folder" not in after_restart.not_ready_because()
    await after_restart.detach(pod)
    await after_restart.detach(pod)

    # The veth goes with the namespace, on the kernel's own time.
    async def settled() -> bool | None:
        return lab.census() == before or None

    await eventually(settled)


async def test_a_failing_chain_is_undone(lab: Lab) -> None:
    warm = await lab.attachment()
    await lab.network.attach(warm)
    await lab.network.detach(warm)
    before = lab.census()
    broken = lab.root / "bin" / "portmap"
    good = broken.read_text()
    broken.write_text(
        '#!/bin/sh\n[ "$CNI_COMMAND" = DEL ] && exit 0\n'
        'echo \'{"code": 11, "msg": "out of luck", "details": "try later"}\'\nexit 1\n'
    )
    pod = await lab.attachment()
    with pytest.raises(NetworkError, match="'portmap' ADD failed: out of luck: try later"):
        await lab.network.attach(pod)
    assert lab.census() == before
    broken.write_text(good)
    await lab.network.attach(pod)
    await lab.network.collect(())
    assert lab.census() == before


async def test_a_pod_of_a_dual_stack_network_has_both_addresses_in_the_order_of_the_network(
    lab: Lab,
) -> None:
    document = json.loads((lab.root / "conf" / "10-lab.conflist").read_text())
    ipam = document["plugins"][0]["ipam"]
    ipam["ranges"] = [[{"subnet": "fd99:7::/64"}], [{"subnet": "10.99.7.0/24"}]]
    ipam["routes"] = [{"dst": "::/0"}, {"dst": "0.0.0.0/0"}]
    (lab.root / "conf" / "10-lab.conflist").write_text(json.dumps(document))
    pod = await lab.attachment()
    six, four = await lab.network.attach(pod)
    assert six.startswith("fd99:7::")
    assert four.startswith("10.99.7.")
    for address in (six, four):  # the plugin's bridge looks for another that has its IPv6 address
        lab.host("/bin/busybox", "ping", "-c4", "-W2", address)
    await lab.network.check(pod)
    await lab.network.detach(pod)
    await lab.namespaces.remove(pod.netns.parent)
