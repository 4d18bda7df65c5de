"""Counters of the interfaces in a network namespace, from /proc/net/dev. proc_pid_net(5)."""

from __future__ import annotations

from pathlib import Path

from noderuntime.host import syscalls
from noderuntime.host.readings import NetworkUsage
from noderuntime.host.threads import in_own_thread


async def network_usage(netns: Path) -> tuple[NetworkUsage, ...]:
    """Return each interface but lo; raises HostError when the namespace is gone."""
    return parse(await in_own_thread(_read, netns))


def _read(netns: Path) -> str:
    syscalls.setns(netns, syscalls.CLONE_NEWNET)
    return Path("/proc/thread-self/net/dev").read_text()


def parse(table: str) -> tuple[NetworkUsage, ...]:
    """Parse /proc/net/dev: two lines of heading, then ``name: 8 of received, 8 of sent``."""
    found: list[NetworkUsage] = []
    for line in table.splitlines()[2:]:
        name, _, counters = line.rpartition(":")
        fields = counters.split()
        if len(fields) < 16 or name.strip() == "lo":
            continue
        found.append(
            NetworkUsage(
                interface=name.strip(),
                rx_bytes=int(fields[0]),
                rx_errors=int(fields[2]),
                tx_bytes=int(fields[8]),
                tx_errors=int(fields[10]),
                rx_packets=int(fields[1]),
                rx_dropped=int(fields[3]),
                tx_packets=int(fields[9]),
                tx_dropped=int(fields[11]),
            )
        )
    return tuple(found)
