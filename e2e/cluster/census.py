"""The census: everything on this machine that a cluster could leave behind.

Taken before ``up`` and after ``down`` it is the same. It looks at the whole machine, not at what we
remember to have made; only what changes by itself everywhere (addresses' lifetimes, counters, apt's
own files) is left out.
"""

from __future__ import annotations

import json
import os
import re
import shutil
import subprocess
from pathlib import Path
from typing import Any, Final

from e2e.cluster import cgroups, network, processes
from e2e.cluster.layout import MARKER

Census = dict[str, list[str]]

# Where node runtimes, kubelets, CNI plugins and their tools leave files; looked at whole.
_PLACES: Final = (
    "/etc/cni",
    "/etc/noderuntime",
    "/etc/kubernetes",
    "/opt/cni",
    "/run/containers",
    "/run/crun",
    "/run/netns",
    "/run/noderuntime",
    "/run/runc",
    "/run/xtables.lock",
    "/run/flannel",
    "/usr/libexec/kubernetes",
    "/usr/sbin/policy-rc.d",
    "/var/lib/cni",
    "/var/lib/containers",
    "/var/lib/docker-registry",
    "/var/lib/etcd",
    "/var/lib/kubelet",
    "/var/lib/noderuntime",
    "/var/log/containers",
    "/var/log/pods",
    "/var/run/kubernetes",
)
# Looked at one level deep: anything new in them is ours.
_SHALLOW: Final = ("/etc", "/opt", "/root", "/run", "/srv", "/tmp", "/var/lib", "/var/log")
_CHANGES_BY_ITSELF: Final = re.compile(
    r"/tmp/(bash_jobs|nr-|pytest-|claude|go-build|tmp|ruby|\.).*|/root/\.(cache|claude|local|npm).*"
    r"|/(run|var/log)/(systemd|user|log|apt|journal|lock).*|/etc/(ld\.so\.cache|mtab)"
)


def take() -> Census:
    """The census now. Must be root."""
    return {
        "processes": _processes(),
        "mounts": _mounts(),
        "namespaces": _namespaces(),
        "links": _lines("ip", "-o", "link", "show"),
        "addresses": _lines("ip", "-o", "address", "show"),
        "routes": _lines("ip", "route", "show", "table", "all"),
        "nftables": _lines("nft", "-s", "list", "ruleset"),
        "iptables": _legacy_rules(),
        "cgroups": _cgroups(),
        "settings": _settings(),
        "files": _files(),
        "packages": _lines("dpkg-query", "-W", "-f", "${Package} ${db:Status-Abbrev}\n"),
        "accounts": Path("/etc/passwd").read_text().splitlines(),
    }


def differences(before: Census, after: Census, others: str = "") -> dict[str, list[str]]:
    """What is new (+) and what is gone (-), by topic; empty if nothing is.

    `others` is a pattern of what other programs make on this machine meanwhile.
    """
    found: dict[str, list[str]] = {}
    for topic in before:
        old, new = (
            {line for line in taken[topic] if not (others and re.search(others, line))}
            for taken in (before, after)
        )
        lines = [f"+ {line}" for line in sorted(new - old)]
        if topic != "processes":  # others' programs may end meanwhile
            lines += [f"- {line}" for line in sorted(old - new)]
        if lines:
            found[topic] = lines
    return found


def to_json(census: Census) -> str:
    """As a document that `from_json` reads."""
    return json.dumps(census, indent=1, sort_keys=True)


def from_json(text: str) -> Census:
    """What `to_json` wrote."""
    content: Census = json.loads(text)
    return content


def _processes() -> list[str]:
    """Daemons, and whatever carries a cluster's marker or is in a Pod's cgroup.

    A daemon is a child of init. Children of shells and test runners come and go by themselves, and
    everything that ``up`` starts has a session of its own and init for a parent.
    """
    own = processes.ancestors()
    pods = {pid for group in cgroups.pod_groups() for pid in cgroups.members(group)}
    found: list[str] = []
    for pid in processes.all_pids():
        command = processes.command_of(pid)
        if not command or pid in own:
            continue
        if pid in pods or _parent(pid) == 1 or _is_marked(pid):
            found.append(f"{pid} {processes.start_time(pid)} {command[:120]}")
    return sorted(found)


def _parent(pid: int) -> int:
    try:
        stat = Path(f"/proc/{pid}/stat").read_bytes()
    except OSError:
        return 0
    return int(stat.rpartition(b")")[2].split()[1])


def _is_marked(pid: int) -> bool:
    try:
        return f"{MARKER}=".encode() in Path(f"/proc/{pid}/environ").read_bytes()
    except OSError:
        return False


def _mounts() -> list[str]:
    """Mount points of every mount namespace: source, target, type."""
    found: set[str] = set()
    seen: set[str] = set()
    for pid in processes.all_pids():
        try:
            namespace = str(Path(f"/proc/{pid}/ns/mnt").readlink())
            if namespace in seen:
                continue
            lines = Path(f"/proc/{pid}/mounts").read_text().splitlines()
        except OSError:
            continue
        seen.add(namespace)
        found.update(" ".join(line.split()[:3]) for line in lines)
    return sorted(found)


def _namespaces() -> list[str]:
    """Network namespaces that a process is in, and namespaces of any kind that a mount pins."""
    found: set[str] = set()
    for pid in processes.all_pids():
        try:
            found.add(str(Path(f"/proc/{pid}/ns/net").readlink()))
        except OSError:
            continue
    for line in Path("/proc/self/mountinfo").read_text().splitlines():
        if " nsfs " in line:
            found.add(line.split()[3])
    return sorted(found)


def _lines(*argv: str) -> list[str]:
    if not shutil.which(argv[0]):
        return []
    done = subprocess.run(argv, capture_output=True, text=True, check=False)
    # Lifetimes, counters and queues' states change by themselves.
    cleaned = re.sub(
        r"valid_lft \S+ preferred_lft \S+|counter packets \d+ bytes \d+", "", done.stdout
    )
    return [line.rstrip() for line in cleaned.splitlines() if line.strip()]


def _legacy_rules() -> list[str]:
    """Rules of the older iptables, where the kernel has it; reading them must not make tables."""
    found: list[str] = []
    for names, program in (
        ("/proc/net/ip_tables_names", "iptables-legacy-save"),
        ("/proc/net/ip6_tables_names", "ip6tables-legacy-save"),
    ):
        if Path(names).exists() and Path(names).read_text().strip():
            lines = _lines(program)
            found += [re.sub(r"\[\d+:\d+\]", "", x) for x in lines if not x.startswith("#")]
    return found


def _cgroups() -> list[str]:
    """Every cgroup below each hierarchy."""
    return sorted(
        str(Path(parent) / name)
        for root in cgroups.hierarchies()
        for parent, folders, _ in os.walk(root)
        for name in folders
    )


def _settings() -> list[str]:
    keys = (*network.WANTED, *network.CHANGED_BY_OTHERS)
    return [f"{key} = {network.read_setting(key)}" for key in keys]


def _files() -> list[str]:
    found: set[str] = set()
    for place in _PLACES:
        if Path(place).exists():
            found.add(place)
        for parent, folders, files in os.walk(place):
            found.update(str(Path(parent) / name) for name in (*folders, *files))
    for place in _SHALLOW:
        try:
            found.update(str(path) for path in Path(place).iterdir())
        except OSError:
            continue
    return sorted(name for name in found if not _CHANGES_BY_ITSELF.fullmatch(name))


def as_text(found: dict[str, list[str]]) -> str:
    """Differences for a person."""
    lines: list[Any] = []
    for topic, changes in found.items():
        lines += [f"{topic}:", *(f"  {line}" for line in changes)]
    return "\n".join(map(str, lines))
