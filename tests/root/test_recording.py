"""The recorder on a real kernel: what it sees under crun, and what happens without it."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from e2e.framework.waiting import wait_for
from noderuntime.cli.recording.recorder import Recorder
from noderuntime.cli.recording.seen import Ids, Recording
from noderuntime.policy.capabilities import IN_ORDER
from tests.root.recording_kit import CAPABILITIES, Box, names

pytestmark = pytest.mark.slow


@pytest.fixture
def box(tmp_path: Path) -> Iterator[Box]:
    box = Box(tmp_path)
    box.prepare()
    yield box
    box.clean()


@pytest.fixture
def started() -> list[str]:
    return []


@pytest.fixture
def recorder(box: Box, started: list[str]) -> Iterator[Recorder]:
    descriptors = len(list(Path("/proc/self/fd").iterdir()))
    recorder = Recorder(box.socket, started.append)
    recorder.start()
    yield recorder
    if recorder.is_alive:
        recorder.stop()
    assert not [each for each in threading.enumerate() if each.name == "recorder"]
    assert len(list(Path("/proc/self/fd").iterdir())) <= descriptors


def test_a_container_and_what_it_used_is_seen(
    box: Box, recorder: Recorder, started: list[str]
) -> None:
    script = (
        "echo one > /tmp/f && chown 7:7 /tmp/f && ln -s f /tmp/g && uname >/dev/null; echo done"
    )
    container_id, code, output = box.run(script)
    assert (code, output) == (0, "done\n")
    recording: Recording = recorder.stop()
    assert started == [container_id]
    assert recording.blind == ""
    seen = recording.containers[container_id]
    found = names(seen)
    assert {"symlink", "uname", "exit_group"} <= found
    assert found & {"chown", "fchown", "fchownat", "lchown"}
    assert "execve" in names(seen, of_runtime=True)
    assert not found & {"mount", "mknod", "setgroups", "sethostname"}
    granted = frozenset(n for n, name in enumerate(IN_ORDER) if name in CAPABILITIES)
    assert {IN_ORDER[number] for number in seen.used(granted)} == {"CHOWN"}
    assert seen.starts == {Ids(0, 0, ())} or seen.starts == {Ids(0, 0, (0,))}
    assert not seen.gained


def test_an_exec_is_seen_as_of_its_container(box: Box, recorder: Recorder) -> None:
    container_id, process = box.start("while [ ! -e /tmp/end ]; do busybox sleep 0.05; done")
    wait_for("a call", lambda: recorder.of(container_id) and names(recorder.of(container_id)))
    assert "mkdir" not in names(recorder.of(container_id))
    assert box.exec(container_id, "busybox mkdir /tmp/sub && : > /tmp/end") == 0
    assert process.wait(timeout=30) == 0
    recording = recorder.stop()
    seen = recording.containers[container_id]
    assert "mkdir" in names(seen)
    assert seen.execs == 1


def test_many_containers_at_once_each_have_their_own(box: Box, recorder: Recorder) -> None:
    wanted = [
        ("mkdir /tmp/d", "mkdir"),
        ("ln -s a /tmp/l", "symlink"),
        ("mkfifo /tmp/f", "mknodat"),
    ] * 4
    scripts = [f"busybox {script}{number}" for number, (script, _) in enumerate(wanted)]
    with ThreadPoolExecutor(len(scripts)) as pool:
        ends = list(pool.map(box.run, scripts))
    assert [(code, output) for _, code, output in ends if code] == []
    recording = recorder.stop()
    every = {call for _, call in wanted}
    for (container_id, _, _), (_, call) in zip(ends, wanted, strict=True):
        assert names(recording.containers[container_id]) & every == {call}


def test_a_container_that_is_killed_leaves_what_it_had_done(box: Box, recorder: Recorder) -> None:
    container_id, process = box.start("busybox mkdir /tmp/sub; while :; do busybox sleep 1; done")
    wait_for("the folder", (box.folder / "rootfs/tmp/sub").exists)
    box.call("kill", container_id, "KILL")
    assert process.wait(timeout=30) == 128 + 9
    assert "mkdir" in names(recorder.stop().containers[container_id])


def test_without_the_recorder_calls_fail_and_the_container_ends(
    box: Box, recorder: Recorder
) -> None:
    container_id, process = box.start("while busybox true; do :; done")
    wait_for("a call", lambda: recorder.of(container_id) and names(recorder.of(container_id)))
    recorder.stop()
    assert process.wait(timeout=30) != 0


def test_without_a_recorder_nothing_starts(box: Box) -> None:
    _, code, output = box.run("busybox true")
    assert code != 0
    assert "open seccomp receiver" in output
