"""What the status of a NodeRuntime says: conditions, counts, and what nodes told."""

from __future__ import annotations

from typing import Any

import pytest

from noderuntime_operator.reconcile.plan import Kind
from tests.fakes.operator_cluster import FakeCluster, cluster_with_nodes, condition

Json = dict[str, Any]


@pytest.fixture
def cluster() -> FakeCluster:
    return cluster_with_nodes()


def test_until_the_agents_report_it_is_reconciling_and_names_the_nodes(
    cluster: FakeCluster,
) -> None:
    cluster.runtime("restricted")
    cluster.run_pass()
    assert condition(cluster, "restricted")["status"] == "False"
    assert condition(cluster, "restricted", "Reconciling")["status"] == "True"
    message = condition(cluster, "restricted")["message"]
    assert message == (
        "served by 0 of 2 nodes; waiting for n1 (its agent has not reported), n2 (its agent has not reported)"
    )


def test_what_an_agent_says_is_in_the_message(cluster: FakeCluster) -> None:
    cluster.runtime("restricted", nodeSelector={"matchLabels": {"pool": "web"}})
    cluster.run_pass()
    ready = {
        "type": "Ready",
        "status": "False",
        "reason": "RevisionRefused",
        "message": "the digest is wrong",
        "lastTransitionTime": "2026-01-01T00:00:00Z",
    }
    cluster.of(Kind.STATE)["n1"]["status"] = {"observedGeneration": 1, "conditions": [ready]}
    cluster.run_pass()
    assert "n1 (the digest is wrong)" in condition(cluster, "restricted")["message"]


def test_an_edit_is_rolled_out_and_counts_as_reconciling_until_it_is_served(
    cluster: FakeCluster,
) -> None:
    cluster.runtime("restricted")
    cluster.settle()
    before = cluster.of(Kind.STATE)["n1"]["spec"]["revision"]["name"]
    cluster.edit(Kind.SECURITY_PROFILE, "web", rootFilesystem="ReadOnly")
    cluster.run_pass()
    assert cluster.of(Kind.STATE)["n1"]["spec"]["revision"]["name"] != before
    assert condition(cluster, "restricted", "Reconciling")["status"] == "True"
    cluster.settle()
    assert condition(cluster, "restricted")["status"] == "True"
    assert cluster.of(Kind.NODE_RUNTIME)["restricted"]["status"]["profileGeneration"] == 2


def test_system_calls_that_a_node_cannot_filter_are_told(cluster: FakeCluster) -> None:
    cluster.runtime("restricted")
    cluster.settle()
    cluster.of(Kind.STATE)["n1"]["status"]["unknownSyscalls"] = [
        {"handler": "other", "names": ["listns"]},
        {"handler": "restricted", "names": ["mseal"]},
    ]
    cluster.run_pass()
    told = condition(cluster, "restricted")
    assert told["status"] == "True"
    assert "libseccomp of 1 node does not know mseal: the filter refuses" in told["message"]


def test_a_handler_that_waits_for_its_artifact_is_reconciling(cluster: FakeCluster) -> None:
    cluster.runtime("restricted")
    cluster.settle()
    status = cluster.of(Kind.STATE)["n1"]["status"]
    status["handlers"] = []
    withheld = {"name": "restricted", "reason": "ArtifactMissing", "message": "no such host"}
    status["withheldHandlers"] = [withheld]
    cluster.run_pass()
    told = condition(cluster, "restricted", "Reconciling")
    assert (told["status"], told["reason"]) == ("True", "ArtifactMissing")
    assert "not offered by n1 (no such host)" in told["message"]
    assert condition(cluster, "restricted")["status"] == "False"
    assert condition(cluster, "restricted", "Stalled")["status"] == "False"


def test_a_node_that_cannot_offer_the_handler_stalls_it_with_what_is_missing(
    cluster: FakeCluster,
) -> None:
    cluster.runtime("restricted")
    cluster.runtime("other", handler="other")
    cluster.settle()
    status = cluster.of(Kind.STATE)["n1"]["status"]
    status["handlers"] = ["other"]
    withheld = {"name": "restricted", "reason": "MissingFeature", "message": "no AppArmor here"}
    status["withheldHandlers"] = [withheld]
    cluster.run_pass()
    stalled = condition(cluster, "restricted", "Stalled")
    assert (stalled["status"], stalled["reason"]) == ("True", "MissingFeature")
    assert "served by 1 of 2 nodes; not offered by n1 (no AppArmor here)" in stalled["message"]
    assert condition(cluster, "restricted")["status"] == "False"
    assert condition(cluster, "other")["status"] == "True"
    status["handlers"], status["withheldHandlers"] = ["other", "restricted"], []
    cluster.run_pass()
    assert condition(cluster, "restricted")["status"] == "True"


def test_stale_containers_are_counted(cluster: FakeCluster) -> None:
    cluster.runtime("restricted")
    cluster.settle()
    cluster.of(Kind.STATE)["n1"]["status"]["staleContainers"] = ["default/web/web"]
    cluster.run_pass()
    status = cluster.of(Kind.NODE_RUNTIME)["restricted"]["status"]
    assert status["nodes"]["stale"] == 1
    assert (
        "1 node with containers of an earlier revision"
        in condition(cluster, "restricted")["message"]
    )


def test_pods_that_run_ungoverned_are_summed_over_the_matched_nodes(cluster: FakeCluster) -> None:
    cluster.node("n2", pool="web")
    cluster.node("n3", pool="other")
    cluster.runtime("restricted", nodeSelector={"matchLabels": {"pool": "web"}})
    cluster.runtime("other", handler="other", nodeSelector={"matchLabels": {"pool": "other"}})
    cluster.settle()
    for node, pods in (("n2", 3), ("n3", 100)):
        cluster.of(Kind.STATE)[node]["status"]["ungovernedPods"] = pods
    cluster.run_pass()
    status = cluster.of(Kind.NODE_RUNTIME)["restricted"]["status"]
    assert status["ungovernedPods"] == 3


def test_a_selector_that_matches_nothing_is_ready_and_says_so(cluster: FakeCluster) -> None:
    cluster.runtime("restricted", nodeSelector={"matchLabels": {"pool": "none"}})
    cluster.settle()
    ready = condition(cluster, "restricted")
    assert (ready["status"], ready["reason"]) == ("True", "NoMatchingNodes")


def test_a_condition_keeps_its_time_while_its_status_stays(cluster: FakeCluster) -> None:
    cluster.runtime("restricted", nodeSelector={"matchLabels": {"pool": "none"}})
    cluster.settle()
    before = condition(cluster, "restricted")
    cluster.node("n3", pool="none")
    cluster.settle()
    after = condition(cluster, "restricted")
    assert before["reason"] != after["reason"]
    assert (
        condition(cluster, "restricted", "Stalled")["lastTransitionTime"]
        == before["lastTransitionTime"]
    )
