"""What a run of the suite needs of a node, and how the machine is given back.

A registry with the stand-ins, ``noderuntime serve`` with folders of its own, a bridge network.
Everything has a name of its own, so that a cluster of ``make up`` can run meanwhile.
"""

from __future__ import annotations

import json
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from e2e.cluster import build, cgroups, debian, firewall, network, processes, unit
from e2e.cluster.layout import Layout
from e2e.cluster.state import ClusterError
from e2e.conformance import standins

LINK: Final = "nr-conf0"
NETWORK: Final = "noderuntime-conformance"
SUBNET: Final = "10.245.0.0/24"
CGROUP: Final = "noderuntime"  # the runtime's, for Pods that name no parent
FORWARDING: Final = "net/ipv4/ip_forward"  # the bridge plugin sets it
SHARED_MEMORY: Final = Path("/proc/sysvipc/shm")
HANDLERS: Final = {"crun": "/usr/bin/crun", "runc": "/usr/sbin/runc"}
START_S: Final = 30.0
_CONFIG: Final = """\
socket = "{folder}/run/noderuntime.sock"
state_dir = "{folder}/state"
run_dir = "{folder}/run"
revision = "{folder}/current"
default_handler = "{handler}"
[handlers.{handler}]
oci_runtime = "{program}"
[cni]
conf_dir = "{folder}/cni"
bin_dirs = ["{plugins}"]
[images]
hosts_dir = "{folder}/certs.d"
[metrics]
address = "127.0.0.1:{port}"
"""


@dataclass(frozen=True, slots=True)
class Node:
    """A running node: its folder, with ``runtime.log``, and its socket."""

    layout: Layout
    folder: Path
    handler: str

    @property
    def endpoint(self) -> str:
        return f"unix://{self.folder}/run/noderuntime.sock"

    def crictl(self, *words: str) -> str:
        """Run crictl; raises ClusterError with what it said."""
        argv = [self.layout.binary("crictl"), "--config", str(self.folder / "crictl.yaml")]
        return processes.run([*argv, "-r", self.endpoint, "-t", "60s", *words], self.layout)


def prepare(layout: Layout, tell: Callable[[str], None] = print) -> None:
    """What a run needs of programs, built or unpacked into ``.cluster`` once."""
    debian.unpack_programs(layout)
    debian.fetch(layout, ("busybox-static",))
    for module in (build.CRITOOLS, build.NNP):
        build.build_go(layout, module, tell)


@contextmanager
def running(layout: Layout, handler: str) -> Iterator[Node]:
    """A node whose Pods run under `handler`; afterwards nothing of it is left."""
    with ExitStack() as stack:
        folder = stack.enter_context(_folder())
        stack.enter_context(_machine(layout))
        stack.enter_context(cgroups.with_hugetlb(layout))
        registry = stack.enter_context(_registry(layout, folder))
        node = Node(layout, folder, handler)
        _configure(node, registry)
        stack.enter_context(_serving(node))
        yield node


@contextmanager
def _folder() -> Iterator[Path]:
    with tempfile.TemporaryDirectory(prefix="nr-conformance-") as name:
        # A container's root in a user namespace must reach its file system through it.
        Path(name).chmod(0o711)
        (Path(name) / "tmp").mkdir(mode=0o711)
        try:
            yield Path(name)
        finally:
            _unmount_below(Path(name))


@contextmanager
def _machine(layout: Layout) -> Iterator[None]:
    """Settings, links, chains and shared memory as they were, whatever happened between."""
    forwarding, segments = network.read_setting(FORWARDING), _segments()
    tables, chains = set(firewall.tables(layout)), set(firewall.chains(layout))
    groups = [root / CGROUP for root in cgroups.hierarchies() if not (root / CGROUP).exists()]
    try:
        yield
    finally:
        subprocess.run(["ip", "link", "delete", LINK], check=False, capture_output=True)
        firewall.remove_chains(layout, chains, NETWORK)
        firewall.remove_tables(layout, tables, ours=())
        for group in groups:
            with suppress(OSError):  # never made, or another runtime's Pods are in it now
                group.rmdir()
        if forwarding is not None:
            network.write_setting(FORWARDING, forwarding)
        # critest makes one in the host's IPC namespace for each spec about it.
        for number in _segments() - segments:
            subprocess.run(["ipcrm", "-m", number], check=False, capture_output=True)


def _segments() -> set[str]:
    return {line.split()[1] for line in SHARED_MEMORY.read_text().splitlines()[1:]}


@contextmanager
def _process(argv: list[str], log: Path, environment: dict[str, str]) -> Iterator[None]:
    with log.open("wb") as file:
        process = subprocess.Popen(
            argv, stdin=subprocess.DEVNULL, stdout=file, stderr=file, env=environment
        )
    try:
        yield
        if process.poll() is not None:
            raise ClusterError(f"{argv[0]} ended by itself; {log}:\n{processes.tail(log)}")
    finally:
        process.terminate()
        try:
            process.wait(20)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait(10)


@contextmanager
def _registry(layout: Layout, folder: Path) -> Iterator[str]:
    address = f"127.0.0.1:{_free_port()}"
    config = folder / "registry.json"
    content = {
        "version": 0.1,
        "log": {"level": "warn", "accesslog": {"disabled": True}},
        "storage": {"filesystem": {"rootdirectory": str(folder / "registry")}},
        "http": {"addr": address},
    }
    config.write_text(json.dumps(content))
    argv = [layout.binary("docker-registry"), "serve", str(config)]
    with _process(argv, folder / "registry.log", layout.environment()):
        _until_open(address)
        standins.push_all(layout, folder / "images", address)
        yield address


def _until_open(address: str) -> None:
    host, _, port = address.rpartition(":")
    deadline = time.monotonic() + START_S
    while True:
        try:
            socket.create_connection((host, int(port)), timeout=1).close()
        except OSError as error:
            if time.monotonic() > deadline:
                raise ClusterError(f"nothing answers at {address}: {error}") from error
            time.sleep(0.05)
        else:
            return


def _free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port: int = probe.getsockname()[1]
        return port


def _configure(node: Node, registry: str) -> None:
    folder = node.folder
    for host in standins.REGISTRIES:
        place = folder / "certs.d" / host
        place.mkdir(parents=True)
        (place / "hosts.toml").write_text(
            f'[host."http://{registry}"]\ncapabilities = ["pull", "resolve"]\n'
        )
    ipam = {
        "type": "host-local",
        "dataDir": str(folder / "addresses"),
        "ranges": [[{"subnet": SUBNET}]],
        "routes": [{"dst": "0.0.0.0/0"}],
    }
    bridge = {"type": "bridge", "bridge": LINK, "isGateway": True, "ipMasq": True}
    plugins = [
        bridge | {"hairpinMode": True, "ipam": ipam},
        {"type": "portmap", "capabilities": {"portMappings": True}},
    ]
    (folder / "cni").mkdir()
    (folder / "cni/10-bridge.conflist").write_text(
        json.dumps({"cniVersion": "1.0.0", "name": NETWORK, "plugins": plugins})
    )
    config = _CONFIG.format(
        folder=folder,
        handler=node.handler,
        program=HANDLERS[node.handler],
        plugins=node.layout.cni / "bin",
        port=_free_port(),
    )
    (folder / "config.toml").write_text(config)
    (folder / "crictl.yaml").write_text("{}\n")


@contextmanager
def _serving(node: Node) -> Iterator[None]:
    layout, folder = node.layout, node.folder
    argv = [sys.executable, "-m", "noderuntime", "serve", "--config", str(folder / "config.toml")]
    environment = {
        **layout.environment(),
        **unit.environment(),
        "PYTHONPATH": f"{layout.repository}:{layout.repository / 'operator'}",
    }
    with _process(argv, folder / "runtime.log", environment):
        _until_answers(node)
        try:
            yield
        finally:
            node.crictl("rmp", "--force", "--all")


def _unmount_below(folder: Path) -> None:
    """The runtime's folder is a mount that outlives it, as Pods do; a failed spec leaves others."""
    lines = Path("/proc/self/mountinfo").read_text().splitlines()
    for target in reversed([line.split()[4] for line in lines]):
        if target.startswith(f"{folder}/"):
            subprocess.run(["umount", "--lazy", target], check=True)


def _until_answers(node: Node) -> None:
    deadline = time.monotonic() + START_S
    while True:
        with suppress(ClusterError):
            node.crictl("version")
            return
        if time.monotonic() > deadline:
            log = node.folder / "runtime.log"
            raise ClusterError(f"the runtime does not answer; {log}:\n{processes.tail(log)}")
        time.sleep(0.1)
