"""The process object of an exec is whole only once the runtime that reads it was let go."""

from __future__ import annotations

import json
import os
import subprocess
from pathlib import Path

import pytest

from noderuntime.errors import HostError
from noderuntime.host.exec_process import ProcessPipe
from noderuntime.host.ports import ExecRequest


def request(environment_bytes: int) -> ExecRequest:
    process = {"args": ["true"], "env": ["A=" + "x" * environment_bytes], "oomScoreAdj": 321}
    return ExecRequest(container_id="c", process=process, terminal=False, stdin=False)


@pytest.mark.parametrize("size", [0, 65_400, 65_536, 300_000])
def test_the_reader_has_the_score_when_it_sees_the_end(size: int) -> None:
    pipe = ProcessPipe(request(size))
    script = f"cat /proc/self/fd/{pipe.descriptor}; echo; cat /proc/self/oom_score_adj"
    with subprocess.Popen(
        ("/bin/sh", "-c", script),
        stdout=subprocess.PIPE,
        pass_fds=(pipe.descriptor,),
    ) as reader:
        pipe.let_go(reader.pid)
        pipe.close()
        assert reader.stdout is not None
        process, score = reader.stdout.read().decode().split("\n", 1)
    assert len(json.loads(process)["env"][0]) == size + 2
    assert int(score) == 321


def test_what_is_never_let_go_is_never_whole() -> None:
    pipe = ProcessPipe(request(10))
    copy = os.dup(pipe.descriptor)
    pipe.close()
    with os.fdopen(copy, "rb") as file, pytest.raises(json.JSONDecodeError):
        json.loads(file.read())


def test_what_no_pipe_can_hold_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    before = sorted(Path("/proc/self/fd").iterdir())

    def refuse(*_: object) -> int:
        raise PermissionError

    monkeypatch.setattr("noderuntime.host.exec_process.enlarge", refuse)
    with pytest.raises(HostError, match="300.*bytes.*pipe-max-size"):
        ProcessPipe(request(300_000))
    assert sorted(Path("/proc/self/fd").iterdir()) == before
