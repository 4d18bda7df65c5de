"""crictl against the whole: CRI and streaming servers, engine, conmon, crun, CNI, on one Pod."""

from __future__ import annotations

import asyncio
import hashlib
import os
import re
from typing import TYPE_CHECKING

import pytest

from tests.root import cri_kit
from tests.root.whole_kit import SHELL, Whole, whole_node
from tests.waiting import until

if TYPE_CHECKING:
    from collections.abc import AsyncIterator

pytestmark = pytest.mark.timeout(900)  # crictl may have to be built first


@pytest.fixture(scope="module", autouse=True)
def crictl() -> None:
    cri_kit.build()


@pytest.fixture
async def node(tmp_path_factory: pytest.TempPathFactory) -> AsyncIterator[Whole]:
    async with whole_node(tmp_path_factory) as one:
        yield one


async def test_a_pod_lives_as_crictl_sees_it(node: Whole) -> None:
    sandbox_id, container_id = await node.pod("echo hello; sleep 600")
    assert "CONTAINER_RUNNING" in await node.run("inspect", container_id)
    assert '"ip": "10.' in await node.run("inspectp", sandbox_id)
    await until(lambda: b"hello" in (node.real.root / "logs/app_0.log").read_bytes())
    assert "hello" in await node.run("logs", container_id)
    assert container_id[:13] in await node.run("stats")
    assert "web" in await node.run("statsp")
    await node.run("update", "--memory", str(64 << 20), container_id)
    assert str(64 << 20) in await node.run("inspect", container_id)
    await node.run("stop", "-t", "0", container_id)
    assert "CONTAINER_EXITED" in await node.run("inspect", container_id)
    await node.run("rm", container_id)
    await node.run("stopp", sandbox_id)
    await node.run("rmp", sandbox_id)
    assert "web" not in await node.run("pods")


async def test_exec_runs_inside_and_tells_its_exit_code(node: Whole) -> None:
    _, container_id = await node.pod("sleep 600")
    command = ("hostname; echo err >&2; exit 7",)
    text = await node.run("exec", container_id, *SHELL, *command, wanted=1)
    assert "err" in text
    assert "exit code 7" in text
    assert "uid=0" in await node.run("exec", "-s", container_id, "/bin/id")
    missing = await node.run("exec", container_id, "nope", wanted=1)
    assert 'exec: \\"nope\\": executable file not found in $PATH' in missing
    assert "exec failed" in await node.run("exec", "-s", container_id, "nope", wanted=1)
    data = os.urandom(4 << 20)
    text = await node.run("exec", "-i", container_id, "/bin/busybox", "sha256sum", stdin=data)
    assert hashlib.sha256(data).hexdigest() in text


async def test_exec_on_a_terminal_has_its_size(node: Whole) -> None:
    _, container_id = await node.pod("sleep 600")
    # The size may come after the program's start.
    script = 'until busybox stty size | busybox grep "33 101"; do busybox sleep 0.05; done'
    out = await node.on_terminal(
        f"exec -it {container_id} /bin/busybox sh -c '{script}'", rows=33, columns=101
    )
    assert "33 101" in out


@pytest.mark.parametrize("transport", ["spdy", "websocket"])
async def test_a_killed_client_leaves_no_process_in_the_container(
    node: Whole, transport: str
) -> None:
    _, container_id = await node.pod("sleep 600")
    word = f"nr-engine-{node.real.token}-exec"
    command = (f"--transport={transport}", "-i", container_id, *SHELL, "sleep 500; true", word)
    process = await node.start("exec", *command)
    await until(lambda: len([line for line in node.running(word) if "crictl" not in line]) > 0)
    process.kill()
    await process.wait()
    await until(lambda: node.running(word) == [])


async def test_attach_reaches_the_containers_own_process(node: Whole) -> None:
    _, container_id = await node.pod("while read x; do echo got $x; done", stdin=True)
    process = await node.start("attach", "-i", container_id)
    assert process.stdin is not None
    assert process.stdout is not None
    answer = asyncio.Task(process.stdout.readline())
    async with asyncio.timeout(30):
        while not answer.done():  # crictl reads its input before it is connected
            process.stdin.write(b"hello\n")
            await asyncio.wait([answer], timeout=0.1)
    assert answer.result() == b"got hello\n"
    process.kill()
    await process.wait()
    assert "CONTAINER_RUNNING" in await node.run("inspect", container_id)


async def test_port_forward_reaches_a_server_inside(node: Whole) -> None:
    sandbox_id, container_id = await node.pod("nc -ll -p 8080 -e /bin/busybox tr a-z A-Z")
    listens = "until busybox netstat -tln | busybox grep -q :8080; do busybox sleep 0.05; done"
    await node.run("exec", container_id, *SHELL, listens)
    process = await node.start("port-forward", sandbox_id, "0:8080")
    assert process.stdout is not None
    async with asyncio.timeout(30):
        line = (await process.stdout.readline()).decode()
    found = re.search(r":(\d+) ->", line)
    assert found is not None, line
    for _ in range(3):
        reader, writer = await asyncio.open_connection("127.0.0.1", int(found[1]))
        writer.write(b"hello")
        writer.write_eof()
        async with asyncio.timeout(30):
            assert await reader.read() == b"HELLO"
        writer.close()
    await node.run("stopp", sandbox_id)
    async with asyncio.timeout(30):
        await process.communicate()  # no session survives its sandbox
