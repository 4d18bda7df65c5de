"""The node's link and address, the CNI configuration, and the kernel settings that change.

Settings are written down with their old values before the first component starts: the kubelet and
kube-proxy change some by themselves, and down puts all of them back.
"""

from __future__ import annotations

import json
import shutil
import subprocess
from pathlib import Path
from typing import Final

from e2e.cluster import firewall, processes
from e2e.cluster.layout import NETWORK, NODE_IP, NODE_LINK, POD_CIDR, POD_LINK, Layout
from e2e.cluster.state import State

PROC_SYS: Final = Path("/proc/sys")
# Set here.
WANTED: Final = {
    "net/ipv4/ip_forward": "1",
    "net/bridge/bridge-nf-call-iptables": "1",
}
# Set by the kubelet (protectKernelDefaults is off) and by kube-proxy.
CHANGED_BY_OTHERS: Final = (
    "vm/overcommit_memory",
    "vm/panic_on_oom",
    "kernel/panic",
    "kernel/panic_on_oops",
    "kernel/keys/root_maxkeys",
    "kernel/keys/root_maxbytes",
    "net/ipv4/conf/all/route_localnet",
    "net/netfilter/nf_conntrack_max",
    "net/netfilter/nf_conntrack_tcp_be_liberal",
    "net/netfilter/nf_conntrack_tcp_timeout_established",
    "net/netfilter/nf_conntrack_tcp_timeout_close_wait",
    "net/ipv6/conf/all/forwarding",
)
MODULES: Final = ("overlay", "br_netfilter", "nf_conntrack", "nf_tables")


def read_setting(key: str) -> str | None:
    """A kernel setting's value; None where the kernel does not have it."""
    try:
        return (PROC_SYS / key).read_text().strip()
    except OSError:
        return None


def write_setting(key: str, value: str) -> bool:
    """Set it; False where it is read-only or not there."""
    try:
        (PROC_SYS / key).write_text(value)
    except OSError:
        return False
    return True


def set_up(layout: Layout, state: State) -> bool:
    """Modules, settings, nftables' tables as they were, the node's link, CNI's configuration."""
    changed = _load_modules(state)
    changed |= _settings(state)
    _note_firewall(layout, state)
    changed |= _node_link(layout, state)
    changed |= _cni(layout)
    return changed


def _load_modules(state: State) -> bool:
    modprobe = shutil.which("modprobe")
    if not modprobe or state.find("modules"):
        return False
    # A kernel with everything built in has no modules file and needs none.
    before = _modules()
    missing = [module for module in MODULES if module not in before]
    state.record("modules", names=missing)
    for module in missing:
        subprocess.run([modprobe, "-q", module], check=False, capture_output=True)
    return bool(_modules() - before)


def _modules() -> set[str]:
    try:
        lines = Path("/proc/modules").read_text().splitlines()
    except OSError:
        return set()
    return {line.split()[0] for line in lines}


def _settings(state: State) -> bool:
    changed = False
    for key in (*WANTED, *CHANGED_BY_OTHERS):
        value = read_setting(key)
        if value is None:
            continue
        if not state.find("setting", key=key):
            state.record("setting", key=key, value=value)
        if key in WANTED and value != WANTED[key]:
            changed = write_setting(key, WANTED[key]) or changed
    return changed


def _note_firewall(layout: Layout, state: State) -> None:
    if not state.find("tables"):
        state.record("tables", before=firewall.tables(layout))
    if not state.find("chains"):
        state.record("chains", before=firewall.chains(layout))


def _node_link(layout: Layout, state: State) -> bool:
    state.record("link", name=POD_LINK)  # the bridge plugin makes it with the first Pod
    state.record("link", name=NODE_LINK)
    if Path(f"/sys/class/net/{NODE_LINK}").exists():
        return False
    # A bridge without ports, because not every kernel has dummy links. It only carries the address.
    processes.run(["ip", "link", "add", NODE_LINK, "type", "bridge"], layout)
    processes.run(["ip", "address", "add", f"{NODE_IP}/24", "dev", NODE_LINK], layout)
    processes.run(["ip", "link", "set", NODE_LINK, "up"], layout)
    return True


def _cni(layout: Layout) -> bool:
    config = layout.cni / "net.d" / "10-noderuntime.conflist"
    content = json.dumps(cni_config(layout, drops_forwarded=_drops_forwarded(layout)), indent=1)
    if config.exists():
        return False
    config.parent.mkdir(parents=True, exist_ok=True)
    config.write_text(content)
    return True


def _drops_forwarded(layout: Layout) -> bool:
    """Whether this host's firewall drops what it forwards, as Docker makes it."""
    if not shutil.which("iptables", path=layout.environment()["PATH"]):
        return False
    before = processes.run(["iptables", "-w", "-S", "FORWARD"], layout)
    return "-P FORWARD DROP" in before


def cni_config(layout: Layout, *, drops_forwarded: bool) -> dict[str, object]:
    """A bridge with addresses from the Pod range, hairpin so that a Pod reaches its own Service."""
    bridge: dict[str, object] = {
        "type": "bridge",
        "bridge": POD_LINK,
        "isGateway": True,
        "ipMasq": True,
        "hairpinMode": True,
        "ipam": {
            "type": "host-local",
            "dataDir": str(layout.cni / "networks"),
            "ranges": [[{"subnet": POD_CIDR}]],
            "routes": [{"dst": "0.0.0.0/0"}],
        },
    }
    plugins: list[dict[str, object]] = [
        bridge,
        {"type": "portmap", "capabilities": {"portMappings": True}},
    ]
    if drops_forwarded:
        plugins.append({"type": "firewall", "backend": "iptables"})
    return {"cniVersion": "1.0.0", "name": NETWORK, "plugins": plugins}
