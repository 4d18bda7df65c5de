"""A change in Git reaches the node whole: flipped, served without a restart, told in the status."""

from __future__ import annotations

import json
import uuid
from collections.abc import Iterator
from typing import Any

import pytest

from e2e.cluster.layout import RUNTIME_ETC
from e2e.framework import pods
from e2e.framework.cluster import Cluster
from e2e.framework.waiting import wait_for

Json = dict[str, Any]
SYSTEM = "noderuntime-system"
OPERATOR = ("-n", SYSTEM, "noderuntime-operator")


def profile(name: str, **spec: object) -> Json:
    return {
        "apiVersion": "noderuntime.io/v1alpha1",
        "kind": "SecurityProfile",
        "metadata": {"name": name},
        "spec": {"runAs": {"nonRoot": True}, **spec},
    }


def runtime(name: str) -> Json:
    return {
        "apiVersion": "noderuntime.io/v1alpha1",
        "kind": "NodeRuntime",
        "metadata": {"name": name},
        "spec": {"handler": name, "securityProfileRef": {"name": name}},
    }


@pytest.fixture
def handler(cluster: Cluster) -> Iterator[str]:
    """A handler of the test's own, served by the node. It goes when the test's Pods have gone."""
    name = f"changing-{uuid.uuid4().hex[:6]}"
    cluster.apply(profile(name), runtime(name))
    wait_served(cluster, name)
    yield name
    cluster.kubectl("delete", "noderuntime,securityprofile", name, "--wait=false")


def state(cluster: Cluster) -> Json:
    found = cluster.api.get("noderuntimestate", cluster.node)
    assert found
    return found


def wait_served(cluster: Cluster, handler: str) -> str:
    """The digest, once the node serves what the operator wants of it, with the handler in it."""

    def probe() -> str | None:
        now = state(cluster)
        wanted: str = now["spec"]["revision"]["digest"]
        status = now.get("status", {})
        assert status.get("revision", {}).get("digest") == wanted, now
        assert handler in status["handlers"], status
        return wanted

    return wait_for(f"{handler} served", probe, 60)


def wait_changed(cluster: Cluster, handler: str, old: str) -> str:
    """The digest, once it is another one and served."""

    def probe() -> str | None:
        digest = wait_served(cluster, handler)
        return digest if digest != old else None

    return wait_for("another revision", probe, 60)


def test_a_changed_profile_is_for_new_containers_and_old_ones_are_stale(
    cluster: Cluster, namespace: str, handler: str
) -> None:
    pid = cluster.pid("noderuntime")
    first = wait_served(cluster, handler)
    cluster.apply(pods.pod("old", pods.busybox("sleep", "100000", **pods.AS_USER), handler=handler),
                  namespace=namespace)  # fmt: skip
    cluster.wait_ready("old", namespace)
    cluster.exec("old", "touch", "/tmp/file", namespace=namespace)  # the root is writable

    cluster.apply(profile(handler, rootFilesystem="ReadOnly"))
    wait_changed(cluster, handler, first)
    cluster.apply(pods.pod("new", pods.busybox("sleep", "100000", **pods.AS_USER), handler=handler),
                  namespace=namespace)  # fmt: skip
    cluster.wait_ready("new", namespace)
    refused = cluster.kubectl.run("exec", "-n", namespace, "new", "--", "touch", "/tmp/file")
    assert "Read-only file system" in refused.stderr
    cluster.exec("old", "touch", "/tmp/again", namespace=namespace)

    def stale() -> bool:
        listed = state(cluster)["status"].get("staleContainers", [])
        return f"{namespace}/old/main" in listed and f"{namespace}/new/main" not in listed

    wait_for("the old container listed as stale", stale, 60)
    assert cluster.pid("noderuntime") == pid


def test_the_status_says_what_is_true(cluster: Cluster, handler: str) -> None:
    def conditions() -> dict[str, str]:
        found = cluster.api.get("noderuntime", handler)
        assert found
        status = found["status"]
        assert status["observedGeneration"] == found["metadata"]["generation"]
        return {c["type"]: c["status"] for c in status["conditions"]}

    wait_for("Ready", lambda: conditions().get("Ready") == "True", 60)
    table = cluster.kubectl("get", "nrt", handler)
    assert handler in table
    klass = cluster.api.get("runtimeclass", handler)
    assert klass
    assert klass["handler"] == handler


def test_a_revision_that_is_not_valid_fails_closed_until_the_agent_mends_it(
    cluster: Cluster, namespace: str, handler: str
) -> None:
    """Somebody edits the file on a node that nobody looks after: its handlers are refused."""
    cluster.kubectl("scale", "deployment", *OPERATOR, "--replicas=0")
    wait_for("the operator gone", lambda: not pods_of(cluster, "noderuntime-operator"))
    cluster.kubectl("delete", "daemonset", "-n", SYSTEM, "noderuntime-agent")
    wait_for("the agent gone", lambda: not pods_of(cluster, "noderuntime-agent"))
    try:
        file = RUNTIME_ETC / "current"
        revision = json.loads(file.read_text())
        revision["handlers"][0]["profile"]["spec"]["privileged"] = "Allow"  # the digest is another
        file.write_text(json.dumps(revision))
        cluster.apply(
            pods.pod("closed", pods.busybox("sleep", "100000", **pods.AS_USER), handler=handler),
            namespace=namespace,
        )
        cluster.wait_event("closed", handler, "not served", "digest", namespace=namespace)
    finally:
        cluster.kubectl("scale", "deployment", *OPERATOR, "--replicas=1")
    cluster.wait_ready("closed", namespace, limit_s=120)


def pods_of(cluster: Cluster, start: str) -> list[str]:
    names: list[str] = [pod["metadata"]["name"] for pod in cluster.api.list("pod", SYSTEM)]
    return [name for name in names if name.startswith(start)]
