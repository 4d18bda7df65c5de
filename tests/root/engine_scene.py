"""A Pod brought to where a verb can be called, and the calls; found again by name after a crash."""

from __future__ import annotations

import asyncio
import secrets
import shutil
import tempfile
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator
from contextlib import asynccontextmanager, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TypeVar

from noderuntime.engine.engine import Engine
from tests.root.engine_kit import RealNode

N = TypeVar("N", bound=RealNode)
MAKING = ("run_sandbox", "create_container", "start_container")


@dataclass(frozen=True, slots=True)
class Scene:
    """One Pod with one container on one engine."""

    node: RealNode
    engine: Engine

    @property
    def sandbox_id(self) -> str:
        return self.engine.sandboxes()[0].id if self.engine.sandboxes() else ""

    @property
    def container_id(self) -> str:
        return self.engine.containers()[0].id if self.engine.containers() else ""

    async def prepare(self, verb: str) -> None:
        """Do what comes before ``verb``."""
        if verb == "run_sandbox":
            return
        await self.engine.run_sandbox(self.node.sandbox(), "")
        if verb == "create_container":
            return
        await self.engine.create_container(self.sandbox_id, self.node.container())
        if verb != "start_container":
            await self.engine.start_container(self.container_id)

    async def call(self, verb: str) -> None:
        """Call ``verb``, as the kubelet does and does again."""
        engine = self.engine
        calls: dict[str, Callable[[], Awaitable[object]]] = {
            "run_sandbox": lambda: engine.run_sandbox(self.node.sandbox(), ""),
            "stop_sandbox": lambda: engine.stop_sandbox(self.sandbox_id),
            "remove_sandbox": lambda: engine.remove_sandbox(self.sandbox_id),
            "create_container": lambda: engine.create_container(
                self.sandbox_id, self.node.container()
            ),
            "start_container": lambda: engine.start_container(self.container_id),
            "stop_container": lambda: engine.stop_container(self.container_id, 5.0),
            "remove_container": lambda: engine.remove_container(self.container_id),
        }
        await calls[verb]()

    async def remove_everything(self) -> None:
        """Remove every sandbox with its containers."""
        for record in self.engine.sandboxes():
            await self.engine.remove_sandbox(record.id)


@contextmanager
def searchable_node(name: str, kind: type[RealNode] = RealNode) -> Iterator[RealNode]:
    """Make a node whose folders all may be walked through, as a user namespace needs it.

    Pytest's own temporary folder is closed to others.
    """
    root = Path(tempfile.mkdtemp(prefix=f"nr-engine-{name}-"))
    root.chmod(0o711)
    try:
        with made_node_of(kind, root) as node:
            yield node
    finally:
        shutil.rmtree(root)


@contextmanager
def made_node(root: Path) -> Iterator[RealNode]:
    """Make a plain node for as long as this lasts."""
    with made_node_of(RealNode, root) as node:
        yield node


@contextmanager
def made_node_of(kind: type[N], root: Path) -> Iterator[N]:
    """Make a node with its image, bridge and cgroup parent; take all of it away in the end."""
    token = secrets.token_hex(4)
    node = kind(root=root, token=token)
    node.prepare(f"10.{83 + secrets.randbelow(16)}.{secrets.randbelow(250)}.0/24")
    try:
        asyncio.run(_warm_up(node))
        yield node
    finally:
        node.clean()


async def _warm_up(node: RealNode) -> None:
    """Run a Pod once: bridge and cgroup parent stay, and are no leftovers of a test."""
    await node.load_image()
    engine = node.engine()
    await engine.recover()
    scene = Scene(node, engine)
    await scene.prepare("stop_container")
    await scene.remove_everything()
    await engine.close()


@asynccontextmanager
async def engine_on(node: RealNode, *, watching: bool = False) -> AsyncIterator[Engine]:
    """Give an engine that has recovered; in the end it removes everything, and nothing is left.

    ``watching``: its watches (of ends, of revisions) run meanwhile.
    """
    empty = node.census()
    engine = node.engine()
    await engine.recover()
    running = asyncio.Task(engine.run()) if watching else None
    await asyncio.sleep(0)
    yield engine
    await Scene(node, engine).remove_everything()
    if running is None:
        await engine.close()
    else:
        running.cancel()
        await asyncio.wait([running])
    assert node.leftovers(empty) == []
