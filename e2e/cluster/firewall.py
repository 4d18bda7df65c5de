"""Removing what kube-proxy and the CNI plugins leave in the kernel's packet filter.

kube-proxy has nftables tables of its own. The CNI plugins work through iptables, whose nftables
variant keeps its tables for ever, so those that were not there before and are empty are deleted.
"""

from __future__ import annotations

import json
import re
import shutil
import subprocess
from typing import Any, Final

from e2e.cluster import network, processes
from e2e.cluster.layout import Layout

PROXY_TABLES: Final = ("ip kube-proxy", "ip6 kube-proxy")
# Chains of the plugins bridge (ipMasq), portmap and firewall, and of the kubelet.
_OURS: Final = re.compile(r"CNI-\S+|KUBE-\S+")


def remove_chains(layout: Layout) -> None:
    """The rules that jump to the CNI plugins' and the kubelet's chains, then the chains."""
    for program in ("iptables", "ip6tables"):
        if not shutil.which(program, path=layout.environment()["PATH"]):
            continue
        for table in ("nat", "filter", "mangle"):
            _clear(layout, program, table)


def _clear(layout: Layout, program: str, table: str) -> None:
    listed = subprocess.run(
        [f"{program}-save", "-t", table],
        capture_output=True,
        text=True,
        check=False,
        env=layout.environment(),
    ).stdout
    rules = removal(table, listed)
    if rules:
        processes.run([f"{program}-restore", "--noflush", "-w"], layout, text=rules)


def removal(table: str, listed: str) -> str:
    """Input for iptables-restore that removes our chains from a table; empty if there are none."""
    chains = [
        match[1] for match in re.finditer(r"(?m)^:(\S+) -", listed) if _OURS.fullmatch(match[1])
    ]
    if not chains:
        return ""
    jumps = [
        "-D" + line[2:]
        for line in listed.splitlines()
        if line.startswith("-A ")
        and not _OURS.fullmatch(line.split()[1])
        and (target := re.search(r" -j (\S+)", line))
        and target[1] in chains
    ]
    lines = [f"*{table}", *(f":{chain} - [0:0]" for chain in chains), *jumps]
    lines += [f"-F {chain}" for chain in chains] + [f"-X {chain}" for chain in chains]
    return "\n".join([*lines, "COMMIT", ""])


def remove_tables(layout: Layout, before: set[str]) -> None:
    """kube-proxy's tables, and new ones without a rule."""
    for table in network.tables(layout):
        if table in before:
            continue
        if table in PROXY_TABLES or _is_empty(layout, table):
            processes.run(["nft", "delete", "table", *table.split()], layout)


def _is_empty(layout: Layout, table: str) -> bool:
    out = processes.run(["nft", "--json", "list", "table", *table.split()], layout)
    objects: list[dict[str, Any]] = json.loads(out)["nftables"]
    return not any({"rule", "set", "map"} & set(item) for item in objects)
