"""Fixtures of the end-to-end tests.

One cluster serves the whole session. Tests that make and remove clusters themselves (they do not
ask for the `cluster` fixture) are run first, because a machine has room for one.
"""

from __future__ import annotations

import os
import re
import uuid
from collections.abc import Iterator

import pytest

from e2e.cluster import census, processes
from e2e.cluster.layout import Layout, this_layout
from e2e.cluster.state import State
from e2e.framework.cluster import Cluster, assert_as_before, run_command
from e2e.framework.waiting import wait_for

TEST_S = 180


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Tests without the shared cluster first; a limit for each that leaves out making it."""
    items.sort(key=lambda item: "cluster" in getattr(item, "fixturenames", ()))
    for item in items:
        if not item.get_closest_marker("timeout"):
            item.add_marker(pytest.mark.timeout(TEST_S, func_only=True))


@pytest.fixture(scope="session")
def layout() -> Layout:
    """Where the cluster is."""
    if os.geteuid() != 0:
        pytest.fail("a real cluster needs root: become root to run these tests")
    return this_layout()


def is_up(layout: Layout) -> bool:
    """Whether somebody's cluster runs already."""
    entry = State(layout.state).find("process", name="kube-apiserver")
    return entry is not None and processes.is_alive(entry["pid"], entry["started"])


def require_none(layout: Layout) -> None:
    """Fail the test where it cannot run: it makes a cluster itself, and there is room for one."""
    if is_up(layout):
        pytest.fail("a cluster is up, and this test makes and removes one: run `make down` first")


@pytest.fixture(scope="session")
def cluster(layout: Layout) -> Iterator[Cluster]:
    """The running cluster, with traces.

    Brought up for the session and taken down at its end, after which the machine is as before. One
    that was up already stays up, and so does one with NODERUNTIME_KEEP in the environment.
    """
    was_up = is_up(layout)
    before = census.take()
    run_command(layout, "up", "--tracing")
    yield Cluster(layout)
    if was_up or os.environ.get("NODERUNTIME_KEEP"):
        return
    run_command(layout, "down")
    assert_as_before(before)


@pytest.fixture
def namespace(cluster: Cluster, request: pytest.FixtureRequest) -> Iterator[str]:
    """A namespace of the test's own; it goes with all in it, in the background."""
    word = re.sub(r"[^a-z0-9]+", "-", request.node.name.lower()).strip("-")[:40].strip("-")
    name = f"{word}-{uuid.uuid4().hex[:6]}"
    cluster.kubectl("create", "namespace", name)
    # Pods are refused until the controller manager has made the account that they run as.
    wait_for("its default account", lambda: cluster.api.get("serviceaccount", "default", name))
    yield name
    cluster.kubectl("delete", "namespace", name, "--wait=false")
