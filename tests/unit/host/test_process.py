from __future__ import annotations

import asyncio
import os
import signal
import time
from contextlib import ExitStack
from pathlib import Path

import pytest

from noderuntime.errors import DeadlineExceededError, HostError
from noderuntime.host import pids, process
from noderuntime.host.process import Command, Streams, run, run_checked, spawn


def shell(script: str, **changes: object) -> Command:
    return Command(argv=("/bin/sh", "-c", script), **changes)  # type: ignore[arg-type]


async def wait_gone(argument: str) -> None:
    """Wait until no process has this argument: one that was killed needs a moment to end."""
    async with asyncio.timeout(10):
        while [s for s in pids.all_stats() if argument in pids.command_line(s.pid)]:
            await asyncio.sleep(0.01)


async def test_a_program_gets_its_input_and_gives_outputs_and_status() -> None:
    output = await run(shell("cat; echo err >&2; exit 3", stdin=b"in"))
    assert (output.exit_code, output.stdout, output.stderr) == (3, b"in", b"err\n")


async def test_a_large_input_and_output_do_not_block_each_other() -> None:
    data = os.urandom(1_000_000)
    output = await run(Command(argv=("/bin/cat",), stdin=data))
    assert output.stdout == data


async def test_output_past_the_bound_is_dropped() -> None:
    output = await run(shell("yes | head -c 100000", output_limit_bytes=10))
    assert output.stdout == b"y\n" * 5
    assert output.exit_code == 0


async def test_a_program_that_does_not_read_its_input_is_no_error() -> None:
    output = await run(shell("exit 0", stdin=b"x" * 1_000_000))
    assert output.exit_code == 0


async def test_a_failure_tells_program_status_and_last_line() -> None:
    with pytest.raises(HostError, match=r"^sh failed with status 4: second$"):
        await run_checked(shell("echo first >&2; echo second >&2; echo >&2; exit 4"))
    with pytest.raises(HostError, match="sh failed with status 143: it said nothing"):
        await run_checked(shell("kill -TERM $$"))


async def test_a_missing_program_is_named() -> None:
    with pytest.raises(HostError, match="cannot start /no/such: no such file") as caught:
        await run(Command(argv=("/no/such",)))
    assert caught.value.errno == 2


async def test_a_program_past_its_time_is_killed_with_its_children() -> None:
    begin = time.monotonic()
    with pytest.raises(DeadlineExceededError, match=r"sh did not finish within 0\.1 s"):
        await run(shell("sleep 54321 & sleep 54321", timeout_s=0.1))
    assert time.monotonic() - begin < 10
    await wait_gone("54321")


async def test_a_cancelled_program_is_killed() -> None:
    task = asyncio.Task(run(shell("sleep 54322; true")))
    await asyncio.sleep(0.05)
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task
    await wait_gone("54322")


async def test_a_daemon_that_keeps_the_pipes_is_not_waited_for(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(process, "DRAIN_S", 0.05)
    output = await run(shell("sleep 5 & echo out; echo $!"))
    first, daemon = output.stdout.split()
    assert first == b"out"
    os.kill(int(daemon), signal.SIGKILL)


async def test_nothing_but_what_was_passed_is_open_in_a_program() -> None:
    leak = os.open("/dev/zero", os.O_RDONLY)
    os.set_inheritable(leak, True)
    passed = os.open("/dev/full", os.O_RDONLY)
    try:
        output = await run(shell("ls -l /proc/self/fd", pass_fds=(passed,)))
    finally:
        os.close(leak)
        os.close(passed)
    assert b"/dev/full" in output.stdout
    assert b"/dev/zero" not in output.stdout


async def test_a_descriptor_that_can_be_inherited_is_closed_in_a_program() -> None:
    leak = os.open("/dev/zero", os.O_RDONLY)
    os.set_inheritable(leak, True)
    try:
        output = await run(shell("ls -l /proc/self/fd"))
    finally:
        os.close(leak)
    assert b"/dev/zero" not in output.stdout
    assert output.stdout.count(b"pipe:") == 3


async def test_a_program_leads_a_session_and_has_its_signals_back(tmp_path: Path) -> None:
    output = await run(Command(argv=("/bin/cat", "/proc/self/stat", "/proc/self/status")))
    stat, _, status = output.stdout.partition(b"\n")
    pid, session = stat.split()[0], stat.split()[5]
    assert pid == session
    fields = dict(line.split(b":\t", 1) for line in status.splitlines() if b":\t" in line)
    assert int(fields[b"SigBlk"], 16) == 0
    assert int(fields[b"SigIgn"], 16) & (1 << (signal.SIGPIPE - 1)) == 0
    assert (await run(shell("pwd", cwd=tmp_path))).stdout == f"{tmp_path}\n".encode()
    with pytest.raises(HostError, match="cannot start /bin/sh: no such file"):
        await run(shell("true", cwd=tmp_path / "missing"))


async def test_a_program_whose_start_is_cancelled_does_not_stay() -> None:
    for _ in range(20):  # whether the start is under way or done is chance
        task = asyncio.Task(run(shell("sleep 54323; true")))
        await asyncio.sleep(0)
        await asyncio.sleep(0)
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task
    await wait_gone("54323")


async def test_an_environment_holds_only_what_was_given() -> None:
    output = await run(Command(argv=("/usr/bin/env",), env={"A": "b"}))
    assert output.stdout == b"A=b\n"


async def test_a_child_is_collected_although_nobody_waits() -> None:
    child = spawn(("/bin/true",), Streams())
    ended: list[int] = []
    child.when_ended(lambda: ended.append(1))
    async with asyncio.timeout(5):
        assert await child.wait() == 0
    assert child.exit_code == 0
    assert pids.read_stat(child.pid) is None
    child.signal(signal.SIGKILL)  # collected: reaches nobody
    assert await child.wait() == 0
    assert ended


async def test_no_descriptor_is_left_open(tmp_path: Path) -> None:
    def count() -> int:
        return len(os.listdir("/proc/self/fd"))  # noqa: PTH208  # iterdir would hold one

    await run(shell("true"))
    before = count()
    for _ in range(3):
        await run(shell("true", cwd=tmp_path))
        with pytest.raises(HostError):
            await run(Command(argv=("/no/such",)))
    assert count() == before


async def test_a_recycled_number_is_not_signalled() -> None:
    child = spawn(("/bin/sleep", "100"), Streams())
    identity = pids.identify(child.pid)
    assert identity is not None
    assert pids.open_process(child.pid, identity.start_ticks + 1) is None
    handle = pids.open_process(child.pid, identity.start_ticks)
    assert handle is not None
    assert not await handle.wait_end(0.01)
    pids.kill(frozenset({identity}))
    assert await handle.wait_end(5)
    handle.signal(signal.SIGKILL)
    handle.close()
    assert await child.wait() == 137
    assert pids.identify(child.pid) is None
    assert pids.open_process(child.pid) is None
    assert pids.command_line(child.pid) == ()


async def test_what_is_passed_has_the_childs_own_numbers_whatever_ours_are() -> None:
    with ExitStack() as stack:
        folders = [os.open(path, os.O_RDONLY) for path in ("/proc", "/sys", "/dev", "/etc")]
        for folder in folders:
            stack.callback(os.close, folder)
        read, write = os.pipe()
        stack.callback(os.close, read)
        script = "cd /proc/self/fd; readlink 3 4 5 6; ls"
        with process.null() as nothing:
            # The numbers that the child is to have, in another order.
            given = [nothing, write, nothing, *sorted(folders, reverse=True)]
            child = await process.spawn_aside(("/bin/sh", "-c", script), given)
        os.close(write)
        assert await child.wait() == 0
        expected = [str(Path(f"/proc/self/fd/{folder}").readlink()) for folder in given[3:]]
        said = os.read(read, 4096).decode().split()
    assert said[:4] == expected
    assert set(said[4:]) <= {*"0123456", "7"}  # 7 is the folder that ls reads
