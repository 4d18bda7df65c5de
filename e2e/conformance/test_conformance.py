"""CRI's conformance suite, and that nothing of it is left on the machine."""

from __future__ import annotations

import pytest

from e2e.cluster import census
from e2e.cluster.layout import Layout
from e2e.conformance import node, suite
from e2e.framework.cluster import assert_as_before

RUNS = (
    pytest.param(suite.Run("crun"), id="crun"),
    pytest.param(suite.Run("runc"), id="runc"),
    pytest.param(suite.Run("crun", "Streaming", websocket=True), id="crun over WebSocket"),
)


@pytest.mark.timeout(suite.LIMIT_S)
@pytest.mark.parametrize("wanted", RUNS)
def test_the_suite_finds_what_is_written_down(layout: Layout, wanted: suite.Run) -> None:
    node.prepare(layout)
    before = census.take()
    line, found = suite.judge(layout, wanted)
    print(line)
    assert not found, "\n".join([*found, line])
    assert_as_before(before)
