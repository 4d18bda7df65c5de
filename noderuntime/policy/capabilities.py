"""Linux capabilities: which a container gets of what it adds and drops.

Names are without ``CAP_`` here, as a user writes them; the spec writes them with it. Inheritable
sets stay empty (CVE-2022-24769). capabilities(7), include/uapi/linux/capability.h.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Final

from noderuntime.errors import InvalidArgumentError
from noderuntime.policy.denial import Denial, listed, printable
from noderuntime.policy.facts import ContainerFacts
from noderuntime.policy.model import ContainerSecurity
from noderuntime.policy.rules import HandlerRules

ALL: Final = "ALL"
IN_ORDER: Final = (  # the index is the kernel's number
    "CHOWN",
    "DAC_OVERRIDE",
    "DAC_READ_SEARCH",
    "FOWNER",
    "FSETID",
    "KILL",
    "SETGID",
    "SETUID",
    "SETPCAP",
    "LINUX_IMMUTABLE",
    "NET_BIND_SERVICE",
    "NET_BROADCAST",
    "NET_ADMIN",
    "NET_RAW",
    "IPC_LOCK",
    "IPC_OWNER",
    "SYS_MODULE",
    "SYS_RAWIO",
    "SYS_CHROOT",
    "SYS_PTRACE",
    "SYS_PACCT",
    "SYS_ADMIN",
    "SYS_BOOT",
    "SYS_NICE",
    "SYS_RESOURCE",
    "SYS_TIME",
    "SYS_TTY_CONFIG",
    "MKNOD",
    "LEASE",
    "AUDIT_WRITE",
    "AUDIT_CONTROL",
    "SETFCAP",
    "MAC_OVERRIDE",
    "MAC_ADMIN",
    "SYSLOG",
    "WAKE_ALARM",
    "BLOCK_SUSPEND",
    "AUDIT_READ",
    "PERFMON",
    "BPF",
    "CHECKPOINT_RESTORE",
)
KNOWN: Final = frozenset(IN_ORDER)
# What container engines give when nobody says otherwise; only the node's own handlers use it.
NODE_DEFAULT: Final = frozenset(
    [
        "AUDIT_WRITE",
        "CHOWN",
        "DAC_OVERRIDE",
        "FOWNER",
        "FSETID",
        "KILL",
        "MKNOD",
        "NET_BIND_SERVICE",
        "NET_RAW",
        "SETFCAP",
        "SETGID",
        "SETPCAP",
        "SETUID",
        "SYS_CHROOT",
    ]
)


def normalise(name: str) -> str:
    """Return the name in capitals and without ``CAP_``."""
    return name.upper().removeprefix("CAP_")


def of_status(status: str) -> frozenset[str]:
    """Return the bounding set in the text of /proc/PID/status: what a node can give at all."""
    for line in status.splitlines():
        name, _, value = line.partition(":")
        if name == "CapBnd":
            mask = int(value.strip(), 16)
            return frozenset(cap for bit, cap in enumerate(IN_ORDER) if mask >> bit & 1)
    return KNOWN


def granted(
    security: ContainerSecurity, defaults: frozenset[str], everything: frozenset[str] = KNOWN
) -> frozenset[str]:
    """Return what the container gets: defaults, plus what it adds, minus what it drops.

    ``ALL`` counts before single names, so ``drop: [ALL], add: [X]`` is X alone, as in Kubernetes.
    ``everything`` is what ALL and privileged mean on this node.
    """
    if security.privileged:
        return everything
    added = asked(security)
    dropped = frozenset(map(normalise, security.capabilities_drop))
    have = everything if ALL in added else defaults
    if ALL in dropped:
        have = frozenset[str]()
    return (have | (added - {ALL})) - dropped


def given(rules: HandlerRules, security: ContainerSecurity) -> frozenset[str]:
    """Return the most that the profile gives a container like this one, if it were made now."""
    bound = rules.allowed_capabilities | rules.default_capabilities
    if security.privileged:
        return KNOWN if rules.privileged or rules.audits("privileged") else bound
    found = granted(security, rules.default_capabilities)
    return found if rules.audits("capabilities") else found & bound


def asked(security: ContainerSecurity) -> frozenset[str]:
    """Return what the container adds, normalised, ``ALL`` kept as it is."""
    return frozenset(map(normalise, security.capabilities_add))


def require_known(container: str, security: ContainerSecurity) -> None:
    """Raise InvalidArgumentError for a name that Linux does not have."""
    for name in security.capabilities_add:
        if normalise(name) not in KNOWN | {ALL}:
            raise InvalidArgumentError(
                f"containers[{container}].securityContext.capabilities.add: "
                f"{printable(name)} is not a Linux capability"
            )


def within_bound(facts: ContainerFacts) -> Iterator[Denial]:
    """Refuse each added capability that is neither allowed nor a default."""
    rules = facts.rules
    allowed = rules.allowed_capabilities | rules.default_capabilities
    for name in sorted(asked(facts.container.security)):
        if name in allowed or (name == ALL and allowed >= KNOWN):
            continue
        yield facts.deny(
            "securityContext.capabilities.add",
            name,
            f"capabilities.allow has {listed(rules.allowed_capabilities)}",
            f"remove it from the Pod, or add {printable(name, 40)} to capabilities.allow",
        )
