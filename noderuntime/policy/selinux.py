"""SELinux: the label of a container's processes, and that of the files which are its own.

A label is ``user:role:type:level``. What nobody says is as the node's policy has it for containers
(lxc_contexts(5)); the level holds a pair of categories of the Pod's own, so that one Pod cannot open
what is another's although both have the same type.

- A kernel without SELinux has no labels, and what a Pod asks for is passed over, as container
  engines do. A profile that demands SELinux is not offered there (``features.py``).
- A policy that has no type for containers labels only who asks for something.
- A privileged container that says nothing has no label of its own: the policy says what it becomes.
- Under a SecurityProfile a Pod may ask for what it gets anyway, and for nothing else: which of two
  labels allows more, only the policy knows.
- Files: the policy's type for containers' files, with the level of the process.

Source: ``Documentation/admin-guide/LSM/SELinux.rst``; OCI runtime-spec config.md
``process.selinuxLabel``, config-linux.md ``mountLabel``.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Final

from noderuntime.policy.denial import Denial
from noderuntime.policy.facts import ContainerFacts
from noderuntime.policy.model import (
    ContainerConfig,
    LsmFacts,
    Mount,
    SandboxConfig,
    SelinuxLabels,
    SelinuxOptions,
)
from noderuntime.policy.mounts import is_kubelets
from noderuntime.policy.rules import HandlerRules, SelinuxRules

DEFAULT_TYPE: Final = "container_t"
DEFAULT_PROCESS: Final = f"system_u:system_r:{DEFAULT_TYPE}:s0"
DEFAULT_FILE: Final = "system_u:object_r:container_file_t:s0"
CATEGORIES: Final = 1024
_PARTS: Final = ("user", "role", "type", "level")
_FIELD: Final = "securityContext.seLinuxOptions"


PAIRS: Final = CATEGORIES * (CATEGORIES - 1) // 2


def level_of_pod(number: int) -> str:
    """Return the level of two different categories that belongs to ``number``, from 0 on."""
    first, second = 0, number % PAIRS
    while second >= CATEGORIES - 1 - first:
        second -= CATEGORIES - 1 - first
        first += 1
    return f"s0:c{first},c{first + 1 + second}"


def fixed_level(rules: HandlerRules | None, sandbox: SandboxConfig) -> str:
    """Return the level that the Pod has not of its own: as asked for or declared; "" if neither."""
    if sandbox.selinux is not None and sandbox.selinux.level:
        return sandbox.selinux.level
    declared = None if rules is None else rules.selinux
    return "" if declared is None else declared.level


def labels(
    rules: HandlerRules | None, sandbox: SandboxConfig, container: ContainerConfig, lsm: LsmFacts
) -> SelinuxLabels | None:
    """Return the labels of a container, or None where it has none of its own."""
    if not lsm.selinux:
        return None
    asked = _asked(sandbox, container)
    declared = None if rules is None else rules.selinux
    is_open = asked == SelinuxOptions() and declared is None
    if is_open and (container.security.privileged or not lsm.selinux_process):
        return None
    return _joined(asked, declared or SelinuxRules(type=""), lsm)


def declared_labels(rules: SelinuxRules, lsm: LsmFacts) -> SelinuxLabels:
    """Return the labels of a container that asks for none, in a Pod with the level of ``lsm``."""
    return _joined(SelinuxOptions(), rules, lsm)


def _joined(asked: SelinuxOptions, said: SelinuxRules, lsm: LsmFacts) -> SelinuxLabels:
    """Return each part as it is asked for, declared, or the node's."""
    user, role, kind, base_level = _split(lsm.selinux_process or DEFAULT_PROCESS)
    level = asked.level or said.level or lsm.selinux_level or base_level
    process = (
        asked.user or said.user or user,
        asked.role or said.role or role,
        asked.type or said.type or kind,
        level,
    )
    file_user, file_role, file_type, _ = _split(lsm.selinux_file or DEFAULT_FILE)
    return SelinuxLabels(
        process=":".join(process), mount=":".join((file_user, file_role, file_type, level))
    )


def files_of_pod(lsm: LsmFacts) -> str:
    """Return the label of what the runtime itself makes for a Pod; "" without SELinux."""
    if not lsm.selinux:
        return ""
    user, role, kind, _ = _split(lsm.selinux_file or DEFAULT_FILE)
    return ":".join((user, role, kind, lsm.selinux_level))


def is_the_profiles(facts: ContainerFacts) -> Iterator[Denial]:
    """Refuse each part of a label that is not the handler's."""
    declared, asked = facts.rules.selinux, _asked(facts.sandbox, facts.container)
    for part in _PARTS:
        value: str = getattr(asked, part)
        allowed: str = "" if declared is None else getattr(declared, part)
        if value and value != allowed:
            yield facts.deny(
                f"{_FIELD}.{part}",
                value,
                f"the SELinux {part} is the handler's" + (f", {allowed}" if allowed else ""),
                f"remove seLinuxOptions.{part}",
            )


def relabels_what_is_the_pods(facts: ContainerFacts) -> Iterator[Denial]:
    """Refuse to relabel a path of the node, unless the profile allows it."""
    if facts.rules.selinux is not None and facts.rules.selinux.relabel:
        return
    for mount in facts.container.mounts:
        if mount.selinux_relabel and not _is_the_pods(mount, facts.sandbox):
            yield facts.deny(
                "volumeMounts",
                f"{mount.host_path}, to be relabelled",
                "seLinux.relabel is Deny",
                "mount it without relabelling, or use a volume of the Pod's own",
            )


def _is_the_pods(mount: Mount, sandbox: SandboxConfig) -> bool:
    return bool(mount.image) or is_kubelets(mount.host_path, sandbox.pod.uid)


def _asked(sandbox: SandboxConfig, container: ContainerConfig) -> SelinuxOptions:
    """Return what the container asks for, and the Pod where the container leaves it open."""
    own = container.security.selinux or SelinuxOptions()
    pod = sandbox.selinux or SelinuxOptions()
    return SelinuxOptions(
        user=own.user or pod.user,
        role=own.role or pod.role,
        type=own.type or pod.type,
        level=own.level or pod.level,
    )


def _split(context: str) -> tuple[str, str, str, str]:
    """Return the four parts; a level holds colons of its own."""
    user, role, kind, level = (*context.split(":", 3), "", "", "", "")[:4]
    return user, role, kind, level or "s0"
