"""A NodeRuntime with ``default`` governs the Pods that name no handler, but in exempt namespaces."""

from __future__ import annotations

import json
import re
import uuid
from collections.abc import Iterator
from typing import Any

import pytest

from e2e.cluster.layout import NAMESPACE, RUNTIME_STATE
from e2e.framework import pods
from e2e.framework.cluster import Cluster
from e2e.framework.waiting import wait_for

Json = dict[str, Any]


def status_of(cluster: Cluster) -> Json:
    """What the node's agent has reported of the revision that the node is to serve."""
    found = cluster.api.get("noderuntimestate", cluster.node)
    assert found
    status: Json = found["status"]
    assert status["revision"]["digest"] == found["spec"]["revision"]["digest"], found
    return status


@pytest.fixture
def governed(cluster: Cluster, namespace: str) -> Iterator[str]:
    """The namespace of the test, alone governed by a NodeRuntime of that name; all others exempt."""
    others = {each["metadata"]["name"] for each in cluster.api.list("namespace")} - {namespace}
    name = f"default-{uuid.uuid4().hex[:6]}"
    head: Json = {"apiVersion": "noderuntime.io/v1alpha1", "metadata": {"name": name}}
    profile = head | {"kind": "SecurityProfile", "spec": {"runAs": {"nonRoot": True}}}
    runtime = head | {
        "kind": "NodeRuntime",
        "spec": {
            "handler": name,
            "securityProfileRef": {"name": name},
            "default": {"exemptNamespaces": sorted(others - {NAMESPACE})},  # ours is so by itself
        },
    }
    cluster.apply(profile, runtime)
    wait_for(f"{name} served", lambda: name in status_of(cluster)["handlers"], 60)
    yield name
    cluster.kubectl("delete", "noderuntime,securityprofile", name, "--wait=false")
    wait_for(f"{name} gone", lambda: name not in status_of(cluster)["handlers"], 60)


def fields_of(cluster: Cluster, name: str, namespace: str) -> dict[str, str]:
    status = cluster.exec(name, "cat", "/proc/1/status", namespace=namespace)
    return dict(re.findall(r"^(\w+):\t(\S+)", status, re.MULTILINE))


def test_pods_that_name_no_handler_are_governed_but_in_exempt_namespaces(
    cluster: Cluster, namespace: str, governed: str
) -> None:
    before = status_of(cluster)["ungovernedPods"]
    exempt = f"exempt-{uuid.uuid4().hex[:6]}"
    try:
        cluster.apply(pods.pod(exempt), namespace="default")
        cluster.apply(
            pods.pod("plain", pods.busybox("sleep", "100000", **pods.AS_USER)),
            pods.pod("rooted"),
            namespace=namespace,
        )
        cluster.wait_ready("plain", namespace)
        fields = fields_of(cluster, "plain", namespace)
        assert (fields["NoNewPrivs"], fields["Seccomp"], int(fields["CapBnd"], 16)) == ("1", "2", 0)
        cluster.wait_event("rooted", "runAs.nonRoot is true", namespace=namespace)
        cluster.wait_ready(exempt)
        assert int(fields_of(cluster, exempt, "default")["CapBnd"], 16) != 0

        def is_counted() -> bool:
            return bool(status_of(cluster)["ungovernedPods"] == before + 1)

        wait_for("the count of ungoverned Pods", is_counted, 30)
        lines = (RUNTIME_STATE / "decisions" / "decisions.log").read_text().splitlines()
        mine = [line for line in map(json.loads, lines) if line.get("namespace") == namespace]
        assert {line["nodeRuntime"] for line in mine} == {governed}
        verdicts = {(line["pod"], line["verb"], line["verdict"]) for line in mine}
        assert ("rooted", "CreateContainer", "Denied") in verdicts
        assert ("plain", "Exec", "Allowed") in verdicts
    finally:
        cluster.kubectl("delete", "pod", exempt, "--wait=false", "--ignore-not-found")
