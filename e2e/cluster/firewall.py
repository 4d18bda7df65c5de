"""Removing what kube-proxy and the CNI plugins leave in the kernel's packet filter.

kube-proxy has nftables tables of its own. The CNI plugins work through iptables, whose nftables
variant keeps its tables for ever, so those that were not there before and are empty are deleted.
"""

from __future__ import annotations

import json
import re
import shutil
import subprocess
from collections.abc import Sequence
from typing import Any, Final

from e2e.cluster import processes
from e2e.cluster.layout import NETWORK, Layout

PROXY_TABLES: Final = ("ip kube-proxy", "ip6 kube-proxy")
PROGRAMS: Final = ("iptables", "ip6tables")
TABLES: Final = ("nat", "filter", "mangle")
# Chains that the plugins share between networks, and those of the kubelet.
_PLUGINS: Final = re.compile(r"CNI-(HOSTPORT-\S+|FORWARD|ADMIN)")
_SHARED: Final = re.compile(rf"{_PLUGINS.pattern}|KUBE-\S+")
_ANY_NETWORK: Final = 'name: \\"'


def chains(layout: Layout) -> list[str]:
    """Every chain, as 'program table chain': what is there before is not ours."""
    return [
        f"{program} {table} {chain}"
        for program in PROGRAMS
        for table in TABLES
        for chain in _chains(_save(layout, program, table))
    ]


def remove_chains(layout: Layout, before: set[str], network: str = NETWORK) -> None:
    """The rules of a network, and the shared chains that came with them."""
    for program in PROGRAMS:
        for table in TABLES:
            prefix = f"{program} {table} "
            kept = {name.removeprefix(prefix) for name in before if name.startswith(prefix)}
            rules = removal(table, _save(layout, program, table), kept, network)
            if rules:
                processes.run([f"{program}-restore", "--noflush", "-w"], layout, text=rules)


def _save(layout: Layout, program: str, table: str) -> str:
    if not shutil.which(program, path=layout.environment()["PATH"]):
        return ""
    done = subprocess.run(
        [f"{program}-save", "-t", table],
        capture_output=True,
        text=True,
        check=False,
        env=layout.environment(),
    )
    return done.stdout


def _chains(listed: str) -> list[str]:
    return re.findall(r"(?m)^:(\S+) -", listed)


def removal(table: str, listed: str, before: set[str], network: str = NETWORK) -> str:
    """Input for iptables-restore that removes what is ours from a table; empty if nothing is.

    Another program's networks keep their rules, and then the shared chains stay as well. The
    kubelet's chains go with the cluster's network alone.
    """
    shared = _SHARED if network == NETWORK else _PLUGINS
    rules = [line for line in listed.splitlines() if line.startswith("-A ")]
    own = f'name: \\"{network}\\"'  # in the comment of each rule for one of our Pods
    ours = [rule for rule in rules if own in rule]
    gone = {target for rule in ours if (target := _target(rule)).startswith("CNI-")} - before
    others = any(_ANY_NETWORK in rule and rule not in ours for rule in rules)
    gone |= {
        chain
        for chain in _chains(listed)
        if shared.fullmatch(chain)
        and chain not in before
        and not (others and chain.startswith("CNI-"))
    }
    jumps = [
        "-D" + rule[2:]
        for rule in rules
        if rule.split()[1] not in gone and (rule in ours or _target(rule) in gone)
    ]
    if not gone and not jumps:
        return ""
    names = sorted(gone)
    # Naming a chain empties it.
    lines = [f"*{table}", *(f":{chain} - [0:0]" for chain in names), *jumps]
    return "\n".join([*lines, *(f"-X {chain}" for chain in names), "COMMIT", ""])


def _target(rule: str) -> str:
    found = re.search(r" -j (\S+)", rule)
    return found[1] if found else ""


def tables(layout: Layout) -> list[str]:
    """The tables of nftables as 'family name'; empty if nft is not there."""
    if not shutil.which("nft", path=layout.environment()["PATH"]):
        return []
    out = processes.run(["nft", "list", "tables"], layout)
    return [" ".join(line.split()[1:3]) for line in out.splitlines() if line.startswith("table")]


def remove_tables(layout: Layout, before: set[str], ours: Sequence[str] = PROXY_TABLES) -> None:
    """Our tables (kube-proxy's), and new ones without a rule."""
    for table in tables(layout):
        if table in before:
            continue
        if table in ours or _is_empty(layout, table):
            processes.run(["nft", "delete", "table", *table.split()], layout)


def _is_empty(layout: Layout, table: str) -> bool:
    out = processes.run(["nft", "--json", "list", "table", *table.split()], layout)
    objects: list[dict[str, Any]] = json.loads(out)["nftables"]
    return not any({"rule", "set", "map"} & set(item) for item in objects)
