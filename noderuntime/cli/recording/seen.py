"""What was seen of each container; filled by the recorder, read when a profile is made of it."""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass, field

from noderuntime.host.notifications import Call


@dataclass(frozen=True, slots=True, order=True)
class Ids:
    """Whom a container's first process, or that of an exec, started as; as the container has it."""

    uid: int
    gid: int
    groups: tuple[int, ...]


@dataclass(slots=True, kw_only=True)
class Seen:
    """One container. ``calls`` are of its programs, ``of_runtime`` of the OCI runtime before them.

    ``uses`` has credentials and the kernel's number of a capability of theirs. ``gained``: a setuid
    program, or one with file capabilities, gave a process more than it had. ``written`` has paths
    below its root.
    """

    calls: Counter[Call] = field(default_factory=Counter[Call])
    of_runtime: Counter[Call] = field(default_factory=Counter[Call])
    uses: set[tuple[int, int]] = field(default_factory=set[tuple[int, int]])
    starts: set[Ids] = field(default_factory=set[Ids])
    execs: int = 0
    gained: bool = False
    written: tuple[str, ...] = ()

    def used(self, granted: frozenset[int]) -> frozenset[int]:
        """Return which of the capabilities that the container was granted its processes used.

        Credentials that used another one are not theirs: the overlayfs below the root asks for those
        of who mounted it, for CAP_SYS_ADMIN at every file that it finds. They stay as long as the
        mount, so their address is nobody else's meanwhile.
        """
        foreign = {whose for whose, capability in self.uses if capability not in granted}
        return frozenset(what for whose, what in self.uses if whose not in foreign)


@dataclass(frozen=True, slots=True, kw_only=True)
class Recording:
    """Everything; ``containers`` by ID. ``blind`` says why capabilities were not seen, "" if they were."""

    containers: dict[str, Seen]
    blind: str
