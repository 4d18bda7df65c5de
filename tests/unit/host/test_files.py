"""durable, mountinfo, netstat, oom, watch, threads."""

from __future__ import annotations

import asyncio
import threading
from pathlib import Path

import pytest

from noderuntime.errors import HostError, StateError
from noderuntime.host import durable, mountinfo, netstat, oom
from noderuntime.host.threads import in_own_thread
from noderuntime.host.watch import Renames


def test_a_written_file_is_whole_and_its_mode_is_kept(tmp_path: Path) -> None:
    path = tmp_path / "a.json"
    durable.write(path, b"one")
    durable.write(path, b"two", mode=0o644)
    assert path.read_bytes() == b"two"
    assert path.stat().st_mode & 0o777 == 0o644
    assert [f.name for f in tmp_path.iterdir()] == ["a.json"]


def test_a_failed_write_leaves_the_old_file(tmp_path: Path) -> None:
    path = tmp_path / "a"
    durable.write(path, b"old")
    (tmp_path / "a.tmp").symlink_to(tmp_path / "elsewhere")
    with pytest.raises(HostError, match="cannot write"):
        durable.write(path, b"new")
    assert path.read_bytes() == b"old"
    assert not (tmp_path / "elsewhere").exists()
    durable.write(path, b"new")
    assert path.read_bytes() == b"new"


def test_a_write_into_a_missing_folder_names_the_file(tmp_path: Path) -> None:
    with pytest.raises(HostError, match=r"cannot write .*/no/a: no such file"):
        durable.write(tmp_path / "no" / "a", b"")


def test_removing_is_idempotent(tmp_path: Path) -> None:
    path = tmp_path / "a"
    durable.write(path, b"x")
    (tmp_path / "a.tmp").touch()
    durable.remove(path)
    durable.remove(path)
    durable.remove(tmp_path / "no" / "a")
    assert list(tmp_path.iterdir()) == []


def test_reading_is_bounded(tmp_path: Path) -> None:
    path = tmp_path / "a"
    assert durable.read(path) is None
    durable.write(path, b"12345")
    assert durable.read(path, limit_bytes=5) == b"12345"
    with pytest.raises(StateError, match="larger than 4 bytes"):
        durable.read(path, limit_bytes=4)
    with pytest.raises(HostError, match="is a directory"):
        durable.read(tmp_path)


def test_mountinfo_is_parsed_with_every_odd_name() -> None:
    table = (
        b"36 35 98:0 / /mnt/a\\040b\\011\\134 rw,noatime shared:1 master:2 - ext4 /dev/x rw,errors=x\n"
        b"37 35 0:5 /sub /mnt/\xff rw - tmpfs\x20tmpfs rw\n"
        b"\n"
        b"torn line\n"
    )
    first, second = mountinfo.parse(table)
    assert first.target == Path("/mnt/a b\t\\")
    assert (first.id, first.parent, first.kind, first.source) == (36, 35, "ext4", "/dev/x")
    assert first.options == "rw,errors=x"
    assert second.root == "/sub"
    assert second.target.name == "\udcff"


def test_mount_points_are_known(tmp_path: Path) -> None:
    assert mountinfo.is_mount_point(Path("/proc"))
    assert not mountinfo.is_mount_point(tmp_path)
    with pytest.raises(FileNotFoundError):
        mountinfo.is_mount_point(tmp_path / "no")
    assert any(m.target == Path("/proc") and m.kind == "proc" for m in mountinfo.mounts())


def test_interface_counters_are_parsed() -> None:
    table = (
        "Inter-|   Receive                     |  Transmit\n"
        " face |bytes    packets errs drop ... |bytes packets errs drop ...\n"
        "    lo: 9 9 9 9 9 9 9 9 9 9 9 9 9 9 9 9\n"
        "  eth0:1500 10 1 0 0 0 0 0 2500 20 2 0 0 0 0 0\n"
    )
    (usage,) = netstat.parse(table)
    assert (usage.interface, usage.rx_bytes, usage.rx_errors) == ("eth0", 1500, 1)
    assert (usage.tx_bytes, usage.tx_errors) == (2500, 2)


@pytest.mark.parametrize(
    ("score", "lowest", "after"),
    [
        pytest.param(-997, 0, 0, id="below what the host lets"),
        pytest.param(-997, -1000, -997, id="allowed"),
        pytest.param(500, 0, 500, id="above"),
    ],
)
def test_oom_scores_are_clamped(score: int, lowest: int, after: int) -> None:
    process = {"oomScoreAdj": score, "args": ["x"]}
    assert oom.clamp(process, lowest) == {"oomScoreAdj": after, "args": ["x"]}
    config = {"process": process, "root": {}}
    clamped = oom.clamp_config(config, lowest)
    assert clamped["process"] == {"oomScoreAdj": after, "args": ["x"]}
    assert (clamped is config) == (score == after)


def test_oom_scores_that_are_not_there_stay_away() -> None:
    assert oom.clamp({}, 0) == {}
    assert oom.clamp_config({}, 0) == {}
    assert -1000 <= oom.floor() <= 1000


async def test_renames_are_seen_from_the_construction_on(tmp_path: Path) -> None:
    with Renames(tmp_path) as renames:
        for name in ("a", "b"):
            (tmp_path / f".{name}").touch()
            (tmp_path / f".{name}").rename(tmp_path / name)
        assert [await anext(renames), await anext(renames)] == ["a", "b"]
        waiting = asyncio.Task(anext(renames))
        await asyncio.sleep(0)
        renames.close()
        with pytest.raises(StopAsyncIteration):
            await waiting


async def test_an_own_thread_is_waited_for_although_cancelled() -> None:
    loop, begun = asyncio.get_running_loop(), asyncio.Event()
    go, done = threading.Event(), threading.Event()

    def work() -> None:
        loop.call_soon_threadsafe(begun.set)
        go.wait(5)
        done.set()

    task = asyncio.Task(in_own_thread(work))
    await begun.wait()
    task.cancel()
    await asyncio.sleep(0)
    assert not task.done()
    go.set()
    with pytest.raises(asyncio.CancelledError):
        await task
    assert done.is_set()


async def test_an_own_thread_gives_its_value_or_its_error() -> None:
    assert await in_own_thread(lambda: 5) == 5
    with pytest.raises(ZeroDivisionError):
        await in_own_thread(lambda: 1 // 0)
