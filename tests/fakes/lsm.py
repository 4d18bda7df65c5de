"""In-memory fakes of host/lsm.py: a kernel that has what a test says."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path

from noderuntime.errors import HostError


@dataclass(slots=True)
class FakeAppArmor:
    """``AppArmor``; without ``enabled`` it is a kernel that has none.

    ``faults`` is by profile, ``*`` for every one.
    """

    enabled: bool = False
    parser: bool = True
    loaded: dict[str, str] = field(default_factory=dict[str, str])  # name -> source
    in_use: set[str] = field(default_factory=set[str])
    calls: list[str] = field(default_factory=list[str])
    faults: dict[str, HostError] = field(default_factory=dict[str, HostError])

    def is_enabled(self) -> bool:
        return self.enabled

    def can_load(self) -> bool:
        return self.parser

    def profiles(self) -> frozenset[str]:
        return frozenset(self.loaded)

    async def load(self, name: str, text: str) -> None:
        self.calls.append(f"load {name}")
        fault = self.faults.get(name) or self.faults.get("*")
        if fault is not None:
            raise fault
        self.loaded[name] = text

    async def unload(self, name: str) -> None:
        self.calls.append(f"unload {name}")
        if name in self.in_use:
            raise HostError(f"{name} confines a running process")
        self.loaded.pop(name, None)


@dataclass(slots=True)
class FakeSelinux:
    """``Selinux``; ``labels`` is what was labelled, by path; ``known`` None knows every label."""

    enabled: bool = False
    process: str = "system_u:system_r:container_t:s0"
    file: str = "system_u:object_r:container_file_t:s0"
    known: set[str] | None = None
    labels: dict[str, str] = field(default_factory=dict[str, str])
    relabelled: dict[str, str] = field(default_factory=dict[str, str])

    def is_enabled(self) -> bool:
        return self.enabled

    def contexts(self) -> tuple[str, str]:
        return self.process, self.file

    def is_valid(self, context: str) -> bool:
        return self.known is None or context in self.known

    async def label(self, path: Path, context: str) -> None:
        self.labels[str(path)] = context

    async def relabel(self, source: Path, context: str) -> None:
        self.relabelled[str(source)] = context
