"""Exec, attach and port-forward on real containers."""

from __future__ import annotations

import asyncio
import contextlib
import secrets
import sys
from collections.abc import AsyncIterator
from dataclasses import replace
from pathlib import Path

import pytest

from noderuntime.errors import DeadlineExceededError, HostError
from noderuntime.host import pids
from noderuntime.host.netns import KernelNamespaces
from noderuntime.host.netstat import network_usage
from noderuntime.host.oci_runtime import OciCli
from noderuntime.host.portforward import NetnsPortForward
from noderuntime.host.ports import AttachStream, ExecRequest, NamespaceRequest
from noderuntime.host.process import Streams, spawn
from tests.root.host_kit import RUNTIME, Kit, eventually, kit_in
from tests.waiting import until


@pytest.fixture
async def kit() -> AsyncIterator[Kit]:
    async for one in kit_in("str"):
        yield one


@pytest.fixture
async def container(kit: Kit) -> str:
    request = kit.bundle("sleep", "1000")
    await kit.run(request)
    return request.container_id


def execution(
    kit: Kit, container: str, *args: str, terminal: bool = False, stdin: bool = False
) -> ExecRequest:
    return ExecRequest(
        container_id=container, process=kit.process(*args), terminal=terminal, stdin=stdin
    )


async def read_all(stream: AttachStream) -> dict[int, bytes]:
    outputs = {2: b"", 3: b""}
    async with asyncio.timeout(60):
        async for number, data in stream:
            outputs[number] += data
    return outputs


async def read_until(stream: AsyncIterator[tuple[int, bytes]], wanted: bytes) -> bytes:
    found = b""
    async with asyncio.timeout(30):
        async for _, data in stream:
            found += data
            if wanted in found:
                return found
    raise AssertionError(found)


def seconds() -> str:
    """Return how long to sleep: so long as nobody else does on this machine."""
    return str(10_000_000 + secrets.randbelow(900_000_000))


def running(needle: str) -> list[int]:
    return [s.pid for s in pids.all_stats() if needle in pids.command_line(s.pid)]


async def test_exec_gives_outputs_and_exit_code(kit: Kit, container: str) -> None:
    request = execution(kit, container, "sh", "-c", "echo out; echo err >&2; exit 5")
    result = await kit.exec.sync(kit.runtime, request, 10)
    assert (result.stdout, result.stderr, result.exit_code) == (b"out\n", b"err\n", 5)


async def test_exec_cuts_outputs_at_16_mib(kit: Kit, container: str) -> None:
    request = execution(kit, container, "sh", "-c", "seq 3000000")
    result = await kit.exec.sync(kit.runtime, request, 60)
    assert len(result.stdout) == 16 * 1024 * 1024
    assert result.exit_code == 0


async def test_exec_past_its_time_is_killed_with_its_children(kit: Kit, container: str) -> None:
    needles = [seconds() for _ in range(3)]
    script = "sleep {} & (sleep {} &) ; sleep {}".format(*needles)
    request = execution(kit, container, "sh", "-c", script)
    with pytest.raises(DeadlineExceededError, match=r"did not finish within 0\.5 s"):
        await kit.exec.sync(kit.runtime, request, 0.5)
    await until(lambda: not any(running(needle) for needle in needles))
    assert await kit.runtime.state(container) == "running"


@pytest.mark.skipif(
    RUNTIME.name == "runc", reason="runc itself waits for the daemon's output to end (1.1.5)"
)
async def test_exec_ends_although_a_daemon_keeps_its_output(kit: Kit, container: str) -> None:
    needle = seconds()
    request = execution(kit, container, "sh", "-c", f"sleep {needle} & echo out")
    result = await kit.exec.sync(kit.runtime, request, 10)
    assert (result.stdout, result.exit_code) == (b"out\n", 0)
    await until(lambda: running(needle) != [])  # it may still be the shell that becomes it


@pytest.mark.parametrize("program", ["nope", "/no/such", "/etc"])
async def test_exec_of_what_is_no_program_is_an_error_and_no_exit_code(
    kit: Kit, container: str, program: str
) -> None:
    with pytest.raises(HostError, match="^exec failed: unable to start container process: "):
        await kit.exec.sync(kit.runtime, execution(kit, container, program), 10)
    stream = await kit.exec.open(kit.runtime, execution(kit, container, program))
    await read_all(stream)
    with pytest.raises(HostError, match="exec failed"):
        await stream.wait()
    await stream.close()


async def test_exec_of_an_unknown_program_has_the_words_of_other_runtimes(
    kit: Kit, container: str
) -> None:
    with pytest.raises(HostError, match=r'exec: "nope": executable file not found in \$PATH$'):
        await kit.exec.sync(kit.runtime, execution(kit, container, "nope"), 10)


async def test_a_process_that_ends_with_255_is_no_failed_exec(kit: Kit, container: str) -> None:
    request = execution(kit, container, "sh", "-c", "echo err >&2; exit 255")
    result = await kit.exec.sync(kit.runtime, request, 10)
    assert (result.stderr, result.exit_code) == (b"err\n", 255)


def namespace(pid: int) -> str:
    try:
        return str(Path(f"/proc/{pid}/ns/pid").readlink())
    except OSError:
        return ""


async def test_exec_past_its_time_leaves_no_zombie(kit: Kit) -> None:
    request = kit.bundle("sleep", "1000")
    pid = await kit.run(request)
    execution_ = execution(kit, request.container_id, "sleep", "1000")
    with pytest.raises(DeadlineExceededError):
        await kit.exec.sync(kit.runtime, execution_, 0.3)
    inside = [s for s in pids.all_stats() if namespace(s.pid) == namespace(pid)]
    assert [s.pid for s in inside] == [pid]


async def test_a_sweep_ends_the_execs_of_an_earlier_run(kit: Kit, container: str) -> None:
    needle = seconds()
    stream = await kit.exec.open(kit.runtime, execution(kit, container, "sleep", needle))
    await until(lambda: running(needle) != [])
    await kit.exec.sweep(OciCli(kit.runtime.binary, kit.root / "other"))
    assert running(needle)
    await kit.exec.sweep(kit.runtime)
    assert not running(needle)
    assert await stream.wait() != 0
    await stream.close()
    assert await kit.runtime.state(container) == "running"


async def test_exec_passes_stdin_and_its_end(kit: Kit, container: str) -> None:
    request = execution(kit, container, "cat", stdin=True)
    stream = await kit.exec.open(kit.runtime, request)
    data = bytes(range(256)) * 4096
    reader = asyncio.Task(read_all(stream))
    await stream.write(data)
    await stream.close_stdin()
    assert (await reader)[2] == data
    assert await stream.wait() == 0
    with pytest.raises(HostError, match="closed"):
        await stream.write(b"more")
    await stream.close()
    await stream.close()


async def see_size(
    stream: AttachStream, output: AsyncIterator[tuple[int, bytes]], size: bytes
) -> None:
    """Press Enter until the program inside, which tells its size at each, tells this one.

    A resize is a signal, or a message through the monitor: it may be later than the key after it.
    """

    async def press() -> None:
        while True:
            await stream.write(b"\n")
            await asyncio.sleep(0.02)

    pressing = asyncio.Task(press())
    await read_until(output, size)
    pressing.cancel()
    with contextlib.suppress(asyncio.CancelledError):
        await pressing


async def test_exec_on_a_terminal_has_a_size_and_can_be_resized(kit: Kit, container: str) -> None:
    script = "echo up; while read x; do stty size; [ $x ] && exit 9; done"
    request = execution(kit, container, "sh", "-c", script, terminal=True, stdin=True)
    stream = await kit.exec.open(kit.runtime, request)
    output = aiter(stream)
    await read_until(output, b"up\r\n")
    await stream.resize(101, 37)
    await see_size(stream, output, b"37 101\r\n")
    await stream.resize(77, 33)
    await see_size(stream, output, b"33 77\r\n")
    await stream.write(b"end\n")
    assert await stream.wait() == 9
    await stream.close()


async def test_exec_on_a_terminal_of_an_unknown_program_says_so(kit: Kit, container: str) -> None:
    request = execution(kit, container, "nope", terminal=True)
    with pytest.raises(HostError, match=r'exec: "nope": executable file not found in \$PATH$'):
        stream = await kit.exec.open(kit.runtime, request)
        try:
            await read_all(stream)
            await stream.wait()
        finally:
            await stream.close()


async def test_a_closed_exec_kills_its_process(kit: Kit, container: str) -> None:
    needle = seconds()
    request = execution(kit, container, "sleep", needle, terminal=True, stdin=True)
    stream = await kit.exec.open(kit.runtime, request)
    await until(lambda: running(needle) != [])
    reading = asyncio.Task(read_all(stream))
    await asyncio.sleep(0)
    await stream.close()
    await reading
    assert not running(needle)


async def test_attach_reads_and_writes_the_container(kit: Kit) -> None:
    request = replace(
        kit.bundle("sh", "-c", "cat; echo end >&2; exit 4"), stdin=True, stdin_once=True
    )
    await kit.run(request)
    stream = await kit.monitor.attach(request.container_id)
    data = b"x" * 100_000 + b"\n"
    reader = asyncio.Task(read_all(stream))
    await stream.write(data)
    await stream.close_stdin()
    outputs = await reader
    assert outputs[2] == data
    assert outputs[3] == b"end\n"
    assert (await kit.wait_exit(request.container_id)).code == 4
    await stream.close()
    with pytest.raises(HostError, match="cannot attach"):
        await kit.monitor.attach(request.container_id)


async def test_stdin_outlives_a_session_unless_once(kit: Kit) -> None:
    request = replace(kit.bundle("cat"), stdin=True)
    await kit.run(request)
    for word in (b"one\n", b"two\n"):
        stream = await kit.monitor.attach(request.container_id)
        await stream.write(word)
        assert await read_until(aiter(stream), word)
        await stream.close_stdin()
        await stream.close()
    assert await kit.runtime.state(request.container_id) == "running"


async def test_attach_to_a_terminal_with_resize(kit: Kit) -> None:
    request = replace(
        kit.bundle("sh", "-c", "while read x; do stty size; done", terminal=True), stdin=True
    )
    await kit.run(request)
    stream = await kit.monitor.attach(request.container_id)
    output = aiter(stream)
    await stream.resize(99, 44)
    await see_size(stream, output, b"44 99\r\n")
    await stream.close()


ECHO = """
import socket
with socket.create_server(("127.0.0.1", 8080)) as server:
    connection, _ = server.accept()
    with connection:
        while data := connection.recv(4096):
            connection.sendall(data)
"""


async def test_sessions_work_in_a_run_dir_longer_than_a_socket_path() -> None:
    async for kit in kit_in("len", below="x" * 120):
        request = replace(
            kit.bundle("sh", "-c", "while read x; do stty size; done", terminal=True), stdin=True
        )
        await kit.run(request)
        stream = await kit.monitor.attach(request.container_id)
        await stream.resize(99, 44)
        await see_size(stream, aiter(stream), b"44 99\r\n")
        await stream.close()
        on_terminal = execution(kit, request.container_id, "echo", "hi", terminal=True)
        session = await kit.exec.open(kit.runtime, on_terminal)
        assert (await read_all(session))[2] == b"hi\r\n"
        await session.close()


async def test_port_forward_reaches_a_port_inside_and_counters_move(kit: Kit) -> None:
    netns = KernelNamespaces()
    directory = kit.root / "ns"
    await netns.create(directory, NamespaceRequest(network=True, ipc=False, uts=False))
    argv = ("nsenter", f"--net={directory / 'net'}", sys.executable, "-c", ECHO)
    server = spawn(argv, Streams())
    forward = NetnsPortForward()
    with pytest.raises(HostError, match="cannot connect to port 8081"):
        await forward.connect(directory / "net", 8081)

    async def connected() -> tuple[asyncio.StreamReader, asyncio.StreamWriter] | None:
        try:
            return await forward.connect(directory / "net", 8080)
        except HostError:
            return None

    reader, writer = await eventually(connected)
    writer.write(b"hello\n")
    await writer.drain()
    assert await reader.readline() == b"hello\n"
    writer.write_eof()
    assert await reader.read() == b""
    writer.close()
    await writer.wait_closed()
    await server.wait()
    assert all(usage.interface != "lo" for usage in await network_usage(directory / "net"))
    with pytest.raises(HostError, match="open of namespace"):
        await forward.connect(Path("/nonexistent/net"), 8080)
    await netns.remove(directory)
