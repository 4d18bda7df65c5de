"""The process object of an exec is whole only once the runtime that reads it was let go."""

from __future__ import annotations

import asyncio
import json
import os
from pathlib import Path

import pytest

from noderuntime.host.exec_process import ProcessPipe
from noderuntime.host.ports import ExecRequest


def request(environment_bytes: int) -> ExecRequest:
    process = {"args": ["true"], "env": ["A=" + "x" * environment_bytes], "oomScoreAdj": 321}
    return ExecRequest(container_id="c", process=process, terminal=False, stdin=False)


@pytest.mark.parametrize("size", [0, 65_400, 65_536, 3_000_000])
async def test_the_reader_has_the_score_when_it_sees_the_end(size: int) -> None:
    pipe = ProcessPipe(request(size))
    number = pipe.descriptor
    script = f"cat /proc/self/fd/{number}; echo; cat /proc/self/oom_score_adj"
    reader = await asyncio.create_subprocess_exec(
        *("/bin/sh", "-c", script), stdout=asyncio.subprocess.PIPE, pass_fds=(number,)
    )
    pipe.let_go(reader.pid)
    pipe.close()
    output, _ = await reader.communicate()
    process, score = output.decode().split("\n", 1)
    assert len(json.loads(process)["env"][0]) == size + 2
    assert int(score) == 321


async def test_a_reader_that_ends_early_leaves_nothing_behind() -> None:
    before = len(list(Path("/proc/self/fd").iterdir()))
    pipe = ProcessPipe(request(3_000_000))
    reader = await asyncio.create_subprocess_exec("/bin/true", pass_fds=(pipe.descriptor,))
    pipe.let_go(reader.pid)
    pipe.close()
    await reader.wait()
    async with asyncio.timeout(5):
        while len(list(Path("/proc/self/fd").iterdir())) != before:
            await asyncio.sleep(0.01)


def test_what_is_never_let_go_is_never_whole() -> None:
    pipe = ProcessPipe(request(10))
    copy = os.dup(pipe.descriptor)
    pipe.close()
    with os.fdopen(copy, "rb") as file, pytest.raises(json.JSONDecodeError):
        json.loads(file.read())
