"""What attaching and detaching costs: ``unshare -n python -m tests.root.bridge_cost [ROUNDS]``.

The built-in bridge and CNI's bridge, host-local and portmap take turns, Pod by Pod, both dual stack.
CPU is this process' and its children's, without what the kernel does on its own time.
"""

from __future__ import annotations

import asyncio
import json
import resource
import shutil
import statistics
import sys
import tempfile
import time
import uuid
from collections.abc import Awaitable
from pathlib import Path

from noderuntime.host.mounts import KernelMounts
from noderuntime.host.netns import KernelNamespaces
from noderuntime.host.ports import NamespaceRequest
from noderuntime.network.bridge import bridge_network
from noderuntime.network.cni import CniNetwork
from noderuntime.network.ports import Attachment
from noderuntime.policy.model import PodIdentity, PortMapping

PORTS = (PortMapping(protocol="tcp", container_port=80, host_port=8080),)
CHAIN = {
    "cniVersion": "1.0.0",
    "name": "cost",
    "plugins": [
        {
            "type": "bridge",
            "bridge": "cost1",
            "isGateway": True,
            "ipMasq": True,
            "hairpinMode": True,
            "ipam": {
                "type": "host-local",
                "ranges": [[{"subnet": "10.98.0.0/16"}], [{"subnet": "fd98::/64"}]],
                "routes": [{"dst": "0.0.0.0/0"}, {"dst": "::/0"}],
            },
        },
        {"type": "portmap", "capabilities": {"portMappings": True}},
    ],
}


def cpu_s() -> float:
    used = [resource.getrusage(who) for who in (resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN)]
    return sum(each.ru_utime + each.ru_stime for each in used)


async def cost_of(work: Awaitable[object]) -> tuple[float, float]:
    """Return wall and CPU time in milliseconds."""
    cpu, begun = cpu_s(), time.perf_counter()
    await work
    return (time.perf_counter() - begun) * 1e3, (cpu_s() - cpu) * 1e3


async def measure(root: Path, rounds: int) -> None:
    namespaces = KernelNamespaces()
    await namespaces.prepare(root)
    (root / "conf").mkdir()
    chain = json.loads(json.dumps(CHAIN))
    chain["plugins"][0]["ipam"]["dataDir"] = str(root / "leases")
    (root / "conf" / "10-cost.conflist").write_text(json.dumps(chain))
    cni = CniNetwork(root / "conf", (Path("/usr/lib/cni"),), root / "state")
    bridge = bridge_network("cost0", ("10.99.0.0/16", "fd99::/64"), owner="cost")
    assert bridge is not None
    found: dict[str, list[tuple[float, float]]] = {}
    for number in range(rounds):
        for ports in ((), PORTS):
            for name, network in (("CNI plugins", cni), ("built-in", bridge)):
                pod = Attachment(
                    sandbox_id=uuid.uuid4().hex * 2,
                    netns=root / f"{number}" / "net",
                    pod=PodIdentity(name="web", namespace="cost", uid="u"),
                    port_mappings=ports,
                )
                request = NamespaceRequest(network=True, ipc=False, uts=False)
                await namespaces.create(pod.netns.parent, request)
                for verb, work in (("attach", network.attach), ("detach", network.detach)):
                    key = f"{verb}, {len(ports)} host ports, {name}"
                    found.setdefault(key, []).append(await cost_of(work(pod)))
                await namespaces.remove(pod.netns.parent)
    for key in sorted(found):
        wall, cpu = zip(*found[key][1:], strict=True)  # the first makes the bridge
        print(  # noqa: T201
            f"{key:40} p50 {statistics.median(wall):7.2f} ms, CPU {statistics.mean(cpu):7.2f} ms"
        )


async def main() -> None:
    root = Path(tempfile.mkdtemp(prefix="nr-bridge-cost-"))
    try:
        await measure(root, int(sys.argv[1]) if len(sys.argv) > 1 else 30)
    finally:
        await KernelMounts().unmount(root)
        shutil.rmtree(root)


if __name__ == "__main__":
    asyncio.run(main())
