"""The files that a sandbox gives to its containers: resolv.conf and hostname."""

from __future__ import annotations

import os
from pathlib import Path

from noderuntime.engine.node import Paths
from noderuntime.engine.state import SandboxRecord
from noderuntime.policy.model import Dns

HOST_RESOLV_CONF = Path("/etc/resolv.conf")


def write_files(paths: Paths, record: SandboxRecord) -> None:
    """Make the sandbox's folder and both files. Blocking; not fsynced, as run_dir is volatile."""
    users = record.config.namespaces.user
    make_closed(paths.sandbox(record.id), None if users is None else users.gids.host_id)
    _write(paths.resolv_conf(record.id), resolv_conf(record.config.dns))
    _write(paths.hostname(record.id), hostname_of(record) + "\n")


def make_closed(folder: Path, group: int | None) -> None:
    """Make a folder that no user of the node can enter. Blocking.

    Its mounts are in the node's /proc/mounts for all to read: whoever could enter would run what an
    image has with a set-user-ID bit (CVE-2021-41103). ``group`` is the root of a Pod's own user
    namespace, which must reach what is mounted there.
    """
    folder.mkdir(mode=0o700, parents=True, exist_ok=True)
    if group is not None:
        os.chown(folder, -1, group)
        folder.chmod(0o710)


def resolv_conf(dns: Dns) -> str:
    """Return resolv.conf(5); the node's own where the Pod's says nothing (dnsPolicy Default)."""
    lines = [f"nameserver {server}" for server in dns.servers]
    if dns.searches:
        lines.append("search " + " ".join(dns.searches))
    if dns.options:
        lines.append("options " + " ".join(dns.options))
    if lines:
        return "\n".join(lines) + "\n"
    return HOST_RESOLV_CONF.read_text() if HOST_RESOLV_CONF.exists() else ""


def hostname_of(record: SandboxRecord) -> str:
    """Return the Pod's host name: the node's where the Pod has none (hostNetwork)."""
    return record.config.hostname or os.uname().nodename


def _write(path: Path, text: str) -> None:
    path.write_text(text)
    path.chmod(0o644)
