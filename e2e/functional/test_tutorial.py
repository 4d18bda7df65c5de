"""docs/tutorial.md is true: every command in it is run, and prints what the document says."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from e2e.framework.cluster import Cluster
from e2e.framework.waiting import wait_for
from e2e.framework.walk import Shell, walk

TUTORIAL = Path(__file__).resolve().parents[2] / "docs" / "tutorial.md"
NAME = "tutorial"  # of the namespace, the NodeRuntime and, with more behind it, the profiles


def remove_all(cluster: Cluster) -> None:
    """Take away what the walk makes, however far it came; Pods first, as the NodeRuntime waits for them."""
    cluster.kubectl("delete", "namespace", NAME, "--ignore-not-found", "--timeout=60s")
    cluster.kubectl("delete", "noderuntime", NAME, "--ignore-not-found", "--timeout=60s")
    cluster.kubectl("delete", "securityprofile", NAME, f"{NAME}-team", "--ignore-not-found")


@pytest.fixture
def shell(cluster: Cluster, tmp_path: Path) -> Iterator[Shell]:
    """A shell as the document asks for it, whose ``noderuntime`` is this one."""
    remove_all(cluster)
    environment = cluster.layout.environment() | {
        "KUBECONFIG": str(cluster.layout.kubeconfig),
        "PYTHONPATH": str(cluster.layout.repository),
        "HOME": str(tmp_path),
    }
    made = Shell(
        tmp_path, environment, f'noderuntime() {{ {sys.executable} -m noderuntime "$@"; }}'
    )
    try:
        yield made
    finally:
        made.close()
        remove_all(cluster)


def test_every_command_of_the_tutorial_prints_what_it_says(cluster: Cluster, shell: Shell) -> None:
    before = [each["metadata"]["name"] for each in cluster.api.list("securityprofile")]
    walk(TUTORIAL, shell)

    def as_before() -> bool:
        assert [each["metadata"]["name"] for each in cluster.api.list("securityprofile")] == before
        return cluster.api.get("runtimeclass", NAME) is None

    wait_for("the RuntimeClass gone", as_before)
