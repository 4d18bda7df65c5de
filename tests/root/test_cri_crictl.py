"""crictl, a client that is not ours, against the CRI and streaming servers over a fake engine.

Needs no root, but a built crictl (``cri_kit.py``).
"""

from __future__ import annotations

import asyncio
import hashlib
import json
import os
import re
import resource
from dataclasses import dataclass
from typing import TYPE_CHECKING

import pytest

from noderuntime.cri.image_service import ImageService
from noderuntime.cri.runtime_service import RuntimeService
from noderuntime.cri.server import CriServer
from noderuntime.cri.streaming.server import StreamingServer
from noderuntime.engine.state import ContainerState
from noderuntime.host.ports import CgroupDriver
from tests.fakes.cri_engine import FakeEngine
from tests.root import cri_kit
from tests.root.cri_kit import Crictl
from tests.waiting import until

if TYPE_CHECKING:
    from collections.abc import AsyncIterator
    from pathlib import Path

pytestmark = pytest.mark.timeout(900)  # crictl may have to be built first


STREAMED = ("exec", "attach", "port-forward")


@dataclass
class Node(Crictl):
    """The servers, and crictl pointed at them, which streams over ``transport``."""

    engine: FakeEngine
    transport: str

    async def start(
        self, *words: str, stdin: bool = True, stdout: int = asyncio.subprocess.PIPE
    ) -> asyncio.subprocess.Process:
        verb, *rest = words
        over = [f"--transport={self.transport}"] if verb in STREAMED else []
        return await super().start(verb, *over, *rest, stdin=stdin, stdout=stdout)

    async def pod(self, *, tty: bool = False) -> tuple[str, str]:
        pod, container = self.folder / "pod.json", self.folder / "container.json"
        pod.write_text(
            json.dumps({"metadata": {"name": "web", "namespace": "default", "uid": "u1"}})
        )
        container.write_text(
            json.dumps(
                {"metadata": {"name": "app"}, "image": {"image": "registry.test/app:1"}, "tty": tty}
            )
        )
        sandbox_id = (await self.run("runp", str(pod))).strip()
        container_id = await self.run("create", sandbox_id, str(container), str(pod))
        await self.run("start", container_id.strip())
        return sandbox_id, container_id.strip()


@pytest.fixture(scope="module", autouse=True)
def crictl() -> None:
    cri_kit.build()


@pytest.fixture(params=["spdy", "websocket"])
async def node(request: pytest.FixtureRequest, tmp_path: Path) -> AsyncIterator[Node]:
    engine = FakeEngine()
    streaming = StreamingServer(engine, "127.0.0.1:0")
    await streaming.start()
    runtime = RuntimeService(engine, streaming, CgroupDriver.CGROUPFS)
    server = CriServer(tmp_path / "cri.sock", runtime, ImageService(engine))
    await server.start()
    try:
        yield Node(
            engine=engine,
            socket=tmp_path / "cri.sock",
            folder=tmp_path,
            transport=request.param,
        )
    finally:
        await streaming.stop()
        await server.stop(0)
    await until(lambda: all(stream.closed for stream in engine.streams))


async def test_crictl_lists_inspects_and_reads_stats(node: Node) -> None:
    sandbox_id, container_id = await node.pod()
    assert "noderuntime" in await node.run("version")
    assert "restricted" in await node.run("info")
    assert sandbox_id[:13] in await node.run("pods", "--name", "web")
    assert container_id[:13] in await node.run("ps", "--state", "running")
    assert container_id in await node.run("ps", "-q", "--id", container_id[:5])
    assert "CONTAINER_RUNNING" in await node.run("inspect", container_id)
    assert "10.244.0.2" in await node.run("inspectp", sandbox_id)
    assert container_id[:13] in await node.run("stats")
    assert "web" in await node.run("statsp")
    assert "registry.test/app" in await node.run("images")
    assert "registry.test/app" in await node.run("inspecti", "registry.test/app:1")
    assert "up to date" in await node.run("pull", "--creds", "me:pw", "registry.test/app:1")
    assert "image_filesystems" in (await node.run("imagefsinfo")).replace(
        "imageFilesystems", "image_filesystems"
    )
    await node.run("stopp", sandbox_id)
    await node.run("rmp", sandbox_id)


async def test_exec_brings_both_outputs_and_the_exit_code(node: Node) -> None:
    _, container_id = await node.pod()
    text = await node.run(
        "exec", container_id, "sh", "-c", "echo out; echo err >&2; exit 7", wanted=1
    )
    assert "out" in text
    assert "err" in text
    assert "exit code 7" in text


async def test_exec_sync_works(node: Node) -> None:
    _, container_id = await node.pod()
    assert "a b" in await node.run("exec", "-s", container_id, "a", "b", wanted=1)


async def test_exec_of_a_program_that_is_not_there_says_so(node: Node) -> None:
    _, container_id = await node.pod()
    node.engine.container_records.clear()
    text = await node.run("exec", container_id, "sh", wanted=1)
    assert "is not there" in text


async def test_exec_carries_megabytes_both_ways(node: Node) -> None:
    _, container_id = await node.pod()
    data = os.urandom(8 << 20)
    text = await node.run("exec", "-i", container_id, "sha256sum", stdin=data)
    assert hashlib.sha256(data).hexdigest() in text


async def test_exec_echoes_megabytes(node: Node) -> None:
    _, container_id = await node.pod()
    data = b"0123456789abcdef" * (256 << 10)
    process = await node.start("exec", "-i", container_id, "cat")
    async with asyncio.timeout(60):
        out, _ = await process.communicate(data)
    assert out == data


async def test_a_reader_that_stops_makes_no_memory_grow(node: Node) -> None:
    _, container_id = await node.pod()
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    out, crictls = os.pipe()
    process = await node.start("exec", container_id, "cat", "/dev/zero", stdout=crictls)
    os.close(crictls)
    await asyncio.to_thread(os.read, out, 65536)  # and then no more
    await asyncio.sleep(1.5)
    assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before < 16 << 10
    process.kill()
    await process.wait()
    os.close(out)
    await until(lambda: node.engine.streams[0].closed)


async def test_exec_with_a_terminal_has_its_size_and_one_output(node: Node) -> None:
    _, container_id = await node.pod()
    # The size may come after the program's start.
    script = 'until stty size | grep "33 101"; do sleep 0.05; done; tty; echo err >&2'
    command = f"exec --transport={node.transport} -it {container_id} sh -c '{script}'"
    out = await node.on_terminal(command, rows=33, columns=101)
    assert "/dev/pts/" in out
    assert "33 101" in out
    assert "err" in out


async def test_a_client_that_is_killed_ends_its_exec(node: Node) -> None:
    _, container_id = await node.pod()
    process = await node.start("exec", "-i", container_id, "sleep", "600")
    await until(lambda: len(node.engine.streams) == 1)
    process.kill()
    await process.wait()
    await until(lambda: node.engine.streams[0].closed)
    assert node.engine.streams[0].process.poll() is not None


async def test_no_exec_outlives_its_container(node: Node) -> None:
    _, container_id = await node.pod()
    process = await node.start("exec", "-i", container_id, "sleep", "600")
    await until(lambda: len(node.engine.streams) == 1)
    node.engine.set_state(container_id, ContainerState.EXITED)
    async with asyncio.timeout(30):
        await process.wait()
    await until(lambda: node.engine.streams[0].closed)


async def test_attach_reads_and_writes_the_containers_streams(node: Node) -> None:
    _, container_id = await node.pod()
    node.engine.attach_argv = ("sh", "-c", "read line; echo got $line")
    assert "got hello" in await node.run("attach", "-i", container_id, stdin=b"hello\n")


async def test_port_forward_serves_several_connections_at_once(node: Node) -> None:
    sandbox_id, _ = await node.pod()

    async def upper(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        writer.write((await reader.read()).upper())
        writer.close()

    server = await asyncio.start_server(upper, "127.0.0.1", 0)
    port = server.sockets[0].getsockname()[1]
    process = await node.start("port-forward", sandbox_id, f"0:{port}")
    assert process.stdout is not None
    async with asyncio.timeout(30):
        line = (await process.stdout.readline()).decode()
    local = int(re.search(r":(\d+) ->", line).group(1))  # type: ignore[union-attr]

    async def ask(number: int) -> None:
        data = f"hello {number} ".encode() * 20000
        reader, writer = await asyncio.open_connection("127.0.0.1", local)
        writer.write(data)
        writer.write_eof()
        assert await reader.read() == data.upper()
        writer.close()

    async with asyncio.timeout(60), asyncio.TaskGroup() as group:
        for number in range(8):
            group.create_task(ask(number))
    process.terminate()
    await process.wait()
    server.close()


async def test_port_forward_to_a_closed_port_tells_why(node: Node) -> None:
    sandbox_id, _ = await node.pod()
    process = await node.start("port-forward", sandbox_id, "0:1")
    assert process.stdout is not None
    assert process.stderr is not None
    line = (await process.stdout.readline()).decode()
    local = int(re.search(r":(\d+) ->", line).group(1))  # type: ignore[union-attr]
    reader, writer = await asyncio.open_connection("127.0.0.1", local)
    writer.write(b"x")
    async with asyncio.timeout(30):
        assert await reader.read() == b""
        said = b""
        while b"forwarding port 1" not in said:
            said += await process.stderr.readline()
    writer.close()
    if process.returncode is None:
        process.terminate()
    await process.wait()
