"""A minute of what ``make soak`` does for an hour."""

from __future__ import annotations

import asyncio

import pytest

from tests.root.engine_scene import made_node_of
from tests.root.faults_kit import FaultyNode
from tests.root.soak import Soak
from tests.root.soak_report import problems


@pytest.mark.slow
@pytest.mark.timeout(300)
def test_pods_come_and_go_under_random_faults_and_nothing_is_left(
    tmp_path_factory: pytest.TempPathFactory, unused_tcp_port: int
) -> None:
    root = tmp_path_factory.mktemp("nr-soak")
    with made_node_of(FaultyNode, root) as node:
        report = asyncio.run(Soak(node, unused_tcp_port).run(60))
    assert report.started > report.cycles / 2 > 10, report
    assert problems(report) == [], report
