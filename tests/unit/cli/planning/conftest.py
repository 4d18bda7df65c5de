"""A cluster in memory, and the command on it."""

from __future__ import annotations

import json
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import pytest

from noderuntime.cli.main import main
from noderuntime.cli.planning import cluster as planned_cluster
from tests.fakes.planned_cluster import PlannedCluster
from tests.unit.cli.planning.plan_kit import WEB, Json, Run, a_file


@pytest.fixture
def cluster() -> PlannedCluster:
    made = PlannedCluster()
    made.profile("web", **WEB)
    made.runtime("restricted")
    return made


@pytest.fixture
def run(
    cluster: PlannedCluster,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    tmp_path: Path,
) -> Run:
    @asynccontextmanager
    async def connected(file: str, context: str) -> AsyncIterator[PlannedCluster]:
        del file, context
        yield cluster

    monkeypatch.setattr(planned_cluster, "connected", connected)

    def call(*words: str | tuple[str, str, Json], text: bool = False) -> tuple[int, Any]:
        documents = [each for each in words if isinstance(each, tuple)]
        options = [each for each in words if isinstance(each, str)]
        if documents:
            options.insert(0, a_file(tmp_path, *documents))
        code = main(["plan", *options, *([] if text else ["-o", "json"])])
        said = capsys.readouterr()
        if said.err:
            return code, said.err.replace(f"{tmp_path}/", "")
        return code, said.out if text else json.loads(said.out)

    return call
