"""What the profile does not allow does not start: `kubectl apply` says why, and so does the node, in one sentence."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import pytest

from e2e.framework import pods
from e2e.framework.cluster import Cluster
from e2e.framework.kube import KubectlError
from e2e.framework.waiting import wait_for

Json = dict[str, Any]
SYSTEM = "noderuntime-system"
BINDING = "restricted.noderuntime.io"


def secured(**context: object) -> Json:
    return pods.busybox(
        "sleep", "100000", securityContext={"runAsUser": 1000, "runAsGroup": 1000} | context
    )


def limited(**limits: str) -> Json:
    return secured() | {
        "resources": {"limits": limits, "requests": {"cpu": "10m", "memory": "8Mi"}}
    }


CASES = [
    pytest.param(
        [secured(capabilities={"add": ["SYS_ADMIN"]})],
        {},
        ("capabilities.add", "SYS_ADMIN"),
        id="capability",
    ),
    pytest.param([secured(privileged=True)], {}, ("privileged",), id="privileged"),
    pytest.param([secured()], {"hostPID": True}, ("hostPID",), id="host PID namespace"),
    pytest.param([secured()], {"hostIPC": True}, ("hostIPC",), id="host IPC namespace"),
    pytest.param([secured()], {"hostNetwork": True}, ("hostNetwork",), id="host network"),
    pytest.param([limited(memory="2Gi")], {}, ("memory", "2Gi", "512Mi"), id="too much memory"),
    pytest.param([limited(cpu="3")], {}, ("cpu", "2"), id="too much CPU"),
    pytest.param([secured(runAsUser=0)], {}, ("runAsUser",), id="root"),
    pytest.param(
        [secured() | {"image": "registry.example.com/other/image:1"}],
        {},
        ("image", "registry.example.com"),
        id="another registry",
    ),
    pytest.param(
        [secured() | {"volumeMounts": [{"name": "etc", "mountPath": "/host"}]}],
        {"volumes": [{"name": "etc", "hostPath": {"path": "/etc"}}]},
        ("hostPath", "/etc"),
        id="host path",
    ),
]


@pytest.mark.parametrize(("containers", "spec", "words"), CASES)
def test_a_pod_that_asks_for_more_is_refused_by_the_api_server_already(
    cluster: Cluster, namespace: str, containers: list[Json], spec: Json, words: tuple[str, ...]
) -> None:
    asked = pods.pod("greedy", *containers, handler="restricted", **spec)
    with pytest.raises(KubectlError) as refused:
        cluster.apply(asked, namespace=namespace)
    said = str(refused.value)
    assert all(word in said for word in (*words, "is refused by SecurityProfile")), said


@pytest.fixture(scope="module")
def without_admission(cluster: Cluster) -> Iterator[None]:
    """The API server lets everything through, as no operator keeps the policies; afterwards all is as before."""
    deployment = ("deployment/noderuntime-operator", "-n", SYSTEM)
    cluster.kubectl("scale", *deployment, "--replicas=0")
    try:
        cluster.kubectl("rollout", "status", *deployment, "--timeout=60s")
        wait_for("the operator gone", lambda: assert_no_operator(cluster))
        cluster.kubectl("delete", "validatingadmissionpolicybinding", BINDING)
        yield
    finally:
        cluster.kubectl("scale", *deployment, "--replicas=1")
        cluster.kubectl("rollout", "status", *deployment, "--timeout=60s")
        wait_for(
            "the binding again",
            lambda: cluster.kubectl("get", "validatingadmissionpolicybinding", BINDING),
        )


def assert_no_operator(cluster: Cluster) -> bool:
    names = [pod["metadata"]["name"] for pod in cluster.api.list("pod", SYSTEM)]
    assert not [name for name in names if name.startswith("noderuntime-operator")], names
    return True


@pytest.mark.usefixtures("without_admission")
@pytest.mark.parametrize(("containers", "spec", "words"), CASES)
def test_the_node_refuses_what_admission_let_through_with_its_sentence(
    cluster: Cluster, namespace: str, containers: list[Json], spec: Json, words: tuple[str, ...]
) -> None:
    asked = pods.pod("greedy", *containers, handler="restricted", **spec)

    def applied() -> bool:
        cluster.apply(asked, namespace=namespace)  # an error is "not yet"
        return True

    wait_for("admission lets it through", applied)
    event = cluster.wait_event("greedy", *words, "SecurityProfile", namespace=namespace)
    assert "\n" not in event
    described = cluster.kubectl("describe", "pod", "-n", namespace, "greedy")
    assert all(word in described for word in words)
    states = cluster.pod("greedy", namespace)["status"].get("containerStatuses", [])
    assert not any("running" in state["state"] or state.get("started") for state in states)
