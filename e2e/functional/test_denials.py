"""What the profile does not allow does not start, and `kubectl describe` says why in one sentence."""

from __future__ import annotations

from typing import Any

import pytest

from e2e.framework import pods
from e2e.framework.cluster import Cluster

Json = dict[str, Any]


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
def test_a_pod_that_asks_for_more_is_refused_with_its_sentence(
    cluster: Cluster, namespace: str, containers: list[Json], spec: Json, words: tuple[str, ...]
) -> None:
    asked = pods.pod("greedy", *containers, handler="restricted", **spec)
    cluster.apply(asked, namespace=namespace)
    event = cluster.wait_event("greedy", *words, "SecurityProfile", namespace=namespace)
    assert "\n" not in event
    described = cluster.kubectl("describe", "pod", "-n", namespace, "greedy")
    assert all(word in described for word in words)
    states = cluster.pod("greedy", namespace)["status"].get("containerStatuses", [])
    assert not any("running" in state["state"] or state.get("started") for state in states)
