"""A node that is only remembered: what the parts below the engine would make, in one ``World``.

The world outlives an engine, as a kernel does, so a crash is a new engine on the same world. The
fakes that act on it are in ``host``, ``processes``, ``network`` and ``images``; the contract tests run
the same suite on them and on the real ones.
"""

from __future__ import annotations

import asyncio
from dataclasses import dataclass, field
from pathlib import Path

from noderuntime.api.revision import Revision
from noderuntime.host.ports import ExecRequest, Exit
from noderuntime.policy.model import Resources
from tests.fakes.images import FakeImages
from tests.fakes.lsm import FakeAppArmor, FakeSelinux

ALIVE = ("created", "running")


def publish(path: Path, revision: Revision) -> None:
    """Write a revision beside, and rename it into place."""
    path.parent.mkdir(exist_ok=True)
    beside = path.with_name("beside")
    beside.write_text(revision.model_dump_json(by_alias=True))
    beside.rename(path)


@dataclass
class World:
    """What is there."""

    root: Path
    pins: set[str] = field(default_factory=set[str])
    mounts: set[str] = field(default_factory=set[str])
    cgroups: set[str] = field(default_factory=set[str])
    attachments: set[str] = field(default_factory=set[str])
    networks: list[Path | None] = field(default_factory=list[Path | None])  # a call each
    processes: dict[str, str] = field(default_factory=dict[str, str])  # ID -> as crun's state
    inits: dict[Path, str] = field(default_factory=dict[Path, str])  # bundle -> sandbox
    monitors: set[str] = field(default_factory=set[str])
    exits: dict[str, Exit] = field(default_factory=dict[str, Exit])
    ended: list[asyncio.Queue[str]] = field(default_factory=list[asyncio.Queue[str]])
    calls: list[str] = field(default_factory=list[str])
    ignored_signals: set[int] = field(default_factory=set[int])
    failing: dict[str, Exception] = field(default_factory=dict[str, Exception])  # call -> error
    hostnames: list[str] = field(default_factory=list[str])
    yields: bool = False
    is_unified: bool = True
    controllers: set[str] = field(default_factory=lambda: {"cpu", "memory", "hugetlb"})
    oom_kills: int = 0
    sealed: set[str] = field(default_factory=set[str])
    left_out: dict[int, tuple[str, ...]] = field(default_factory=dict[int, tuple[str, ...]])
    counts_swap: bool = True
    has_swap: bool = True
    oom_scores: dict[str, tuple[int, int]] = field(default_factory=dict[str, tuple[int, int]])
    lost_exits: dict[str, Exit] = field(default_factory=dict[str, Exit])  # what the kernel knows
    execs: list[ExecRequest] = field(default_factory=list[ExecRequest])
    tmpfs: dict[str, int] = field(default_factory=dict[str, int])  # target -> bytes
    updates: list[Resources] = field(default_factory=list[Resources])
    user_namespaces: bool = True
    apparmor: FakeAppArmor = field(default_factory=FakeAppArmor)
    selinux: FakeSelinux = field(default_factory=FakeSelinux)
    contexts: dict[str, str] = field(default_factory=dict[str, str])  # of overlays, by target
    images: FakeImages = field(init=False)

    def __post_init__(self) -> None:
        """Put the image store on the same disk."""
        self.images = FakeImages(self.root / "images", self.called)

    @property
    def snapshots(self) -> set[str]:
        """The writable layers."""
        return self.images.snapshots

    def called(self, name: str) -> None:
        """Record a call, and fail it where a test says so."""
        self.calls.append(name)
        if name in self.failing:
            raise self.failing[name]

    async def call(self, name: str) -> None:
        """Like ``called``; where the world ``yields``, others run first, and a cancel may come."""
        if self.yields:
            await asyncio.sleep(0)
        self.called(name)

    def end(self, container_id: str, code: int, *, oom: bool = False) -> None:
        """A container's process ends; its monitor, where it has one, says so and ends."""
        if self.processes.get(container_id) in ALIVE:
            self.processes[container_id] = "stopped"
        if container_id in self.monitors:
            self.monitors.discard(container_id)
            self.exits[container_id] = Exit(code=code, finished_at_ns=42, oom_killed=oom)
            for queue in self.ended:
                queue.put_nowait(container_id)

    def mount(self, target: Path) -> None:
        """Something is mounted on ``target``, which is made if missing."""
        target.mkdir(parents=True, exist_ok=True)
        self.mounts.add(str(target))

    def publish(self, revision: Revision) -> str:
        """Write the revision as an agent does; return its digest."""
        publish(self.root / "etc" / "current", revision)
        return revision.digest

    def census(self) -> dict[str, object]:
        """Everything that could be left behind, files too."""
        return {
            "pins": sorted(self.pins),
            "mounts": sorted(self.mounts),
            "cgroups": sorted(self.cgroups),
            "attachments": sorted(self.attachments),
            "snapshots": sorted(self.snapshots),
            "processes": dict(self.processes),
            "monitors": sorted(self.monitors),
            "exits": sorted(self.exits),
            "files": sorted(
                str(path.relative_to(self.root))
                for path in self.root.rglob("*")
                if path.is_file() and path.name != "boot_id"
            ),
            "sandboxes": sorted(path.name for path in self.root.glob("run/sandboxes/*")),
            "containers": sorted(path.name for path in self.root.glob("run/containers/*")),
        }
