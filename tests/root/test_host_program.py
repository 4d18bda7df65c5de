"""The OCI runtime from a read-only mount: what crun makes of it, upgrades, what an earlier run left."""

from __future__ import annotations

import os
import shutil
import subprocess
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest

from noderuntime.host.mountinfo import is_mount_point
from noderuntime.host.program import ReadOnlyProgram
from tests.root.mounts_kit import unmount_below

CRUN = Path(shutil.which("crun") or "/usr/bin/crun")


@pytest.fixture
def folder() -> Iterator[Path]:
    path = Path(tempfile.mkdtemp(prefix="nr-program-"))
    yield path
    unmount_below(path)
    shutil.rmtree(path)


def own_crun(folder: Path) -> Path:
    binary = folder / "bin" / "crun"
    binary.parent.mkdir()
    shutil.copy(CRUN, binary)
    return binary


def test_crun_does_not_start_itself_anew_from_it(folder: Path) -> None:
    def starts(program: Path) -> int:
        argv = [str(program), f"--root={folder / 'oci'}", "list"]
        env = {"LD_DEBUG": "statistics"}  # the dynamic loader tells of each start
        done = subprocess.run(argv, check=True, capture_output=True, text=True, env=env)
        return done.stderr.count("total startup time")

    program = ReadOnlyProgram(CRUN, folder / "programs").path()
    assert program.name == "crun"
    assert (starts(CRUN), starts(program)) == (2, 1)


def test_nobody_can_write_to_it(folder: Path) -> None:
    program = ReadOnlyProgram(own_crun(folder), folder / "programs").path()
    with pytest.raises(OSError, match="Read-only"):
        program.open("r+b")


def test_an_upgrade_is_what_is_started_next(folder: Path) -> None:
    binary = own_crun(folder)
    program = ReadOnlyProgram(binary, folder / "programs")
    first = program.path()
    assert program.path() == first
    new = binary.with_name("new")
    shutil.copy("/bin/true", new)
    new.rename(binary)
    second = program.path()
    assert second != first
    assert second.stat().st_ino == binary.stat().st_ino
    assert is_mount_point(first)


def test_the_next_run_takes_what_is_there_and_sweeps_the_rest(folder: Path) -> None:
    binary = own_crun(folder)
    earlier = ReadOnlyProgram(binary, folder / "programs")
    old = earlier.path()
    os.utime(binary, ns=(1, 1))
    kept = earlier.path()
    assert ReadOnlyProgram(binary, folder / "programs").path() == kept
    assert not old.exists()
    assert is_mount_point(kept)


def test_where_nothing_can_be_mounted_the_program_is_started_as_it_is(folder: Path) -> None:
    (folder / "programs").touch()
    assert ReadOnlyProgram(CRUN, folder / "programs").path() == CRUN
    missing = folder / "missing"
    assert ReadOnlyProgram(missing, folder / "elsewhere").path() == missing
