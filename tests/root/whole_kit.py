"""A whole node in a temporary folder: CRI and streaming servers, engine, conmon, crun, CNI; and crictl."""

from __future__ import annotations

import asyncio
import contextlib
import json
import secrets
from dataclasses import dataclass
from typing import TYPE_CHECKING

from noderuntime.cri.image_service import ImageService
from noderuntime.cri.runtime_service import RuntimeService
from noderuntime.cri.server import CriServer
from noderuntime.cri.streaming.server import StreamingServer
from noderuntime.host.cgroups import KernelCgroups
from tests.root.cri_kit import Crictl
from tests.root.engine_kit import IMAGE, RealNode
from tests.waiting import until

if TYPE_CHECKING:
    from collections.abc import AsyncIterator

    import pytest

SHELL = ("/bin/busybox", "sh", "-c")


@dataclass
class Whole(Crictl):
    """A node that serves, and crictl pointed at it."""

    real: RealNode
    streaming: StreamingServer

    async def pod(self, script: str, *, tty: bool = False, stdin: bool = False) -> tuple[str, str]:
        pod = self.write("pod", self.pod_config())
        container = self.write(
            "container",
            {
                "metadata": {"name": "app"},
                "image": {"image": IMAGE},
                "command": [*SHELL, script, f"nr-engine-{self.real.token}"],
                "log_path": "app_0.log",
                "tty": tty,
                "stdin": stdin,
            },
        )
        sandbox_id = (await self.run("runp", pod)).strip()
        container_id = (await self.run("create", sandbox_id, container, pod)).strip()
        await self.run("start", container_id)
        return sandbox_id, container_id

    def pod_config(self) -> dict[str, object]:
        return {
            "metadata": {"name": "web", "namespace": "shop", "uid": self.real.token},
            "log_directory": str(self.real.root / "logs"),
            "linux": {"cgroup_parent": self.real.cgroup_parent},
        }

    def write(self, name: str, value: dict[str, object]) -> str:
        path = self.folder / f"{name}.json"
        path.write_text(json.dumps(value))
        return str(path)

    def running(self, word: str) -> list[str]:
        return [line for line in self.real.processes() if word in line]


@contextlib.asynccontextmanager
async def whole_node(tmp_path_factory: pytest.TempPathFactory) -> AsyncIterator[Whole]:
    """Serve; at the end every Pod is removed and no process may be left."""
    token = secrets.token_hex(4)
    real = RealNode(root=tmp_path_factory.mktemp(f"nr-cri-{token}"), token=token)
    real.prepare(f"10.{103 + secrets.randbelow(16)}.{secrets.randbelow(250)}.0/24")
    (real.root / "logs").mkdir()
    await real.load_image()
    engine = real.engine()
    await engine.recover()
    streaming = StreamingServer(engine, "127.0.0.1:0")
    await streaming.start()
    runtime = RuntimeService(engine, streaming, KernelCgroups().driver())
    server = CriServer(real.config.socket, runtime, ImageService(engine))
    await server.start()
    whole = Whole(socket=real.config.socket, folder=real.root, real=real, streaming=streaming)
    watching = asyncio.get_running_loop().create_task(engine.run())
    try:
        yield whole
        for sandbox in engine.sandboxes():
            await engine.stop_sandbox(sandbox.id)
            await engine.remove_sandbox(sandbox.id)
    finally:
        await streaming.stop()
        await server.stop(0)
        watching.cancel()
        await asyncio.gather(watching, return_exceptions=True)
        await engine.close()
        real.clean()
    await until(lambda: real.processes() == [])
