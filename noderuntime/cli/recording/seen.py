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

    ``capabilities`` are the kernel's numbers. ``gained``: a setuid program, or one with file
    capabilities, gave a process more than it had. ``written`` has paths below its root.
    """

    calls: Counter[Call] = field(default_factory=Counter[Call])
    of_runtime: Counter[Call] = field(default_factory=Counter[Call])
    capabilities: set[int] = field(default_factory=set[int])
    starts: set[Ids] = field(default_factory=set[Ids])
    execs: int = 0
    gained: bool = False
    written: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True, kw_only=True)
class Recording:
    """Everything; ``containers`` by ID. ``blind`` says why capabilities were not seen, "" if they were."""

    containers: dict[str, Seen]
    blind: str
