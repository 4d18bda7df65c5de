"""Deleting says what it waits for, and ends."""

from __future__ import annotations

import itertools
import uuid
from functools import partial
from typing import Any

import pytest

from e2e.framework import pods
from e2e.framework.cluster import Cluster
from e2e.framework.waiting import wait_for

Json = dict[str, Any]


def declare(cluster: Cluster, name: str) -> None:
    common = {"apiVersion": "noderuntime.io/v1alpha1", "metadata": {"name": name}}
    cluster.apply(
        common | {"kind": "SecurityProfile", "spec": {}},
        common
        | {"kind": "NodeRuntime", "spec": {"handler": name, "securityProfileRef": {"name": name}}},
    )
    wait_for(f"{name} offered", lambda: name in offered(cluster), 60)


def offered(cluster: Cluster) -> set[str]:
    node = cluster.api.get("node", cluster.node)
    assert node
    return {handler.get("name", "") for handler in node["status"]["runtimeHandlers"]}


def test_a_noderuntime_that_pods_use_waits_and_says_for_whom(
    cluster: Cluster, namespace: str
) -> None:
    declare(cluster, "used")
    cluster.apply(pods.pod("user", pods.busybox("sleep", "100000", **pods.AS_USER), handler="used"),
                  namespace=namespace)  # fmt: skip
    cluster.wait_ready("user", namespace)
    cluster.kubectl("delete", "noderuntime", "used", "--wait=false")

    def says() -> bool:
        found = cluster.api.get("noderuntime", "used")
        assert found, "it went although a Pod uses it"
        texts = [condition["message"] for condition in found["status"]["conditions"]]
        assert any(f"{namespace}/user" in text for text in texts), texts
        return True

    wait_for("the reason", says)
    assert cluster.exec("user", "true", namespace=namespace) == ""
    cluster.kubectl("delete", "pod", "-n", namespace, "user", "--wait=true")
    wait_for("it gone", lambda: cluster.api.get("noderuntime", "used") is None, 60)
    wait_for("the RuntimeClass gone", lambda: cluster.api.get("runtimeclass", "used") is None, 60)
    wait_for("the handler gone", lambda: "used" not in offered(cluster), 60)
    cluster.kubectl("delete", "securityprofile", "used")


@pytest.mark.parametrize(
    "order", list(itertools.permutations(["noderuntime", "securityprofile", "pod"])), ids="-".join
)
def test_deleting_everything_in_any_order_ends(
    cluster: Cluster, namespace: str, order: tuple[str, ...]
) -> None:
    name = f"gone-{uuid.uuid4().hex[:6]}"
    declare(cluster, name)
    cluster.apply(
        pods.pod(name, pods.busybox("sleep", "100000", **pods.AS_USER), handler=name),
        namespace=namespace,
    )
    cluster.wait_ready(name, namespace)
    for kind in order:
        cluster.kubectl("delete", kind, name, "-n", namespace, "--wait=false")
    for kind in order:
        wait_for(f"{kind} gone", partial(is_gone, cluster, kind, name, namespace), 90)


def is_gone(cluster: Cluster, kind: str, name: str, namespace: str) -> bool:
    return cluster.api.get(kind, name, namespace) is None
