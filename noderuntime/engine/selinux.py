"""SELinux labels: a level of its own for each Pod, and files that carry it.

A Pod keeps its level as long as its sandbox has a record, so no other gets it meanwhile, and a restart
finds it there. Labels are not taken away again: what is labelled is the Pod's, and goes with it.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING

from noderuntime.errors import FailedPreconditionError
from noderuntime.policy import selinux
from noderuntime.policy.denial import printable
from noderuntime.policy.model import LsmFacts, SelinuxLabels

if TYPE_CHECKING:
    from collections.abc import Mapping

    from noderuntime.engine.node import Node, Parts
    from noderuntime.engine.state import SandboxRecord
    from noderuntime.engine.work import ContainerWork, SandboxWork
    from noderuntime.policy.model import ContainerGrant, SandboxConfig
    from noderuntime.policy.rules import HandlerRules, SelinuxRules


class Levels:
    """The levels of Pods that are being made: their records are not there yet."""

    def __init__(self) -> None:
        """Hold none."""
        self._held: dict[str, str] = {}

    @contextmanager
    def held(self, sandbox_id: str, used: frozenset[str], fixed: str) -> Iterator[str]:
        """Give the Pod ``fixed``, or a level that none has; held until the end of the ``with``."""
        taken = used.union(self._held.values())
        level = fixed or _free(int(sandbox_id[:12], 16), taken)
        self._held[sandbox_id] = level
        try:
            yield level
        finally:
            del self._held[sandbox_id]


@contextmanager
def level_of(
    node: Node, sandbox_id: str, config: SandboxConfig, rules: HandlerRules | None
) -> Iterator[str]:
    """Give the Pod that is made meanwhile its level; "" where there is no SELinux."""
    if not node.parts.selinux.is_enabled():
        yield ""
        return
    used = frozenset(record.selinux_level for record in node.store.sandboxes.all())
    with node.levels.held(sandbox_id, used, selinux.fixed_level(rules, config)) as level:
        yield level


def _free(start: int, taken: frozenset[str]) -> str:
    # There are half a million; should all be taken, two Pods share one.
    for number in range(start, start + selinux.PAIRS):
        level = selinux.level_of_pod(number)
        if level not in taken:
            return level
    return selinux.level_of_pod(start)


def lsm_facts(parts: Parts, level: str) -> LsmFacts:
    """Read what the kernel has of AppArmor and SELinux; ``level`` is the Pod's. Blocking."""
    apparmor, process, file = parts.apparmor, "", ""
    has_apparmor, has_selinux = apparmor.is_enabled(), parts.selinux.is_enabled()
    if has_selinux:
        # Some policies name contexts for containers and have no such types.
        process, file = (
            context if context and parts.selinux.is_valid(context) else ""
            for context in parts.selinux.contexts()
        )
    return LsmFacts(
        apparmor=has_apparmor,
        can_load_apparmor=has_apparmor and apparmor.can_load(),
        apparmor_profiles=apparmor.profiles() if has_apparmor else frozenset(),
        selinux=has_selinux,
        selinux_process=process,
        selinux_file=file,
        selinux_level=level,
    )


def unknown_label(parts: Parts, rules: SelinuxRules) -> str:
    """Return the declared label that the node's policy does not know; "" where it knows all. Blocking.

    Of a level that each Pod has of its own any one is asked for.
    """
    level = rules.level or selinux.level_of_pod(0)
    found = selinux.declared_labels(rules, lsm_facts(parts, level))
    return next((c for c in (found.process, found.mount) if not parts.selinux.is_valid(c)), "")


async def look(work: ContainerWork, sandbox: SandboxRecord) -> None:
    """Find what the container is labelled with. Raises FailedPreconditionError."""
    node, config = work.node, work.record.config
    parts = node.parts
    if not (parts.apparmor.is_enabled() or parts.selinux.is_enabled()):
        return
    work.lsm = await node.disk.run(lsm_facts, parts, sandbox.selinux_level)
    rules = None if work.handler is None else work.handler.rules
    work.labels = selinux.labels(rules, sandbox.config, config, work.lsm)
    if work.labels is not None:
        await _require_known(node, config.name, work.labels)


async def _require_known(node: Node, container: str, labels: SelinuxLabels) -> None:
    for context in (labels.process, labels.mount):
        if not await node.disk.run(node.parts.selinux.is_valid, context):
            raise FailedPreconditionError(
                f"containers[{container}].securityContext.seLinuxOptions: the SELinux policy of this "
                f"node does not know the label {printable(context)}; use parts that it has"
            )


async def label_pod(work: SandboxWork, *paths: Path) -> None:
    """Label what is made for the Pod, where the policy has a type for it."""
    node, level = work.node, work.record.selinux_level
    if not level:
        return
    parts = node.parts
    facts = await node.disk.run(lsm_facts, parts, level)
    label = selinux.files_of_pod(facts)
    if not label:
        return
    is_known = await node.disk.run(parts.selinux.is_valid, label)
    for path in paths if is_known else ():
        await parts.selinux.label(path, label)


async def relabel_volumes(
    work: ContainerWork,
    grant: ContainerGrant,
    real_paths: Mapping[str, str],
    pinned: Mapping[str, Path],
) -> None:
    """Label the volumes for which it is asked: what was judged, where it is ``pinned``."""
    if grant.selinux is None:
        return
    for mount in work.record.config.mounts:
        if mount.selinux_relabel and not mount.image:
            real = real_paths[mount.host_path]
            source = pinned.get(real, Path(real))
            await work.node.parts.selinux.relabel(source, grant.selinux.mount)
