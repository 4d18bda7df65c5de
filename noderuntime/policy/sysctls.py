"""Kernel parameters of a Pod: those that a namespace of its own holds, of these the allowed.

Always allowed is what Kubernetes calls safe: it changes nothing outside of the Pod and cannot
harm the node. Never allowed, whatever the profile says, is what no namespace holds or whose
namespace is the node's: it would be a write to the node.
Source: kubernetes.io "Using sysctls in a Kubernetes Cluster"; namespaces(7).
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from typing import Final

from noderuntime.errors import InvalidArgumentError
from noderuntime.policy.denial import Denial, listed, printable
from noderuntime.policy.facts import SandboxFacts
from noderuntime.policy.model import NamespaceMode, Namespaces, SandboxConfig

SAFE: Final = frozenset(
    [
        "kernel.shm_rmid_forced",
        "net.ipv4.ip_local_port_range",
        "net.ipv4.ip_local_reserved_ports",
        "net.ipv4.ip_unprivileged_port_start",
        "net.ipv4.ping_group_range",
        "net.ipv4.tcp_fin_timeout",
        "net.ipv4.tcp_keepalive_intvl",
        "net.ipv4.tcp_keepalive_probes",
        "net.ipv4.tcp_keepalive_time",
        "net.ipv4.tcp_rmem",
        "net.ipv4.tcp_syncookies",
        "net.ipv4.tcp_wmem",
    ]
)
_IPC: Final = frozenset(
    [
        "kernel.msgmax",
        "kernel.msgmnb",
        "kernel.msgmni",
        "kernel.sem",
        "kernel.shmall",
        "kernel.shmmax",
        "kernel.shmmni",
        "kernel.shm_rmid_forced",
    ]
)
_NAME: Final = re.compile(
    r"[a-z0-9](?:[a-z0-9_-]*[a-z0-9])?(?:[./][a-z0-9](?:[a-z0-9_-]*[a-z0-9])?)*"
)


def normalise(name: str) -> str:
    """Return the name with dots; where a slash comes first, slashes separate and dots do not."""
    first = next((c for c in name if c in "./"), ".")
    return name if first == "." else name.translate(str.maketrans("./", "/."))


def normalised(sysctls: Mapping[str, str]) -> dict[str, str]:
    """Return all of them with normalised names."""
    return {normalise(name): value for name, value in sysctls.items()}


def require_namespaced(sandbox: SandboxConfig) -> None:
    """Raise InvalidArgumentError for a sysctl that would be written on the node itself."""
    for name, value in sandbox.sysctls.items():
        problem = _problem(name, value, sandbox.namespaces)
        if problem:
            raise InvalidArgumentError(f"securityContext.sysctls: {printable(name)} {problem}")


def are_allowed(facts: SandboxFacts) -> Iterator[Denial]:
    """Refuse each sysctl that is neither safe nor allowed."""
    for name in sorted(normalised(facts.sandbox.sysctls)):
        if name in SAFE or name in facts.rules.sysctls:
            continue
        yield facts.deny(
            "securityContext.sysctls",
            name,
            f"sysctls.allow has {listed(facts.rules.sysctls)}",
            f"remove it from the Pod, or add {printable(name, 60)} to sysctls.allow",
        )


def _problem(name: str, value: str, namespaces: Namespaces) -> str:
    plain = normalise(name)
    if len(name) > 253 or not _NAME.fullmatch(name):
        return "is not the name of a sysctl"
    if len(value) > 1024 or not (value.isprintable() or value.replace("\t", " ").isprintable()):
        return "has a value that is not one line of text"
    if plain.startswith("net."):
        return _of_the_node("network", namespaces.network)
    if plain in _IPC or plain.startswith("fs.mqueue."):
        return _of_the_node("IPC", namespaces.ipc)
    return "belongs to the node as a whole: no namespace of a Pod holds it"


def _of_the_node(kind: str, mode: NamespaceMode) -> str:
    return f"would change the node: the Pod shares its {kind}" if mode is NamespaceMode.NODE else ""
