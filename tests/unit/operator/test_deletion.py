from __future__ import annotations

from datetime import timedelta

import pytest

from noderuntime_operator.reconcile.names import AGENT, EMPTIED_AT
from noderuntime_operator.reconcile.plan import Kind
from noderuntime_operator.reconcile.view import EMPTY
from tests.fakes.operator_cluster import (
    FakeCluster,
    assert_nothing_is_left,
    cluster_with_nodes,
    condition,
    handlers_of,
)


@pytest.fixture
def cluster() -> FakeCluster:
    return cluster_with_nodes()


def test_a_deleted_noderuntime_waits_for_the_pods_that_use_it(cluster: FakeCluster) -> None:
    cluster.runtime("restricted")
    cluster.settle()
    for number in range(7):
        cluster.pod(f"shop/web-{number}", node="n1")
    cluster.delete(Kind.NODE_RUNTIME, "restricted")
    cluster.settle()
    told = condition(cluster, "restricted", "Reconciling")
    assert (told["status"], told["reason"]) == ("True", "InUse")
    assert told["message"] == (
        "deleted, and waiting for 7 Pods that use handler restricted: shop/web-0, shop/web-1, shop/web-2, "
        "shop/web-3, shop/web-4 and 2 more; it goes when they are gone"
    )
    assert cluster.names(Kind.RUNTIME_CLASS) == ["restricted"]
    assert handlers_of(cluster, "n1") == {"restricted": "restricted"}
    assert cluster.run_pass().retry_s is not None
    for name in cluster.names("Pod"):
        cluster.delete("Pod", name)
    cluster.settle()
    assert_nothing_is_left(cluster)


def test_a_foreground_deletion_takes_the_runtimeclass_only_for_a_moment(
    cluster: FakeCluster,
) -> None:
    cluster.runtime("restricted")
    cluster.settle()
    cluster.pod("shop/web", node="n1")
    cluster.delete(Kind.NODE_RUNTIME, "restricted")
    cluster.delete(Kind.RUNTIME_CLASS, "restricted")  # the garbage collector
    cluster.settle()
    made = cluster.of(Kind.RUNTIME_CLASS)["restricted"]
    assert "ownerReferences" not in made["metadata"]


def test_pods_that_have_ended_hold_nothing_back(cluster: FakeCluster) -> None:
    cluster.runtime("restricted")
    cluster.settle()
    cluster.pod("shop/job", node="n1")
    cluster.of("Pod")["shop/job"]["status"] = {"phase": "Succeeded"}
    cluster.delete(Kind.NODE_RUNTIME, "restricted")
    cluster.settle()
    assert cluster.names(Kind.NODE_RUNTIME) == []


def test_pods_on_nodes_of_another_noderuntime_hold_nothing_back(cluster: FakeCluster) -> None:
    cluster.runtime("older", nodeSelector={"matchLabels": {"pool": "web"}})
    cluster.runtime("younger")
    cluster.settle()
    cluster.pod("shop/elsewhere", node="n2")
    cluster.pod("shop/pending")
    cluster.delete(Kind.NODE_RUNTIME, "older")
    cluster.settle()
    assert cluster.names(Kind.NODE_RUNTIME) == ["younger"]
    assert cluster.names(Kind.RUNTIME_CLASS) == ["restricted"]


def test_pods_of_another_runtimeclass_with_the_handler_count(cluster: FakeCluster) -> None:
    cluster.create(Kind.RUNTIME_CLASS, "alias", handler="restricted")
    cluster.runtime("restricted")
    cluster.settle()
    cluster.pod("shop/web", node="n1", runtime_class="alias")
    cluster.delete(Kind.NODE_RUNTIME, "restricted")
    cluster.settle()
    assert "shop/web" in condition(cluster, "restricted", "Reconciling")["message"]


def test_a_pod_that_comes_while_the_runtimeclass_goes_brings_it_back(cluster: FakeCluster) -> None:
    cluster.runtime("restricted")
    cluster.settle()
    cluster.delete(Kind.NODE_RUNTIME, "restricted")
    cluster.run_pass()
    assert cluster.names(Kind.RUNTIME_CLASS) == []
    cluster.pod("shop/late", node="n1")
    cluster.settle()
    assert cluster.names(Kind.RUNTIME_CLASS) == ["restricted"]
    assert cluster.names(Kind.NODE_RUNTIME) == ["restricted"]


# Nodes that are to serve nothing any more


def test_a_node_that_no_longer_matches_is_emptied_then_forgotten(cluster: FakeCluster) -> None:
    cluster.runtime("restricted", nodeSelector={"matchLabels": {"pool": "web"}})
    cluster.settle()
    cluster.of("Node")["n1"]["metadata"]["labels"] = {}
    cluster.run_pass()
    state = cluster.of(Kind.STATE)["n1"]
    assert state["spec"]["revision"]["digest"] == EMPTY.digest
    assert EMPTIED_AT in state["metadata"]["annotations"]
    affinity = cluster.of(Kind.DAEMON_SET)[AGENT]["spec"]["template"]["spec"]["affinity"]
    terms = affinity["nodeAffinity"]["requiredDuringSchedulingIgnoredDuringExecution"]
    cluster.run_pass()
    assert cluster.names(Kind.STATE) == ["n1"]
    assert terms  # the agent stays until it has reported, see the next test
    cluster.agents_report()
    cluster.run_pass()
    assert cluster.names(Kind.STATE) == []


def test_the_agent_stays_on_a_node_until_it_is_emptied(cluster: FakeCluster) -> None:
    cluster.runtime("restricted", nodeSelector={"matchLabels": {"pool": "web"}})
    cluster.settle()
    cluster.of("Node")["n1"]["metadata"]["labels"] = {}
    cluster.run_pass()
    spec = cluster.of(Kind.DAEMON_SET)[AGENT]["spec"]["template"]["spec"]
    terms = spec["affinity"]["nodeAffinity"]["requiredDuringSchedulingIgnoredDuringExecution"]
    assert terms["nodeSelectorTerms"] == [
        {"matchExpressions": [{"key": "pool", "operator": "In", "values": ["web"]}]},
        {"matchFields": [{"key": "metadata.name", "operator": "In", "values": ["n1"]}]},
    ]


def test_a_node_whose_agent_is_away_is_forgotten_after_two_minutes(cluster: FakeCluster) -> None:
    cluster.runtime("restricted")
    cluster.settle()
    cluster.delete(Kind.NODE_RUNTIME, "restricted")
    for _ in range(3):
        cluster.run_pass()
    assert cluster.names(Kind.STATE) == ["n1", "n2"]
    cluster.now += timedelta(seconds=110)
    cluster.run_pass()
    assert cluster.names(Kind.STATE) == ["n1", "n2"]
    cluster.now += timedelta(seconds=10)
    cluster.run_pass()
    cluster.run_pass()
    assert_nothing_is_left(cluster)


def test_a_node_that_matches_again_is_not_forgotten(cluster: FakeCluster) -> None:
    cluster.runtime("restricted", nodeSelector={"matchLabels": {"pool": "web"}})
    cluster.settle()
    cluster.of("Node")["n1"]["metadata"]["labels"] = {}
    cluster.run_pass()
    cluster.of("Node")["n1"]["metadata"]["labels"] = {"pool": "web"}
    cluster.settle()
    assert handlers_of(cluster, "n1") == {"restricted": "restricted"}
    assert EMPTIED_AT not in cluster.of(Kind.STATE)["n1"]["metadata"].get("annotations", {})


def test_the_state_of_a_node_that_is_gone_goes(cluster: FakeCluster) -> None:
    cluster.runtime("restricted")
    cluster.settle()
    cluster.delete("Node", "n2")
    cluster.settle()
    assert cluster.names(Kind.STATE) == ["n1"]
