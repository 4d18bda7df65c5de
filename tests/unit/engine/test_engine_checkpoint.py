"""Checkpoints are refused, and the refusal says what there is to do."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest

from noderuntime.engine import checkpoint
from noderuntime.engine.checkpoint import missing
from noderuntime.errors import FailedPreconditionError, UnimplementedError
from noderuntime.policy.model import Resources
from tests.fakes.engine import container_config, sandbox_config

if TYPE_CHECKING:
    from pathlib import Path

    from noderuntime.engine.engine import Engine


@pytest.fixture
def path(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("PATH", str(tmp_path))
    return tmp_path


def program(path: Path, says: str = "") -> Path:
    path.write_text(f"#!/bin/sh\necho '{says}'\n")
    path.chmod(0o755)
    return path


async def test_without_criu_the_refusal_names_it(engine: Engine, path: Path) -> None:
    del path
    sandbox_id = await engine.run_sandbox(sandbox_config(), "")
    container_id = await engine.create_container(sandbox_id, container_config())
    with pytest.raises(FailedPreconditionError, match="not running"):
        await engine.checkpoint_container(container_id)
    await engine.start_container(container_id)
    with pytest.raises(FailedPreconditionError, match="criu is not installed"):
        await engine.checkpoint_container(container_id)


async def test_with_criu_the_refusal_names_what_is_missing_then(path: Path) -> None:
    criu = program(path / "criu")
    assert "built without CRIU" in await missing(program(path / "crun", "+CAP +SECCOMP"))
    assert await missing(program(path / "crun", "+CAP +CRIU")) == ""
    assert await missing(program(path / "runc")) == ""
    criu.write_text("#!/bin/sh\necho 'Error (criu/vdso.c:381): vdso: Unexpected' >&2\nexit 1\n")
    assert "cannot work on this kernel: " in (said := await missing(path / "runc"))
    assert said.endswith("vdso: Unexpected")
    assert await missing(path / "none") != ""


async def test_where_nothing_is_missing_the_refusal_says_that_it_is_ours(
    engine: Engine, monkeypatch: pytest.MonkeyPatch
) -> None:
    async def nothing(_: Path) -> str:
        return ""

    monkeypatch.setattr(checkpoint, "missing", nothing)
    sandbox_id = await engine.run_sandbox(sandbox_config(), "")
    container_id = await engine.create_container(sandbox_id, container_config())
    await engine.start_container(container_id)
    with pytest.raises(UnimplementedError, match="archives are not served"):
        await engine.checkpoint_container(container_id)


async def test_limits_of_a_pod_are_in_its_record(engine: Engine) -> None:
    sandbox_id = await engine.run_sandbox(sandbox_config(), "")
    wanted = Resources(memory_limit_bytes=1 << 30)
    await engine.update_sandbox_resources(sandbox_id, Resources(cpu_shares=2), wanted)
    config = engine.sandbox(sandbox_id).config
    assert (config.overhead.cpu_shares, config.resources) == (2, wanted)
