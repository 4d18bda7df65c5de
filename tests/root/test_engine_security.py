"""What a container is confined by, on real parts: filters of a file, groups of the Pod alone."""

from __future__ import annotations

import json
from collections.abc import AsyncIterator, Iterator
from dataclasses import replace
from pathlib import Path

import pytest

from noderuntime.engine.engine import Engine
from noderuntime.policy.model import ContainerSecurity, ProfileType, SecurityProfileRef
from tests.root.engine_kit import RealNode
from tests.root.engine_scene import engine_on, made_node


@pytest.fixture(scope="module")
def node(tmp_path_factory: pytest.TempPathFactory) -> Iterator[RealNode]:
    with made_node(tmp_path_factory.mktemp("nr-engine-security")) as real:
        yield real


@pytest.fixture
async def engine(node: RealNode) -> AsyncIterator[Engine]:
    async with engine_on(node) as engine:
        yield engine


@pytest.mark.parametrize("handler", ["", "runc"])
async def test_a_filter_of_a_file_holds_for_the_container_and_for_an_exec(
    node: RealNode, engine: Engine, tmp_path: Path, handler: str
) -> None:
    profile = tmp_path / "no-chmod.json"
    denied = {"names": ["chmod", "fchmodat"], "action": "SCMP_ACT_ERRNO", "errnoRet": 1}
    profile.write_text(json.dumps({"defaultAction": "SCMP_ACT_ALLOW", "syscalls": [denied]}))
    reference = SecurityProfileRef(type=ProfileType.LOCALHOST, localhost_ref=str(profile))
    security = ContainerSecurity(seccomp=reference)
    sandbox_id = await engine.run_sandbox(node.sandbox(), handler)
    config = replace(node.container(), security=security)
    container_id = await engine.create_container(sandbox_id, config)
    await engine.start_container(container_id)
    script = (
        "/bin/busybox",
        "sh",
        "-c",
        "busybox chmod 700 /tmp; busybox grep Seccomp: /proc/1/status",
    )
    result = await engine.exec_sync(container_id, script, 10.0)
    assert b"Operation not permitted" in result.stderr
    assert result.stdout.split() == [b"Seccomp:", b"2"]
