"""The agent and the runtime as processes, with a real API server: what is declared is served and reported."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any, Final

import pytest

from e2e.framework.api_server import ApiServer, running_api_server, wait_for
from noderuntime.api.crd import crd_of
from noderuntime.api.definitions import DEFINITIONS
from noderuntime.api.profile_process import Capabilities
from noderuntime.api.revision import Revision, RevisionHandler, RevisionProfile, make_revision
from noderuntime.api.securityprofile import SecurityProfileSpec

ROOT: Final = Path(__file__).resolve().parents[2]
STATES: Final = "/apis/noderuntime.io/v1alpha1/noderuntimestates"
CRDS: Final = "/apis/apiextensions.k8s.io/v1/customresourcedefinitions"
REVISIONS: Final = "/apis/apps/v1/namespaces/noderuntime-system/controllerrevisions"
CONFIG: Final = """
socket = "{folder}/run/nr.sock"
state_dir = "{folder}/state"
run_dir = "{folder}/run"
revision = "{folder}/current"
[metrics]
address = "127.0.0.1:0"
"""
Json = dict[str, Any]


@pytest.fixture(scope="module")
def server() -> Iterator[ApiServer]:
    with running_api_server() as running:
        for definition in DEFINITIONS:
            assert running.create(CRDS, crd_of(definition)).error == ""
        wait_for("the CRD is served", lambda: running.get(STATES).status == 200)
        namespace = {"metadata": {"name": "noderuntime-system"}}
        assert running.create("/api/v1/namespaces", namespace).error == ""
        yield running


class Node:
    """A runtime and an agent of one node, in a folder of their own."""

    def __init__(self, folder: Path, server: ApiServer, name: str) -> None:
        self.folder, self.server, self.name = folder, server, name
        self.socket = folder / "run" / "agent" / "noderuntime.sock"
        self.processes: list[subprocess.Popen[bytes]] = []
        (folder / "config.toml").write_text(CONFIG.format(folder=folder))
        server.kubeconfig(folder / "kubeconfig")

    def start_runtime(self) -> subprocess.Popen[bytes]:
        runtime = self._start("serve", "--config", str(self.folder / "config.toml"))
        wait_for("the runtime answers", self.socket.exists)
        return runtime

    def start_agent(self) -> subprocess.Popen[bytes]:
        return self._start(
            "agent",
            *("--node-name", self.name, "--socket", str(self.socket)),
            *("--revision-file", str(self.folder / "current")),
        )

    def _start(self, *arguments: str) -> subprocess.Popen[bytes]:
        environment = os.environ | {"KUBECONFIG": str(self.folder / "kubeconfig")}
        with (self.folder / f"{arguments[0]}.log").open("ab") as log:
            process = subprocess.Popen(
                [sys.executable, "-m", "noderuntime", *arguments],
                cwd=ROOT,
                env=environment,
                stderr=log,
            )
        self.processes.append(process)
        return process

    def declare(self, revision: Revision, *, data: Json | None = None) -> None:
        """Write the revision and the state, as the operator does."""
        name = f"noderuntime-{revision.digest.removeprefix('sha256:')[:12]}"
        content = data or revision.model_dump(mode="json", by_alias=True)
        self.server.create(REVISIONS, {"metadata": {"name": name}, "revision": 1, "data": content})
        spec = {"nodeName": self.name, "revision": {"name": name, "digest": revision.digest}}
        answer = self.server.apply(
            f"{STATES}/{self.name}",
            {
                "apiVersion": "noderuntime.io/v1alpha1",
                "kind": "NodeRuntimeState",
                "metadata": {"name": self.name},
                "spec": spec,
            },
            manager="noderuntime-operator",
        )
        assert answer.error == ""

    def status(self) -> Json:
        state: Json = self.server.get(f"{STATES}/{self.name}").body
        status: Json = state.get("status", {})
        return status | {"generation": state["metadata"]["generation"]}

    def reason(self) -> str:
        conditions: list[Json] = self.status().get("conditions", [])
        return conditions[0]["reason"] if conditions else ""

    def reports(self, digest: str) -> bool:
        status = self.status()
        return (
            status.get("revision", {}).get("digest") == digest
            and status["observedGeneration"] == status["generation"]
            and self.reason() == "Served"
        )

    def end(self) -> None:
        for process in self.processes:
            process.kill()
            process.wait(10)
        # A bind of itself, which os.path.ismount() does not see.
        while f" {self.folder / 'run'} " in Path("/proc/self/mountinfo").read_text():
            subprocess.run(["umount", "--lazy", self.folder / "run"], check=True)


@pytest.fixture
def node(server: ApiServer, tmp_path: Path, request: pytest.FixtureRequest) -> Iterator[Node]:
    node = Node(tmp_path, server, request.node.name.replace("_", "-")[:63])
    yield node
    node.end()


def a_revision(*capabilities: str) -> Revision:
    spec = SecurityProfileSpec(capabilities=Capabilities(allow=capabilities))
    profile = RevisionProfile(name="web", spec=spec)
    handler = RevisionHandler(name="restricted", node_runtime="restricted", profile=profile)
    return make_revision((handler,))


def test_what_is_declared_is_served_and_reported(node: Node) -> None:
    node.start_runtime()
    node.start_agent()
    first, second = a_revision(), a_revision("NET_BIND_SERVICE")
    node.declare(first)
    wait_for("the first revision is reported", lambda: node.reports(first.digest))
    assert "restricted" in node.status()["handlers"]
    node.declare(second)
    wait_for("the second revision is reported", lambda: node.reports(second.digest))
    node.declare(make_revision(()))
    wait_for("the empty one is reported", lambda: node.reports(make_revision(()).digest))
    assert "restricted" not in node.status().get("handlers", [])


def test_a_killed_runtime_is_reported_and_serves_again_when_it_is_back(node: Node) -> None:
    runtime = node.start_runtime()
    node.start_agent()
    revision = a_revision()
    node.declare(revision)
    wait_for("the revision is reported", lambda: node.reports(revision.digest))
    runtime.send_signal(signal.SIGKILL)
    runtime.wait(10)
    node.socket.unlink()
    wait_for("its loss is reported", lambda: node.reason() == "RuntimeUnavailable")
    assert node.status()["revision"]["digest"] == revision.digest
    node.start_runtime()
    wait_for("its return is reported", lambda: node.reports(revision.digest))


def test_a_killed_agent_goes_on_where_it_was(node: Node) -> None:
    node.start_runtime()
    agent = node.start_agent()
    first, second = a_revision(), a_revision("CHOWN")
    node.declare(first)
    wait_for("the first revision is reported", lambda: node.reports(first.digest))
    agent.kill()
    agent.wait(10)
    node.declare(second)
    node.start_agent()
    wait_for("the second revision is reported", lambda: node.reports(second.digest))


def test_a_revision_that_was_changed_by_hand_is_not_served(node: Node) -> None:
    node.start_runtime()
    node.start_agent()
    good, declared = a_revision(), a_revision("NET_ADMIN")
    node.declare(good)
    wait_for("the revision is reported", lambda: node.reports(good.digest))
    changed = a_revision("SYS_ADMIN").model_dump(mode="json", by_alias=True)
    node.declare(declared, data=changed | {"digest": declared.digest})
    wait_for("the agent refuses it", lambda: node.reason() == "InvalidConfiguration")
    assert node.status()["revision"]["digest"] == good.digest
