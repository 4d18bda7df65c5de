"""A node under attack: hostile images, volumes as the kubelet makes them, and what a container says."""

from __future__ import annotations

import io
import shutil
import tarfile
import uuid
from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Final

from noderuntime.engine.engine import Engine
from noderuntime.engine.state import ContainerRecord, ContainerState
from noderuntime.images.store import ImageStore
from noderuntime.policy.model import ContainerConfig
from tests.root.engine_kit import RealNode, write_layout
from tests.waiting import DEADLINE_S, until

HANDLERS: Final = ("crun", "runc")
SECRET: Final = "of the node alone"


@dataclass(frozen=True, slots=True)
class Attack:
    """One engine, on which a test plays the attacker."""

    node: RealNode
    engine: Engine
    images: ImageStore

    @property
    def secret(self) -> Path:
        """Return a file of the node that no container may read or change."""
        return self.node.root / "victim" / "secret"

    async def image(
        self, *entries: tarfile.TarInfo | tuple[tarfile.TarInfo, bytes], **settings: object
    ) -> str:
        """Take in an image: busybox with these entries over it. Returns its reference."""
        name = f"registry.example.com/evil-{uuid.uuid4().hex[:8]}:1"
        layout = self.node.root / "layouts" / uuid.uuid4().hex
        write_layout(layout, archive(*entries), settings=settings)
        await self.images.load(layout, name)
        shutil.rmtree(layout)
        return name

    def volume(self, name: str = "data") -> Path:
        """Return a folder as the kubelet makes it for an emptyDir of the Pod."""
        path = self.node.root / "pods" / self.node.token / "volumes/kubernetes.io~empty-dir" / name
        path.mkdir(parents=True, exist_ok=True)
        path.chmod(0o777)
        return path

    async def create(self, config: ContainerConfig, handler: str = "") -> str:
        """Make a container, in the one Pod that there is or a new one."""
        there = self.engine.sandboxes()
        sandbox_id = (
            there[0].id if there else await self.engine.run_sandbox(self.node.sandbox(), handler)
        )
        return await self.engine.create_container(sandbox_id, config)

    async def run(self, config: ContainerConfig, handler: str = "") -> str:
        """Make a container and start it."""
        container_id = await self.create(config, handler)
        await self.engine.start_container(container_id)
        return container_id

    async def says(self, config: ContainerConfig, script: str, handler: str = "") -> str:
        """Run ``script`` as the container's own process; return what it wrote, with its errors."""
        shell = ("/bin/busybox", "sh", "-c", f"exec 2>&1; {script}", self.marked)
        container_id = await self.run(replace(config, command=shell), handler)
        record = await self.ended(container_id)
        said = self.log(record)
        await self.engine.remove_container(container_id)
        return said

    async def inside(self, container_id: str, script: str) -> str:
        """Execute ``script`` in the container; return both outputs."""
        shell = ("/bin/busybox", "sh", "-c", f"exec 2>&1; {script}")
        result = await self.engine.exec_sync(container_id, shell, DEADLINE_S)
        return result.stdout.decode(errors="replace")

    async def ended(self, container_id: str, timeout_s: float = DEADLINE_S) -> ContainerRecord:
        """Wait for the container's end."""
        record = self.engine.container(container_id)

        def is_over() -> bool:
            nonlocal record
            record = self.engine.container(container_id)
            return record.state is ContainerState.EXITED

        await until(is_over, timeout_s)
        return record

    def log(self, record: ContainerRecord) -> str:
        """Return what the container wrote, without the marks of the log's format."""
        lines = self.engine.log_file(record).read_text(errors="replace").splitlines()
        return "\n".join(line.split(" ", 3)[-1] for line in lines)

    @property
    def marked(self) -> str:
        """Return the word by which the census knows our processes."""
        return f"nr-engine-{self.node.token}"


def archive(*entries: tarfile.TarInfo | tuple[tarfile.TarInfo, bytes]) -> bytes:
    """Return a layer of these entries."""
    data = io.BytesIO()
    with tarfile.open(fileobj=data, mode="w") as tar:
        for entry in entries:
            info, content = entry if isinstance(entry, tuple) else (entry, b"")
            info.size = len(content)
            tar.addfile(info, io.BytesIO(content))
    return data.getvalue()


def link(name: str, target: str) -> tarfile.TarInfo:
    """Return a symbolic link of a layer."""
    return special(name, tarfile.SYMTYPE, target)


def special(name: str, kind: bytes, target: str = "") -> tarfile.TarInfo:
    """Return an entry of a kind of tarfile's."""
    info = tarfile.TarInfo(name)
    info.type, info.mode, info.linkname = kind, 0o755, target
    return info


def file(name: str, content: str | bytes, mode: int = 0o644) -> tuple[tarfile.TarInfo, bytes]:
    """Return a file of a layer."""
    info = tarfile.TarInfo(name)
    info.mode = mode
    return info, content.encode() if isinstance(content, str) else content


def fields(status: str) -> Mapping[str, str]:
    """Return the lines of a /proc/PID/status by their names."""
    pairs = (line.partition(":") for line in status.splitlines())
    return {name: value.strip() for name, _, value in pairs}
