"""A lab for the built-in bridge: a node and its outside, each a network namespace of its own."""

from __future__ import annotations

import shutil
import socket
import subprocess
import tempfile
import uuid
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from pathlib import Path

from noderuntime.host import syscalls
from noderuntime.host.mounts import KernelMounts
from noderuntime.host.netns import KernelNamespaces
from noderuntime.host.ports import NamespaceRequest
from noderuntime.host.threads import in_own_thread
from noderuntime.network.addresses import GATEWAY, Pool, mac_of, parse_subnets
from noderuntime.network.bridge import BridgeNetwork
from noderuntime.network.kernel import Bridge, LinuxBridge
from noderuntime.network.ports import Attachment
from noderuntime.policy.model import PodIdentity, PortMapping

BRIDGE = "nrlab0"
SUBNETS = ("10.99.0.0/24", "fd99::/64")
# What the node has on its way out, and who is there.
NODE, OUTSIDE = ("192.0.2.1", "2001:db8::1"), ("192.0.2.2", "2001:db8::2")
NETWORK_ONLY = NamespaceRequest(network=True, ipc=False, uts=False)


@dataclass(slots=True)
class Lab:
    """The machine's own network is never touched."""

    root: Path
    namespaces: KernelNamespaces = field(default_factory=KernelNamespaces)

    def kernel(self, subnets: tuple[str, ...] = SUBNETS, owner: str = "lab") -> LinuxBridge:
        pool = Pool(parse_subnets(subnets))
        bridge = Bridge(
            name=BRIDGE,
            owner=owner,
            mac=mac_of(pool.subnets, GATEWAY),
            interfaces=pool.interfaces(GATEWAY),
        )
        return LinuxBridge(bridge, self.pin("host"))

    def network(self, subnets: tuple[str, ...] = SUBNETS, owner: str = "lab") -> BridgeNetwork:
        """Return the network as a fresh process has it."""
        return BridgeNetwork(BRIDGE, Pool(parse_subnets(subnets)), self.kernel(subnets, owner))

    def pin(self, name: str) -> Path:
        return self.root / name / "net"

    async def pod(self, *ports: PortMapping) -> Attachment:
        sandbox_id = uuid.uuid4().hex * 2
        directory = self.root / sandbox_id
        await self.namespaces.create(directory, NETWORK_ONLY)
        return Attachment(
            sandbox_id=sandbox_id,
            netns=directory / "net",
            pod=PodIdentity(name="web", namespace="default", uid="u-1"),
            port_mappings=ports,
        )

    async def remove(self, pod: Attachment) -> None:
        await self.namespaces.remove(pod.netns.parent)

    def run(self, where: Path, *argv: str) -> str:
        done = subprocess.run(
            ["nsenter", f"--net={where}", *argv], check=True, capture_output=True, text=True
        )
        return done.stdout

    def host(self, *argv: str) -> str:
        return self.run(self.pin("host"), *argv)

    def links(self) -> list[str]:
        """Return the bridge's ports."""
        lines = self.host("ip", "-o", "link", "show", "master", BRIDGE).splitlines()
        return sorted(line.split(":")[1].strip().split("@")[0] for line in lines)

    async def talk(self, server: tuple[Path, str, int], client: Path, to: tuple[str, int]) -> str:
        """Say something over TCP to ``to``; returns who the server saw. Raises OSError."""
        where, address, port = server
        listener = await in_own_thread(listen, where, address, port)
        with listener:
            peer = await in_own_thread(say, client, to[0], to[1])
            with peer:
                accepted, seen = listener.accept()
                with accepted:
                    accepted.settimeout(3)
                    assert accepted.recv(5) == b"hello"
                    accepted.sendall(b"you")
                assert peer.recv(3) == b"you"
        return str(seen[0])


def listen(where: Path, address: str, port: int) -> socket.socket:
    """Return a listening socket of that namespace."""
    syscalls.setns(where, syscalls.CLONE_NEWNET)
    family = socket.AF_INET6 if ":" in address else socket.AF_INET
    listener = socket.socket(family)
    listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    listener.bind((address, port))
    listener.listen()
    listener.settimeout(3)
    return listener


def say(where: Path, address: str, port: int) -> socket.socket:
    """Return a socket of that namespace that has said hello."""
    syscalls.setns(where, syscalls.CLONE_NEWNET)
    family = socket.AF_INET6 if ":" in address else socket.AF_INET
    peer = socket.socket(family)
    try:
        peer.settimeout(3)
        peer.connect((address, port))
        peer.sendall(b"hello")
    except OSError:
        peer.close()
        raise
    return peer


def udp(where: Path, address: str, port: int) -> socket.socket:
    """Return a UDP socket of that namespace."""
    syscalls.setns(where, syscalls.CLONE_NEWNET)
    mine = socket.socket(socket.AF_INET6 if ":" in address else socket.AF_INET, socket.SOCK_DGRAM)
    mine.bind((address, port))
    mine.settimeout(3)
    return mine


@asynccontextmanager
async def made_lab() -> AsyncIterator[Lab]:
    """Make a lab; take it away again."""
    root = Path(tempfile.mkdtemp(prefix="nr-bridge-lab-"))
    lab = Lab(root)
    try:
        await lab.namespaces.prepare(root)
        for name in ("host", "outside"):
            await lab.namespaces.create(root / name, NETWORK_ONLY)
        lab.host("ip", "link", "add", "out0", "type", "veth", "peer", "in0")
        lab.host("ip", "link", "set", "in0", "netns", str(lab.pin("outside")))
        for name, link, ours, other in (
            ("host", "out0", NODE, OUTSIDE),
            ("outside", "in0", OUTSIDE, NODE),
        ):
            where = lab.pin(name)
            lab.run(where, "ip", "link", "set", link, "mtu", "1400", "up")
            lab.run(where, "ip", "address", "add", f"{ours[0]}/24", "dev", link)
            lab.run(where, "ip", "address", "add", f"{ours[1]}/64", "dev", link, "nodad")
            del other
        lab.host("ip", "route", "add", "default", "via", OUTSIDE[0])
        lab.host("ip", "route", "add", "default", "via", OUTSIDE[1])
        yield lab
    finally:
        await KernelMounts().unmount(root)
        shutil.rmtree(root)
