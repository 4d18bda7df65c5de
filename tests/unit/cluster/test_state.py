import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from e2e.cluster import processes
from e2e.cluster.layout import Layout
from e2e.cluster.state import ClusterError, State, locked


def test_what_is_recorded_is_on_disk_before_the_call_returns(tmp_path: Path) -> None:
    state = State(tmp_path / "state.json")

    state.record("link", name="nr0")

    assert State(tmp_path / "state.json").find("link", name="nr0")


def test_recording_the_same_thing_twice_is_one_entry(tmp_path: Path) -> None:
    state = State(tmp_path / "state.json")

    assert state.record("link", name="nr0") is state.record("link", name="nr0")
    assert len(state.entries) == 1


def test_a_forgotten_entry_is_gone_from_disk(tmp_path: Path) -> None:
    state = State(tmp_path / "state.json")
    state.forget(state.record("link", name="nr0"))

    assert State(tmp_path / "state.json").entries == []


def test_a_broken_state_file_is_refused_by_name(tmp_path: Path) -> None:
    (tmp_path / "state.json").write_text("{")

    with pytest.raises(ClusterError, match=r"state\.json is not readable"):
        State(tmp_path / "state.json")


def test_a_second_up_is_refused_while_the_first_works(tmp_path: Path) -> None:
    with (
        locked(tmp_path),
        pytest.raises(ClusterError, match="another up or down"),
        locked(tmp_path),
    ):
        pass


def test_a_pid_with_another_start_time_is_not_ours() -> None:
    own = os.getpid()

    assert processes.is_alive(own, processes.start_time(own))
    assert not processes.is_alive(own, processes.start_time(own) + 1)
    assert not processes.is_alive(None, None)


def sleeper(seconds: str = "60", config: str = "") -> processes.Command:
    files = {Path("/tmp/nr-test-unused") / "x": config} if config else {}
    argv = (sys.executable, "-c", f"import time; time.sleep({seconds})")
    return processes.Command("sleeper", argv, files)


def test_a_component_is_started_once_and_again_when_its_command_changed(tmp_path: Path) -> None:
    layout = Layout(tmp_path)
    layout.root.mkdir()
    state = State(layout.state)

    assert processes.start(state, layout, sleeper())
    first = state.find("process", name="sleeper")
    assert first
    assert not processes.start(state, layout, sleeper())
    assert processes.marked_pids(layout.root) == [first["pid"]]
    assert processes.start(state, layout, sleeper("61"))
    second = state.find("process", name="sleeper")
    assert second

    assert not processes.is_alive(first["pid"], first["started"])
    processes.end([second["pid"]])
    assert processes.marked_pids(layout.root) == []


def test_a_component_that_ended_is_told_with_the_end_of_its_log(tmp_path: Path) -> None:
    layout = Layout(tmp_path)
    layout.root.mkdir()
    state = State(layout.state)
    argv = (sys.executable, "-c", "raise SystemExit('bad flag')")
    processes.start(state, layout, processes.Command("broken", argv))
    entry = state.find("process", name="broken")
    assert entry
    while processes.is_alive(entry["pid"], entry["started"]):
        pass

    with pytest.raises(ClusterError, match=r"broken has ended(.|\n)*bad flag"):
        processes.require_alive(state, layout, "broken")


def test_a_failed_program_is_told_with_what_it_said(tmp_path: Path) -> None:
    with pytest.raises(ClusterError, match="failed: no such thing"):
        processes.run(["sh", "-c", "echo no such thing >&2; exit 3"], Layout(tmp_path))


def test_the_state_file_is_whole_json_after_many_updates(tmp_path: Path) -> None:
    state = State(tmp_path / "state.json")
    entry = state.record("process", name="etcd", pid=None)
    for pid in range(20):
        state.update(entry, pid=pid)

    assert json.loads((tmp_path / "state.json").read_text())["entries"][0]["pid"] == 19


def test_a_missing_program_is_named(tmp_path: Path) -> None:
    with pytest.raises(ClusterError, match="no-such-program is not installed"):
        processes.run(["no-such-program"], Layout(tmp_path))
    assert subprocess.run(["true"], check=False).returncode == 0
