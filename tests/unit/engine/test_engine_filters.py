"""Compiled filters: once for many containers, only for who takes them, and never a wider one."""

from __future__ import annotations

import asyncio
import base64
from collections.abc import AsyncIterator, Iterable
from pathlib import Path
from typing import Any

import pytest

from noderuntime.api.config import load_config
from noderuntime.engine.disk import Disk
from noderuntime.engine.filters import MAX_PROGRAMS, Filters
from noderuntime.errors import ConfigError, FailedPreconditionError
from noderuntime.policy.spec import BPF_ANNOTATION


class Compiler:
    """Counts; a program is its filter's number of names."""

    version = "2.5.4"

    def __init__(self) -> None:
        self.compiled: list[dict[str, Any]] = []
        self.asked: list[Path] = []

    def unknown(self, names: Iterable[str]) -> frozenset[str]:
        return frozenset(names) & {"mseal"}

    def compile(self, document: Any) -> bytes:
        self.compiled.append(document)
        return b"program"

    async def is_taken_by(self, oci_runtime: Path) -> bool:
        self.asked.append(oci_runtime)
        return oci_runtime.name == "crun"


@pytest.fixture
async def disk() -> AsyncIterator[Disk]:
    disk = Disk()
    yield disk
    disk.close()


@pytest.fixture
def crun(tmp_path: Path) -> Path:
    path = tmp_path / "crun"
    path.write_text("one")
    return path


def config(*names: str) -> dict[str, Any]:
    rule = {"names": list(names), "action": "SCMP_ACT_ALLOW"}
    return {
        "process": {},
        "linux": {
            "maskedPaths": [],
            "seccomp": {"defaultAction": "SCMP_ACT_ERRNO", "syscalls": [rule]},
        },
    }


async def test_containers_with_one_filter_share_its_program(disk: Disk, crun: Path) -> None:
    compiler = Compiler()
    filters = Filters(compiler)
    sealed: list[Any] = await asyncio.gather(
        *(filters.seal(config("read", "mseal"), crun, disk) for _ in range(5))
    )
    assert len(compiler.compiled) == 1
    assert compiler.compiled[0]["syscalls"][0]["names"] == ["read"]
    for one in sealed:
        assert base64.b64decode(one["annotations"][BPF_ANNOTATION]) == b"program"
        assert one["linux"] == {
            "maskedPaths": [],
            "seccomp": {"defaultAction": "SCMP_ACT_KILL_PROCESS"},
        }
    await filters.seal(config("write"), crun, disk)
    assert len(compiler.compiled) == 2


async def test_an_oci_runtime_that_compiles_itself_gets_the_filter(
    disk: Disk, tmp_path: Path
) -> None:
    runc = tmp_path / "runc"
    runc.touch()
    compiler = Compiler()
    got: Any = await Filters(compiler).seal(config("read", "mseal"), runc, disk)
    assert got == config("read")
    assert compiler.compiled == []


async def test_a_program_of_the_node_is_asked_again_when_it_is_another_one(
    disk: Disk, crun: Path
) -> None:
    compiler = Compiler()
    filters = Filters(compiler)
    for _ in range(3):
        await filters.seal(config("read"), crun, disk)
    assert compiler.asked == [crun]
    crun.write_text("another")
    await filters.seal(config("read"), crun, disk)
    assert compiler.asked == [crun, crun]


async def test_no_filter_is_none(disk: Disk, crun: Path) -> None:
    plain: dict[str, Any] = {"linux": {}}
    assert await Filters(Compiler()).seal(plain, crun, disk) == plain


async def test_only_the_last_used_programs_are_kept(disk: Disk, crun: Path) -> None:
    compiler = Compiler()
    filters = Filters(compiler)
    for number in range(MAX_PROGRAMS + 1):
        await filters.seal(config(f"call{number}"), crun, disk)
        await filters.seal(config("call0"), crun, disk)
    assert len(compiler.compiled) == MAX_PROGRAMS + 1
    await filters.seal(config("call1"), crun, disk)
    assert len(compiler.compiled) == MAX_PROGRAMS + 2


async def test_a_recorder_is_asked_by_each_filter_and_only_crun_can(
    disk: Disk, crun: Path, tmp_path: Path
) -> None:
    compiler = Compiler()
    filters = Filters(compiler, Path("/run/recorder.sock"))
    sealed: Any = await filters.seal(config("read"), crun, disk)
    assert compiler.compiled[0]["syscalls"] == [{"names": ["read"], "action": "SCMP_ACT_NOTIFY"}]
    assert sealed["linux"]["seccomp"]["listenerPath"] == "/run/recorder.sock"
    runc = tmp_path / "runc"
    runc.touch()
    with pytest.raises(FailedPreconditionError, match="^runc cannot be recorded: .*; use crun$"):
        await filters.seal(config("read"), runc, disk)


def test_the_nodes_own_runtime_does_not_record(tmp_path: Path) -> None:
    file = tmp_path / "config.toml"
    file.write_text('recording = {socket = "/run/recorder.sock"}\n')
    with pytest.raises(ConfigError, match="recording.socket: not for the node's own runtime"):
        load_config(file)
    file.write_text('socket = "/run/mine.sock"\nrecording = {socket = "/run/recorder.sock"}\n')
    assert load_config(file).recording.socket == Path("/run/recorder.sock")
