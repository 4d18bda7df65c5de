"""Which admission policies the operator keeps, and how long."""

from __future__ import annotations

from typing import Any

import pytest

from noderuntime_operator.reconcile.plan import Kind
from tests.fakes.operator_cluster import (
    FakeCluster,
    assert_nothing_is_left,
    cluster_with_nodes,
    condition,
)

ENFORCED, AUDITED = "restricted.noderuntime.io", "restricted.audit.noderuntime.io"
KINDS = (Kind.ADMISSION_POLICY, Kind.ADMISSION_BINDING)


@pytest.fixture
def cluster() -> FakeCluster:
    made = cluster_with_nodes()
    made.runtime("restricted")
    made.settle()
    return made


def policy(cluster: FakeCluster, name: str = ENFORCED) -> Any:
    return cluster.of(Kind.ADMISSION_POLICY)[name]


def written(cluster: FakeCluster, name: str = ENFORCED) -> str:
    return str(policy(cluster, name)["spec"])


def test_a_handler_has_a_policy_and_its_binding_which_go_with_the_noderuntime(
    cluster: FakeCluster,
) -> None:
    for kind in KINDS:
        (name,) = cluster.names(kind)
        metadata = cluster.of(kind)[name]["metadata"]
        assert name == ENFORCED
        assert metadata["labels"]["noderuntime.io/handler"] == "restricted"
        assert [each["name"] for each in metadata["ownerReferences"]] == ["restricted"]
    cluster.delete(Kind.NODE_RUNTIME, "restricted")
    cluster.settle()
    assert_nothing_is_left(cluster)


def test_the_policy_stays_while_pods_use_a_deleted_noderuntime(cluster: FakeCluster) -> None:
    cluster.pod("shop/web", node="n1")
    cluster.delete(Kind.NODE_RUNTIME, "restricted")
    cluster.settle()
    assert "ownerReferences" not in policy(cluster)["metadata"]
    cluster.delete("Pod", "shop/web")
    cluster.settle()
    assert_nothing_is_left(cluster)


def test_a_changed_profile_changes_the_policy(cluster: FakeCluster) -> None:
    assert "hostNamespaces has nothing" in written(cluster)
    cluster.edit(Kind.SECURITY_PROFILE, "web", hostNamespaces=["PID"])
    cluster.settle()
    assert "hostNamespaces has PID" in written(cluster)
    cluster.edit(Kind.SECURITY_PROFILE, "web", auditSections=["hostNamespaces"])
    cluster.settle()
    assert "hostNamespaces" not in written(cluster)
    assert "hostNamespaces has PID" in written(cluster, AUDITED)
    cluster.edit(Kind.SECURITY_PROFILE, "web", auditSections=[])
    cluster.settle()
    assert [cluster.names(kind) for kind in KINDS] == [[ENFORCED]] * 2


def test_a_policy_that_somebody_changed_or_deleted_is_put_right(cluster: FakeCluster) -> None:
    before = written(cluster)
    policy(cluster)["spec"]["validations"] = []
    cluster.delete(Kind.ADMISSION_BINDING, ENFORCED)
    cluster.settle()
    assert written(cluster) == before
    assert cluster.names(Kind.ADMISSION_BINDING) == [ENFORCED]


def test_a_stalled_profile_keeps_the_policy_as_nodes_keep_what_they_serve(
    cluster: FakeCluster,
) -> None:
    before = written(cluster)
    cluster.edit(Kind.SECURITY_PROFILE, "web", seccomp={"allow": [{"names": ["nosuchcall"]}]})
    cluster.settle()
    assert condition(cluster, "restricted", "Stalled")["status"] == "True"
    assert written(cluster) == before
    cluster.delete(Kind.SECURITY_PROFILE, "web")
    cluster.settle()
    assert written(cluster) == before


def test_pods_of_every_runtimeclass_with_the_handler_are_judged(cluster: FakeCluster) -> None:
    cluster.create(Kind.RUNTIME_CLASS, "alias", handler="restricted")
    cluster.create(Kind.RUNTIME_CLASS, "other", handler="other")
    cluster.settle()
    (found,) = policy(cluster)["spec"]["matchConditions"]
    assert found["expression"].endswith(' in ["alias", "restricted"]')


def test_an_exception_is_there_until_it_ends(cluster: FakeCluster) -> None:
    exception = {"namespace": "shop", "sections": ["runAs"], "expires": "2026-01-02T00:00:00Z"}
    cluster.edit(Kind.SECURITY_PROFILE, "web", exceptions=[exception], runAs={"nonRoot": True})
    cluster.settle()
    assert 'request.namespace == "shop"' in written(cluster)
    cluster.now = cluster.now.replace(day=3)
    cluster.settle()
    assert 'request.namespace == "shop"' not in written(cluster)


def test_without_admission_policies_the_noderuntime_is_ready_and_says_so() -> None:
    cluster = cluster_with_nodes()
    cluster.without_admission = "the API server does not serve them"
    cluster.runtime("restricted")
    cluster.settle()
    assert [cluster.names(kind) for kind in KINDS] == [[], []]
    told = condition(cluster, "restricted")
    assert (told["status"], told["reason"]) == ("True", "Served")
    assert told["message"] == (
        "served by 2 nodes; Pods are judged on nodes alone, as the API server does not serve them"
    )
