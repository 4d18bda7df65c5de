from __future__ import annotations

import errno
import json
import logging
import os
import stat
import threading
from pathlib import Path
from typing import Any

import pytest

from noderuntime.telemetry import decisions, metrics
from noderuntime.telemetry.decisions import MAX_LINE_BYTES, DecisionLog, RotatedFiles, Value, encode

NOON_S = 1_764_072_000.0


class Gathered:
    """Keeps what is appended; waits and fails on demand."""

    def __init__(self) -> None:
        self.data: list[bytes] = []
        self.is_full = False
        self.may_go_on = threading.Event()
        self.may_go_on.set()

    def append(self, data: bytes) -> None:
        self.may_go_on.wait(10)
        if self.is_full:
            raise OSError(errno.ENOSPC, "No space left on device")
        self.data.append(data)


def files_at(path: Path, *, max_bytes: int = 100, files: int = 3) -> RotatedFiles:
    return RotatedFiles(path, max_bytes=max_bytes, files=files)


def read(path: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in path.read_bytes().splitlines()]


def lost() -> float:
    found = metrics.REGISTRY.get_sample_value("noderuntime_decision_lines_lost_total")
    assert found is not None
    return found


def test_lines_are_in_the_order_of_the_decisions(tmp_path: Path) -> None:
    path = tmp_path / "decisions" / "decisions.log"
    log = DecisionLog(files_at(path, max_bytes=1 << 20), clock=lambda: NOON_S)
    for number in range(1000):
        log.write({"verb": "PullImage", "number": number})
    log.close()
    lines = read(path)
    assert [line["number"] for line in lines] == list(range(1000))
    assert lines[0] == {"time": "2025-11-25T12:00:00.000Z", "verb": "PullImage", "number": 0}


def test_only_the_owner_reads_the_files(tmp_path: Path) -> None:
    path = tmp_path / "decisions" / "decisions.log"
    files = files_at(path)
    for _ in range(3):
        files.append(b"x" * 98 + b"\n")
    modes = {each.name: stat.S_IMODE(each.stat().st_mode) for each in path.parent.iterdir()}
    assert modes == dict.fromkeys(("decisions.log", "decisions.log.1", "decisions.log.2"), 0o600)
    assert stat.S_IMODE(path.parent.stat().st_mode) == 0o700


@pytest.mark.parametrize("files", [1, 2, 3])
def test_files_are_rotated_and_no_more_than_so_many_are_kept(tmp_path: Path, files: int) -> None:
    rotated = files_at(tmp_path / "log", max_bytes=10, files=files)
    for number in range(7):
        rotated.append(f"line-{number}\n".encode())
    names = ["log", "log.1", "log.2"][:files]
    assert sorted(each.name for each in tmp_path.iterdir()) == names
    assert [(tmp_path / name).read_text() for name in names] == [
        f"line-{6 - age}\n" for age in range(files)
    ]


def test_a_file_that_was_taken_away_is_made_anew(tmp_path: Path) -> None:
    files = files_at(tmp_path / "log")
    files.append(b"1\n")
    (tmp_path / "log").rename(tmp_path / "elsewhere")
    files.append(b"2\n")
    assert (tmp_path / "log").read_bytes() == b"2\n"


def test_a_line_that_a_crash_has_cut_takes_no_other_with_it(tmp_path: Path) -> None:
    (tmp_path / "log").write_bytes(b'{"whole":1}\n{"cut by a cra')
    files_at(tmp_path / "log").append(b'{"next":1}\n')
    assert (tmp_path / "log").read_bytes().splitlines() == [
        b'{"whole":1}',
        b'{"cut by a cra',
        b'{"next":1}',
    ]


def test_a_disk_that_takes_a_part_only_gets_whole_lines(tmp_path: Path) -> None:
    room = [4, 3, 0]

    def write(descriptor: int, data: bytes) -> int:
        fits = room.pop(0) if room else len(data)
        if not fits:
            raise OSError(errno.ENOSPC, "No space left on device")
        return os.write(descriptor, data[:fits])

    (tmp_path / "log").write_bytes(b"before\n")
    files = RotatedFiles(tmp_path / "log", max_bytes=100, files=2, write=write)
    with pytest.raises(OSError, match="No space left"):
        files.append(b"lost-line\n")
    files.append(b"after\n")
    assert (tmp_path / "log").read_bytes() == b"before\nafter\n"


@pytest.mark.parametrize("kind", ["fifo", "link", "folder"])
def test_what_is_no_file_is_neither_followed_nor_waited_for(tmp_path: Path, kind: str) -> None:
    path, target = tmp_path / "log", tmp_path / "target"
    if kind == "fifo":
        os.mkfifo(path)
    elif kind == "link":
        path.symlink_to(target)
    else:
        path.mkdir()
    with pytest.raises(OSError, match=r"regular file|symbolic links|directory"):
        files_at(path, max_bytes=1 << 20).append(b"line\n")
    assert not target.exists()


def test_a_full_disk_is_told_once_and_counted_and_fails_nobody(
    caplog: pytest.LogCaptureFixture,
) -> None:
    caplog.set_level(logging.INFO)
    gathered, before = Gathered(), lost()
    gathered.is_full = True
    log = DecisionLog(gathered)
    for _ in range(5):
        log.write({"verb": "lost"})
        log._pool.submit(lambda: None).result(10)  # each by itself
    gathered.is_full = False
    log.write({"verb": "kept"})
    log.close()
    assert lost() - before == 5
    assert [json.loads(line)["verb"] for line in gathered.data] == ["kept"]
    messages = [record.getMessage() for record in caplog.records]
    assert messages == [
        "decisions are lost: they hold, but are not written down",
        "decisions are written down again",
    ]


def test_a_disk_that_hangs_holds_nobody_up_and_the_queue_is_bounded() -> None:
    gathered, before = Gathered(), lost()
    gathered.may_go_on.clear()
    log = DecisionLog(gathered)
    wanted = 2 * decisions.MAX_QUEUE_BYTES // 1000
    for number in range(wanted):
        log.write({"number": number, "text": ["x" * 500, "x" * 480]})
    is_lost = lost() - before
    gathered.may_go_on.set()
    log.close()
    kept = [json.loads(line)["number"] for chunk in gathered.data for line in chunk.splitlines()]
    assert len(kept) + is_lost == wanted
    assert kept == list(range(len(kept)))  # in order, from the first on
    assert decisions.MAX_QUEUE_BYTES // 1100 < len(kept) < wanted


def test_a_line_after_the_end_is_counted_as_lost() -> None:
    log, before = DecisionLog(Gathered()), lost()
    log.close()
    log.write({"verb": "late"})
    log.close()
    assert lost() - before == 1


@pytest.mark.parametrize(
    "value",
    [
        pytest.param("a\nb\r\n\x00\x1b[31m\u2028", id="control characters"),
        pytest.param('","verdict":"Allowed', id="quotes"),
        pytest.param("\ud800", id="half a character"),
    ],
)
def test_a_hostile_value_stays_within_its_line_and_its_quotes(value: str) -> None:
    line = encode({"verdict": "Denied", "denials": [{"value": value}]})
    assert line.isascii()
    assert line.count(b"\n") == 1
    assert json.loads(line) == {"verdict": "Denied", "denials": [{"value": value}]}


@pytest.mark.parametrize("letter", ["x", "\x00", "\U0001f600"])
@pytest.mark.parametrize("denials", [1, 10_000])
def test_a_line_is_never_longer_than_it_may_be(letter: str, denials: int) -> None:
    huge = letter * 100_000
    denial: dict[str, Value] = dict.fromkeys(("field", "value", "rule", "remedy", "section"), huge)
    names = ("verb", "namespace", "pod", "uid", "container", "handler", "nodeRuntime", "profile")
    told: dict[str, Value] = {**dict.fromkeys(names, huge), "changes": [huge] * 9}
    line = encode({**told, "denials": [denial] * denials})
    assert len(line) <= MAX_LINE_BYTES
    found = json.loads(line)
    assert found["cut"] is True
    assert found["denials"][0]["field"]


def test_an_ordinary_line_is_not_cut() -> None:
    decision = {"verb": "RunPodSandbox", "changes": ("a", "b"), "denials": [{"value": "x"}]}
    assert json.loads(encode(decision)) == {**decision, "changes": ["a", "b"]}
