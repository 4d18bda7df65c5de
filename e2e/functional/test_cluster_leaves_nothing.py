"""`make down` leaves nothing: wherever `up` was cut off, whichever component had been killed."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from collections.abc import Iterator

import pytest

from e2e.cluster import census
from e2e.cluster.layout import Layout
from e2e.cluster.state import State
from e2e.conftest import require_none
from e2e.framework.cluster import Cluster, assert_as_before, run_command

pytestmark = pytest.mark.timeout(900)


@pytest.fixture(autouse=True)
def machine(layout: Layout) -> Iterator[census.Census]:
    """The machine before the test; at the test's end it must be as it was."""
    require_none(layout)
    before = census.take()
    try:
        yield before
    finally:
        run_command(layout, "down")
    assert_as_before(before)


def cut_off(layout: Layout, line: str) -> None:
    """Start `up` and kill it the moment it prints a line."""
    with subprocess.Popen(
        [sys.executable, "-m", "e2e.cluster", "up"],
        cwd=layout.repository,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        env=os.environ | {"PYTHONPATH": f"{layout.repository}:{layout.repository / 'operator'}"},
    ) as up:
        assert up.stdout
        seen: list[str] = []
        for text in up.stdout:
            seen.append(text)
            if line in text:
                up.send_signal(signal.SIGKILL)
                break
        else:
            pytest.fail(f"up never printed {line!r}:\n{''.join(seen)}")


@pytest.mark.parametrize(
    "line",
    [
        "network: started",
        "kube-apiserver: started",
        "kubelet: started",
        "operator: helm install",
        "examples: started",
    ],
)
def test_an_up_that_was_killed_leaves_nothing_after_down(layout: Layout, line: str) -> None:
    cut_off(layout, line)


def test_an_up_that_was_killed_is_finished_by_the_next(layout: Layout) -> None:
    cut_off(layout, "kubelet: started")

    assert "node " in run_command(layout, "up")


@pytest.mark.parametrize(
    "components",
    [
        pytest.param(("noderuntime",), id="the runtime"),
        pytest.param(
            ("noderuntime", "kubelet", "kube-proxy", "etcd", "registry"), id="nearly everything"
        ),
    ],
)
def test_down_leaves_nothing_when_components_had_been_killed(
    layout: Layout, components: tuple[str, ...]
) -> None:
    run_command(layout, "up")
    cluster = Cluster(layout)

    for component in components:
        cluster.kill(component)


def test_a_second_up_changes_nothing_and_a_second_down_neither(
    layout: Layout, machine: census.Census
) -> None:
    def picture() -> tuple[object, list[str]]:
        pods = Cluster(layout).api.list("pod", "")
        return State(layout.state).entries, sorted(pod["metadata"]["uid"] for pod in pods)

    run_command(layout, "up")
    before = picture()

    out = run_command(layout, "up", timeout_s=10)

    assert "up already" in out
    assert picture() == before
    run_command(layout, "down")
    assert_as_before(machine)
    run_command(layout, "down")
