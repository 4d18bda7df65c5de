"""What is taken for a failed exec, and how it reads."""

from __future__ import annotations

import os

import pytest

from noderuntime.host.exec_log import ExecLog, failure_in

WHERE = "exec failed: unable to start container process: "


@pytest.mark.parametrize(
    ("log", "said"),
    [
        pytest.param(b"", "", id="nothing"),
        pytest.param(b'{"level":"warning","msg":"x"}\n', "", id="warning"),
        pytest.param(b'[1]\n"a"\n{\n' + b"[" * 100000, "", id="no log"),
        pytest.param(
            b'{"msg":"executable file `nope` not found in $PATH: No such file or directory",'
            b'"level":"error","time":"x"}\n',
            f'{WHERE}exec: "nope": executable file not found in $PATH',
            id="crun",
        ),
        pytest.param(
            b'{"level":"error","msg":"exec failed: unable to start container process: exec: '
            b'\\"nope\\": executable file not found in $PATH","time":"x"}\n',
            f'{WHERE}exec: "nope": executable file not found in $PATH',
            id="runc",
        ),
        pytest.param(
            b'{"level":"error","msg":"a\\nb\\u001b[1m"}', f"{WHERE}a b [1m", id="control characters"
        ),
        pytest.param(
            b'{"level":"error","msg":"' + b"x" * 5000 + b'"}', WHERE + "x" * 1000, id="long"
        ),
    ],
)
def test_a_failure_is_an_error_of_the_runtime_on_one_line(log: bytes, said: str) -> None:
    assert failure_in(log) == said


def test_a_log_keeps_what_it_says_when_it_is_closed() -> None:
    log = ExecLog()
    assert log.failure() == ""
    os.write(log.descriptor, b'{"level":"error","msg":"no"}\n')
    assert log.failure() == WHERE + "no"
    log.close()
    log.close()
    assert log.failure() == WHERE + "no"
