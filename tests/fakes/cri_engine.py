"""An engine in memory whose execs are local processes: for tests of the CRI server alone."""

from __future__ import annotations

import asyncio
import itertools
import time
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING, TypeVar

from noderuntime.api.config import Config
from noderuntime.engine.disk import Disk
from noderuntime.engine.engine import (
    ContainerStats,
    Engine,
    HandlerInfo,
    NodeStatus,
    SandboxStats,
)
from noderuntime.engine.events import Feed, Subscription
from noderuntime.engine.offers import Withheld
from noderuntime.engine.state import (
    ContainerId,
    ContainerRecord,
    ContainerState,
    SandboxId,
    SandboxRecord,
    SandboxState,
)
from noderuntime.engine.stats import ContainerMetrics, Filesystem, PodMetrics
from noderuntime.engine.store import Store
from noderuntime.errors import (
    DeniedError,
    FailedPreconditionError,
    NotFoundError,
    UnimplementedError,
)
from noderuntime.host.ports import CgroupStats, ExecResult
from noderuntime.host.readings import (
    CgroupMetrics,
    DiskUsage,
    HugepageUsage,
    NetworkUsage,
    ProcessCounts,
)
from noderuntime.images.ports import Credentials, FsUsage, Image
from noderuntime.policy.model import ImageConfig
from tests.fakes.local_process import LocalProcess

if TYPE_CHECKING:
    from collections.abc import AsyncIterator

    from noderuntime.host.ports import AttachStream, ExecStream
    from noderuntime.policy.model import ContainerConfig, Resources, SandboxConfig

T = TypeVar("T")
Pull = tuple[str, Credentials | None, str]  # reference, login, handler

IMAGE = Image(
    id="sha256:" + "ab" * 32,
    repo_tags=("registry.test/app:1",),
    repo_digests=("registry.test/app@sha256:" + "cd" * 32,),
    size_bytes=4096,
    config=ImageConfig(user="1000:1000"),
    layers=(),
)


@dataclass
class FakeEngine(Engine):
    """Records in dicts; nothing runs but execs."""

    sandbox_records: dict[str, SandboxRecord] = field(default_factory=dict[str, SandboxRecord])
    container_records: dict[str, ContainerRecord] = field(
        default_factory=dict[str, ContainerRecord]
    )
    images: dict[str, Image] = field(default_factory=lambda: {IMAGE.id: IMAGE})
    streams: list[LocalProcess] = field(default_factory=list[LocalProcess])
    pulls: list[Pull] = field(default_factory=list[Pull])
    attach_argv: tuple[str, ...] = ("cat",)
    ids: itertools.count[int] = field(default_factory=lambda: itertools.count(1))
    stale: tuple[str, ...] = ()
    withheld: tuple[Withheld, ...] = ()
    network_problem: str = ""
    ends_events: bool = False  # at once, for calls that would have no end
    feed: Feed = field(default_factory=lambda: Feed(Store(Path("/nowhere"), Disk()), time.time_ns))

    def subscribe(self) -> Subscription:
        subscription = self.feed.subscribe()
        if self.ends_events:
            subscription.close()
        return subscription

    def end_events(self) -> None:
        self.feed.close()

    async def run_sandbox(self, config: SandboxConfig, handler: str) -> SandboxId:
        if handler == "forbidden":
            raise DeniedError("profile web: hostPID is refused")
        sandbox_id = SandboxId(f"{next(self.ids):064x}"[::-1])
        self.sandbox_records[sandbox_id] = SandboxRecord(
            id=sandbox_id,
            config=config,
            handler=handler,
            revision="",
            oci_runtime="/usr/bin/crun",
            state=SandboxState.READY,
            created_at_ns=time.time_ns(),
            addresses=("10.244.0.2", "fd00::2"),
        )
        return sandbox_id

    async def stop_sandbox(self, sandbox_id: str) -> None:
        if record := self.sandbox_records.get(sandbox_id):
            self.sandbox_records[sandbox_id] = replace(record, state=SandboxState.NOT_READY)

    async def remove_sandbox(self, sandbox_id: str) -> None:
        self.sandbox_records.pop(sandbox_id, None)

    def sandbox(self, sandbox_id: str) -> SandboxRecord:
        return _find("sandbox", self.sandbox_records, sandbox_id)

    def sandboxes(self) -> tuple[SandboxRecord, ...]:
        return tuple(self.sandbox_records.values())

    async def create_container(self, sandbox_id: str, config: ContainerConfig) -> ContainerId:
        self.sandbox(sandbox_id)
        container_id = ContainerId(f"{next(self.ids):064x}"[::-1])
        self.container_records[container_id] = ContainerRecord(
            id=container_id,
            sandbox_id=SandboxId(sandbox_id),
            config=config,
            image_id=IMAGE.id,
            image_reference="registry.test/app:1",
            revision="",
            state=ContainerState.CREATED,
            created_at_ns=time.time_ns(),
            log_path=f"/var/log/pods/{config.log_path}" if config.log_path else "",
            cgroup_path="/kubepods/x",
        )
        return container_id

    def set_state(self, container_id: str, state: ContainerState) -> None:
        """Change a container's state, as an exit would."""
        record = self.container(container_id)
        self.container_records[record.id] = replace(record, state=state)

    async def start_container(self, container_id: str) -> None:
        self.set_state(container_id, ContainerState.RUNNING)

    async def stop_container(self, container_id: str, timeout_s: float) -> None:
        del timeout_s
        if container_id in self.container_records:
            self.set_state(container_id, ContainerState.EXITED)

    async def remove_container(self, container_id: str) -> None:
        self.container_records.pop(container_id, None)

    def container(self, container_id: str) -> ContainerRecord:
        return _find("container", self.container_records, container_id)

    def containers(self) -> tuple[ContainerRecord, ...]:
        return tuple(self.container_records.values())

    async def update_resources(self, container_id: str, resources: Resources) -> None:
        record = self.container(container_id)
        config = replace(record.config, resources=resources)
        self.container_records[record.id] = replace(record, config=config)

    async def update_sandbox_resources(
        self, sandbox_id: str, overhead: Resources, resources: Resources
    ) -> None:
        record = self.sandbox(sandbox_id)
        config = replace(record.config, overhead=overhead, resources=resources)
        self.sandbox_records[record.id] = replace(record, config=config)

    async def checkpoint_container(self, container_id: str) -> None:
        self.container(container_id)
        raise UnimplementedError("criu is not installed")

    def config(self) -> Config:
        return Config()

    async def reopen_log(self, container_id: str) -> None:
        self.container(container_id)

    async def exec_sync(
        self, container_id: str, argv: tuple[str, ...], timeout_s: float
    ) -> ExecResult:
        del container_id, timeout_s
        return ExecResult(stdout=" ".join(argv).encode(), stderr=b"", exit_code=3)

    async def exec(
        self, container_id: str, argv: tuple[str, ...], *, tty: bool, stdin: bool
    ) -> ExecStream:
        self.container(container_id)
        stream = LocalProcess(argv, tty=tty, stdin=stdin)
        self.streams.append(stream)
        return stream

    async def attach(self, container_id: str) -> AttachStream:
        record = self.container(container_id)
        stream = LocalProcess(self.attach_argv, tty=record.config.tty, stdin=True)
        self.streams.append(stream)
        return stream

    async def admit_port_forward(self, sandbox_id: str) -> SandboxRecord:
        record = self.sandbox(sandbox_id)
        if record.state is not SandboxState.READY:
            raise FailedPreconditionError(f"sandbox {record.id} is not ready")
        return record

    async def port_forward(
        self, sandbox_id: str, port: int
    ) -> tuple[asyncio.StreamReader, asyncio.StreamWriter]:
        self.sandbox(sandbox_id)
        return await asyncio.open_connection("127.0.0.1", port)

    async def container_stats(self, container_id: str) -> ContainerStats:
        self.container(container_id)
        return ContainerStats(cgroup=_reading(), writable_layer=_usage())

    async def sandbox_stats(self, sandbox_id: str) -> SandboxStats:
        self.sandbox(sandbox_id)
        usage = NetworkUsage(interface="eth0", rx_bytes=1, rx_errors=2, tx_bytes=3, tx_errors=4)
        return SandboxStats(cgroup=_reading(), network=(usage,))

    async def pod_metrics(self) -> AsyncIterator[PodMetrics]:
        usage = NetworkUsage(interface="eth0", rx_bytes=1, rx_errors=2, tx_bytes=3, tx_errors=4)
        for record in self.sandbox_records.values():
            running = (
                ContainerMetrics(
                    record=each,
                    cgroup=whole_reading(f"/kubepods/pod/{each.id}"),
                    writable_layer=_usage(),
                    filesystem=Filesystem(
                        device="/dev/vda1", size_bytes=100, inodes=10, inodes_free=9
                    ),
                )
                for each in self.container_records.values()
                if each.sandbox_id == record.id and each.state is ContainerState.RUNNING
            )
            yield PodMetrics(
                record=record,
                cgroup=whole_reading("/kubepods/pod"),
                network=(usage,),
                containers=tuple(running),
            )

    async def pull_image(
        self,
        reference: str,
        credentials: Credentials | None,
        *,
        handler: str,
        pod: SandboxConfig | None = None,
    ) -> Image:
        del pod
        self.pulls.append((reference, credentials, handler))
        return IMAGE

    def find_image(self, reference: str) -> Image | None:
        return next(
            (
                each
                for each in self.images.values()
                if reference in {each.id, *each.repo_tags, *each.repo_digests}
            ),
            None,
        )

    def list_images(self) -> tuple[Image, ...]:
        return tuple(self.images.values())

    async def remove_image(self, reference: str) -> None:
        if found := self.find_image(reference):
            del self.images[found.id]

    async def image_fs(self) -> FsUsage:
        return _usage()

    def status(self) -> NodeStatus:
        return NodeStatus(
            handlers=(
                HandlerInfo(name="", recursive_readonly=True, user_namespaces=False),
                HandlerInfo(name="restricted", recursive_readonly=True, user_namespaces=False),
            ),
            network_not_ready=self.network_problem,
            network="CNI network fake",
            revision="sha256:" + "0" * 64,
            revision_error="",
            stale_containers=self.stale,
            ungoverned_pods=len(self.stale),
            withheld=self.withheld,
            revision_handlers=("restricted",),
        )

    def log_file(self, record: ContainerRecord) -> Path:
        return Path(record.log_path)


def _find(kind: str, records: dict[str, T], asked: str) -> T:
    found = [record for name, record in records.items() if asked and name.startswith(asked)]
    if len(found) != 1:
        raise NotFoundError(f"{kind} {asked} is not there")
    return found[0]


def _reading() -> CgroupStats:
    return CgroupStats(
        timestamp_ns=time.time_ns(),
        cpu_usage_ns=1_000_000,
        memory_usage_bytes=8192,
        memory_working_set_bytes=4096,
        memory_rss_bytes=2048,
        pids=2,
    )


def whole_reading(path: str) -> CgroupMetrics:
    """Return what a cgroup may tell at most."""
    disk = DiskUsage(
        device="/dev/vda",
        major="254",
        minor="0",
        read_bytes=10,
        written_bytes=20,
        reads=1,
        writes=2,
    )
    return CgroupMetrics(
        id=path,
        cpu_usage_ns=2_900_000_000,
        memory_working_set_bytes=4096,
        disks=(disk,),
        hugepages=(HugepageUsage(page_size="2MB", usage_bytes=0, max_usage_bytes=0),),
        pressure_us={kind: {"some": 3_000_000, "full": 0} for kind in ("cpu", "io", "memory")},
        processes=ProcessCounts(processes=1, files=3, sockets=1, files_soft_limit=1024),
    )


def _usage() -> FsUsage:
    return FsUsage(
        mountpoint=Path("/"), used_bytes=1234, inodes_used=5, timestamp_ns=time.time_ns()
    )
