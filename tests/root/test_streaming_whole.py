"""Streams of a real container: much data, many sessions, slow and vanished peers."""

from __future__ import annotations

import asyncio
import os
import re
import shlex
from contextlib import suppress
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from noderuntime.cri.streaming.tokens import RemoteCommand
from tests.fakes.spdy_client import SpdyClient
from tests.fakes.websocket_client import WebSocketClient
from tests.root import cri_kit
from tests.root.host_kit import descriptors
from tests.root.whole_kit import SHELL, Whole, whole_node
from tests.waiting import until

if TYPE_CHECKING:
    from collections.abc import AsyncIterator

pytestmark = pytest.mark.timeout(900)  # crictl may have to be built first
MIB = 1 << 20
GROWTH_BYTES = 16 * MIB
SIZES = [
    64 * MIB,
    pytest.param(
        1024 * MIB,
        marks=[
            pytest.mark.slow,
            pytest.mark.skipif("NR_GIB" not in os.environ, reason="takes minutes; NR_GIB=1"),
        ],
    ),
]
SESSIONS = 50


@pytest.fixture(scope="module", autouse=True)
def crictl() -> None:
    cri_kit.build()


@pytest.fixture
async def node(tmp_path_factory: pytest.TempPathFactory) -> AsyncIterator[Whole]:
    async with whole_node(tmp_path_factory) as one:
        yield one


def peak_bytes() -> int:
    found = re.search(r"VmHWM:\s+(\d+) kB", Path("/proc/self/status").read_text())
    assert found is not None
    return int(found[1]) * 1024


def forget_peak() -> int:
    Path("/proc/self/clear_refs").write_text("5")  # proc(5)
    return peak_bytes()


async def shell(command: str) -> str:
    process = await asyncio.create_subprocess_shell(
        command, stdout=asyncio.subprocess.PIPE, stderr=asyncio.subprocess.PIPE
    )
    out, err = await process.communicate()
    assert process.returncode == 0, err.decode()
    return out.decode().strip()


def url(node: Whole, container_id: str, *argv: str, stdin: bool = False) -> str:
    ticket = RemoteCommand(
        container_id=container_id, argv=argv, stdin=stdin, stdout=True, stderr=True, tty=False
    )
    return node.streaming.url(ticket)


@pytest.mark.parametrize("size", SIZES)
@pytest.mark.parametrize("transport", ["spdy", "websocket"])
async def test_much_data_goes_each_way_in_little_memory(
    node: Whole, transport: str, size: int
) -> None:
    _, container_id = await node.pod("sleep 600")
    exec_ = (
        f"{cri_kit.CRICTL} --config={shlex.quote(str(node.config))} exec --transport={transport}"
    )
    warm_up = f"{exec_} {container_id} /bin/busybox head -c {8 * MIB} /dev/zero | wc -c"
    assert await shell(warm_up) == str(8 * MIB)
    before = forget_peak()
    out = f"{exec_} {container_id} /bin/busybox head -c {size} /dev/zero | wc -c"
    assert await shell(out) == str(size)
    zeros = f"head -c {size} /dev/zero"
    assert await shell(f"{zeros} | {exec_} -i {container_id} /bin/busybox wc -c") == str(size)
    assert await shell(f"{zeros} | {exec_} -i {container_id} /bin/cat | wc -c") == str(size)
    assert peak_bytes() - before < GROWTH_BYTES


@pytest.mark.parametrize("size", SIZES)
@pytest.mark.parametrize("transport", ["spdy", "websocket"])
async def test_much_data_goes_through_a_forwarded_port_in_little_memory(
    node: Whole, transport: str, size: int
) -> None:
    # Two servers and no echo: netcat would not read while it cannot write, and wait for itself.
    sandbox_id, container_id = await node.pod(
        f"nc -ll -p 8080 -e /bin/busybox head -c {size} /dev/zero & "
        "nc -ll -p 8081 -e /bin/busybox wc -c"
    )
    listens = "until busybox netstat -tln | busybox grep -q :808$0; do busybox sleep 0.05; done"
    for port in "01":
        await node.run("exec", container_id, *SHELL, listens, port)
    process = await node.start(
        "port-forward", f"--transport={transport}", sandbox_id, "0:8080", "0:8081"
    )
    assert process.stdout is not None
    local: dict[str, str] = {}
    while len(local) < 2:
        line = (await process.stdout.readline()).decode()
        found = re.search(r":(\d+) -> (\d+)", line)
        assert found is not None, line
        local.setdefault(found[2], found[1])
    before = forget_peak()
    out = f"busybox nc 127.0.0.1 {local['8080']} </dev/null | wc -c"
    assert await shell(out) == str(size)
    into = f"head -c {size} /dev/zero | busybox nc 127.0.0.1 {local['8081']}"
    assert await shell(into) == str(size)
    assert peak_bytes() - before < GROWTH_BYTES
    process.terminate()
    await process.communicate()


async def test_fifty_sessions_at_once_keep_to_themselves_and_leave_nothing(node: Whole) -> None:
    _, container_id = await node.pod("sleep 600")
    word = f"nr-engine-{node.real.token}-many"
    before = descriptors()

    async def echo(number: int) -> None:
        argv = (*SHELL, "cat; exit 3", f"{word}-{number}")
        text = f"hello {number} ".encode() * 5000
        if number % 2:
            client = await WebSocketClient.connect(
                url(node, container_id, *argv, stdin=True), "v5.channel.k8s.io"
            )
            await all_here.wait()
            await client.send(0, text)
            await client.half_close(0)
            await client.until_closed(60)
            assert client.data[1] == text
            assert b'"message": "3"' in client.data[3]
            await client.close()
            return
        spdy = await SpdyClient.connect(
            url(node, container_id, *argv, stdin=True), "v4.channel.k8s.io"
        )
        ids = {kind: await spdy.open(kind) for kind in ("error", "stdin", "stdout", "stderr")}
        await all_here.wait()
        await spdy.send(ids["stdin"], text, finished=True)
        await spdy.until(lambda: ids["error"] in spdy.finished, 60)
        assert spdy.data[ids["stdout"]] == text
        await spdy.close()

    all_here = asyncio.Event()
    async with asyncio.timeout(120), asyncio.TaskGroup() as group:
        for number in range(SESSIONS):
            group.create_task(echo(number))
        while len({w for w in node.running(word) if " exec " not in w}) < SESSIONS:
            await asyncio.sleep(0.1)
        all_here.set()
    await until(lambda: node.running(word) == [])
    await until(lambda: descriptors() <= before + 1)


async def test_a_slow_reader_holds_up_nobody_else_and_gets_everything(node: Whole) -> None:
    _, container_id = await node.pod("sleep 600")
    slow = await WebSocketClient.connect(
        url(node, container_id, "/bin/busybox", "head", "-c", str(24 * MIB), "/dev/zero"),
        "v5.channel.k8s.io",
    )
    before = forget_peak()
    fast = await WebSocketClient.connect(
        url(node, container_id, "/bin/busybox", "head", "-c", str(24 * MIB), "/dev/zero"),
        "v5.channel.k8s.io",
    )
    await fast.until(lambda: len(fast.messages) > 100, 60)
    await fast.close()
    assert peak_bytes() - before < GROWTH_BYTES
    await slow.until_closed(60)
    assert len(slow.data[1]) == 24 * MIB
    await slow.close()


@pytest.mark.parametrize("transport", ["spdy", "websocket"])
async def test_no_session_survives_its_container(node: Whole, transport: str) -> None:
    _, container_id = await node.pod("sleep 600")
    word = f"nr-engine-{node.real.token}-exec"
    exec_ = await node.start(
        "exec", f"--transport={transport}", "-i", container_id, *SHELL, "sleep 500; true", word
    )
    attach = await node.start("attach", f"--transport={transport}", "-i", container_id)
    await until(lambda: len([line for line in node.running(word) if "crictl" not in line]) > 0)
    await node.run("stop", "-t", "0", container_id)
    async with asyncio.timeout(30):
        await asyncio.gather(exec_.wait(), attach.wait())
    for process in (exec_, attach):
        await process.communicate()
    assert node.running(word) == []


async def test_the_exec_of_a_client_that_goes_at_any_moment_goes_too(node: Whole) -> None:
    _, container_id = await node.pod("sleep 600")
    word = f"nr-engine-{node.real.token}-brief"
    for delay_ms in range(0, 60, 4):
        client = await WebSocketClient.connect(
            url(node, container_id, *SHELL, "sleep 500; true", word), "v5.channel.k8s.io"
        )
        await asyncio.sleep(delay_ms / 1000)
        client.writer.transport.abort()
        with suppress(OSError):
            await client.close()
    await until(lambda: node.running(word) == [])
