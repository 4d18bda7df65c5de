"""The decision log on a disk that is really full, and under a writer that is really killed."""

from __future__ import annotations

import json
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path

import pytest

from noderuntime.telemetry.decisions import RotatedFiles

WRITER = """
import sys, time
from pathlib import Path
from noderuntime.telemetry.decisions import DecisionLog, RotatedFiles
log = DecisionLog(RotatedFiles(Path(sys.argv[1]), max_bytes=128 << 10, files=100))
number = 0
while True:
    log.write({"number": number, "text": "x" * 300})
    number += 1
    time.sleep(0)
"""


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[Path]:
    disk = tmp_path / "disk"
    disk.mkdir()
    subprocess.run(("mount", "-t", "tmpfs", "-o", "size=64k", "nr-decisions", disk), check=True)
    try:
        yield disk
    finally:
        subprocess.run(("umount", disk), check=True)


def test_a_full_disk_keeps_whole_lines_and_takes_more_when_there_is_room(small_disk: Path) -> None:
    ballast = small_disk / "ballast"
    ballast.write_bytes(bytes(16 << 10))
    path = small_disk / "log"
    files = RotatedFiles(path, max_bytes=1 << 20, files=4)
    line = b"x" * 4999 + b"\n"
    written = 0
    with pytest.raises(OSError, match="No space left"):
        while True:
            files.append(line)
            written += 1
    assert path.read_bytes() == line * written
    ballast.unlink()
    files.append(line)
    assert path.read_bytes() == line * (written + 1)


def test_a_killed_writer_leaves_whole_lines_in_order(tmp_path: Path) -> None:
    path = tmp_path / "log"
    with subprocess.Popen((sys.executable, "-c", WRITER, path)) as writer:
        deadline = time.monotonic() + 30
        while not path.with_name("log.3").exists() and time.monotonic() < deadline:
            time.sleep(0.01)
        writer.kill()
    files = RotatedFiles(path, max_bytes=128 << 10, files=100)
    files.append(b'{"number":%d}\n' % sys.maxsize)
    older = sorted(tmp_path.glob("log.*"), key=lambda each: -int(each.suffix[1:]))
    assert len(older) >= 3
    lines = [line for each in (*older, path) for line in each.read_bytes().splitlines()]
    numbers: list[int] = []
    for line in lines:
        with suppress(ValueError):  # as a reader does
            numbers.append(json.loads(line)["number"])
    assert len(lines) - len(numbers) <= 1
    assert numbers == sorted(set(numbers))  # in order; what the queue had no room for is not there
    assert numbers[-1] == sys.maxsize
