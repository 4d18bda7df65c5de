"""What a container wrote, out of its log file."""

from __future__ import annotations

import asyncio
import io
from pathlib import Path

import pytest

from noderuntime.cli.running.logs import Follower, Lines, Terminal


def test_a_line_of_the_log_is_what_was_written() -> None:
    lines = Lines()
    assert lines.feed(b"T stdout F one\nT stdout F\nT stderr F two\nT stdout P par") == [
        ("stdout", b"one\n\n"),
        ("stderr", b"two\n"),
    ]
    assert lines.feed(b"t\nT stderr F x\nT stdout F end\ntorn\n\n") == [
        ("stderr", b"x\n"),
        ("stdout", b"part" + b"end\n"),
    ]
    assert lines.feed(b"T stdout P no end\n") == []
    assert lines.end() == [("stdout", b"no end")]
    assert lines.end() == []


async def test_a_log_is_followed_to_the_end_of_its_container(tmp_path: Path) -> None:
    out, err = io.BytesIO(), io.BytesIO()
    path = tmp_path / "0.log"

    async def reopen() -> None:
        path.touch()

    follower = Follower("app", path, Terminal(prefix=True, stdout=out, stderr=err), reopen)
    async with asyncio.timeout(10), asyncio.TaskGroup() as group:
        group.create_task(follower.run())
        await asyncio.sleep(0.05)  # the file comes late
        with path.open("ab", buffering=0) as file:
            file.write(b"T stdout F one\nT stderr F oops\n")
            while b"one" not in out.getvalue():  # until it was read
                await asyncio.sleep(0.01)
            file.write(b"T stdout F two\n")
        follower.end()
    assert out.getvalue() == b"[app] one\n[app] two\n"
    assert err.getvalue() == b"[app] oops\n"


async def test_a_long_log_is_begun_anew(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("noderuntime.cli.running.logs.LONGEST", 100)
    out, path, reopened = io.BytesIO(), tmp_path / "0.log", asyncio.Event()
    path.write_bytes(b"T stdout F line\n" * 20)

    async def reopen() -> None:
        with (tmp_path / "0.old").open("ab") as old:  # the monitor was in the middle of it
            old.write(b"T stdout F late\n")
        path.write_bytes(b"T stdout F new\n")
        reopened.set()

    follower = Follower("app", path, Terminal(prefix=False, stdout=out), reopen)
    async with asyncio.timeout(10), asyncio.TaskGroup() as group:
        group.create_task(follower.run())
        await reopened.wait()
        follower.end()
    assert out.getvalue() == b"line\n" * 20 + b"late\nnew\n"
    assert not (tmp_path / "0.old").exists()
