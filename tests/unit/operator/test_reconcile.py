from __future__ import annotations

from datetime import timedelta
from typing import Any

import pytest

from noderuntime_operator.reconcile.names import AGENT, FINALIZER
from noderuntime_operator.reconcile.plan import Apply, Kind
from noderuntime_operator.reconcile.steps import KEPT_REVISIONS
from tests.fakes.operator_cluster import (
    SETTINGS,
    FakeCluster,
    cluster_with_nodes,
    condition,
    handlers_of,
)

Json = dict[str, Any]


@pytest.fixture
def cluster() -> FakeCluster:
    return cluster_with_nodes()


def test_a_noderuntime_gets_all_that_belongs_to_it(cluster: FakeCluster) -> None:
    cluster.runtime("restricted", nodeSelector={"matchLabels": {"pool": "web"}})
    cluster.settle()
    assert cluster.of(Kind.NODE_RUNTIME)["restricted"]["metadata"]["finalizers"] == [FINALIZER]
    assert cluster.names(Kind.RUNTIME_CLASS) == ["restricted"]
    assert cluster.names(Kind.DAEMON_SET) == [AGENT]
    assert cluster.names(Kind.STATE) == ["n1"]
    assert handlers_of(cluster, "n1") == {"restricted": "restricted"}
    status = cluster.of(Kind.NODE_RUNTIME)["restricted"]["status"]
    assert status["nodes"] == {
        "matched": 1,
        "served": 1,
        "pending": 0,
        "conflicting": 0,
        "stale": 0,
    }
    assert (status["observedGeneration"], status["servedNodes"]) == (1, "1/1")
    assert [condition(cluster, "restricted", kind)["status"] for kind in _KINDS] == [
        "True",
        "False",
        "False",
    ]


_KINDS = ("Ready", "Reconciling", "Stalled")


def test_a_second_pass_writes_nothing(cluster: FakeCluster) -> None:
    cluster.runtime("restricted", resources={"overhead": {"cpu": "1000m", "memory": "1Gi"}})
    cluster.settle()
    # as the API server writes quantities
    cluster.of(Kind.RUNTIME_CLASS)["restricted"]["overhead"]["podFixed"]["cpu"] = "1"
    cluster.now += timedelta(hours=1)
    assert cluster.run_pass().actions == ()


def test_the_finalizer_comes_before_all_else(cluster: FakeCluster) -> None:
    cluster.runtime("restricted")
    first = cluster.run_pass().actions[0]
    assert isinstance(first, Apply)
    assert first.body["metadata"]["finalizers"] == [FINALIZER]


def test_a_revision_is_published_before_a_node_is_told(cluster: FakeCluster) -> None:
    cluster.runtime("restricted")
    kinds = [action.kind for action in cluster.run_pass().actions]
    assert kinds.index(Kind.REVISION) < kinds.index(Kind.STATE)


# Profiles that are missing


def test_a_lost_revision_is_not_replaced_by_a_part_of_it(cluster: FakeCluster) -> None:
    cluster.profile("other")
    cluster.runtime("restricted")
    cluster.runtime("free", "free", securityProfileRef={"name": "other"})
    cluster.settle()
    before = cluster.of(Kind.STATE)["n1"]["spec"]
    cluster.delete(Kind.SECURITY_PROFILE, "web")
    cluster.of(Kind.REVISION).clear()
    cluster.run_pass()
    assert cluster.of(Kind.STATE)["n1"]["spec"] == before


def test_a_spec_that_cannot_be_read_keeps_what_nodes_serve(cluster: FakeCluster) -> None:
    cluster.runtime("restricted")
    cluster.settle()
    before = cluster.of(Kind.STATE)["n1"]["spec"]
    cluster.edit(Kind.NODE_RUNTIME, "restricted", fieldOfTheFuture=True)
    cluster.settle()
    assert cluster.of(Kind.STATE)["n1"]["spec"] == before
    assert cluster.names(Kind.RUNTIME_CLASS) == ["restricted"]
    stalled = condition(cluster, "restricted", "Stalled")
    assert (stalled["reason"], "fieldOfTheFuture" in stalled["message"]) == ("InvalidSpec", True)


# Conflicts


def test_the_older_of_two_with_one_handler_wins(cluster: FakeCluster) -> None:
    cluster.runtime("older", nodeSelector={"matchLabels": {"pool": "web"}})
    cluster.runtime("younger")
    cluster.settle()
    assert handlers_of(cluster, "n1") == {"restricted": "older"}
    assert handlers_of(cluster, "n2") == {"restricted": "younger"}
    stalled = condition(cluster, "younger", "Stalled")
    assert (stalled["status"], stalled["reason"]) == ("True", "HandlerConflict")
    assert (
        "served by the older NodeRuntime older on 1 node that this one selects too: n1"
        in stalled["message"]
    )
    assert condition(cluster, "older")["status"] == "True"


def test_the_younger_takes_over_when_the_older_goes(cluster: FakeCluster) -> None:
    cluster.runtime("older")
    cluster.runtime("younger")
    cluster.settle()
    cluster.delete(Kind.NODE_RUNTIME, "older")
    cluster.settle()
    assert cluster.names(Kind.NODE_RUNTIME) == ["younger"]
    assert handlers_of(cluster, "n1") == {"restricted": "younger"}
    assert condition(cluster, "younger")["status"] == "True"
    assert (
        cluster.of(Kind.RUNTIME_CLASS)["restricted"]["metadata"]["labels"][
            "noderuntime.io/node-runtime"
        ]
        == "younger"
    )


# Pods that name no handler


def default_of(cluster: FakeCluster, node: str) -> Json | None:
    """Return the default of the revision that the node is to serve."""
    name = cluster.of(Kind.STATE)[node]["spec"]["revision"]["name"]
    found: Json | None = cluster.of(Kind.REVISION)[name]["data"].get("default")
    return found


def test_a_default_goes_to_the_nodes_with_our_own_namespace_exempt(cluster: FakeCluster) -> None:
    cluster.runtime("restricted", default={"exemptNamespaces": ["kube-system"]})
    cluster.runtime("other", handler="other")
    cluster.settle()
    exempt = sorted(["kube-system", SETTINGS.namespace])
    assert default_of(cluster, "n1") == {"handler": "restricted", "exemptNamespaces": exempt}
    assert "governs Pods that name no handler" in condition(cluster, "restricted")["message"]
    assert "governs" not in condition(cluster, "other")["message"]
    cluster.edit(Kind.NODE_RUNTIME, "restricted", default=None)
    cluster.settle()
    assert default_of(cluster, "n1") is None


def test_the_older_of_two_defaults_on_a_node_wins(cluster: FakeCluster) -> None:
    cluster.runtime("older", nodeSelector={"matchLabels": {"pool": "web"}}, default={})
    cluster.runtime("younger", handler="other", default={})
    cluster.settle()
    assert (default_of(cluster, "n1") or {})["handler"] == "restricted"
    assert (default_of(cluster, "n2") or {})["handler"] == "other"
    assert handlers_of(cluster, "n1") == {"restricted": "older", "other": "younger"}
    stalled = condition(cluster, "younger", "Stalled")
    assert (stalled["status"], stalled["reason"]) == ("True", "DefaultConflict")
    assert (
        "Pods that name no handler are governed by the older NodeRuntime older on 1 node that "
        "this one selects too: n1" in stalled["message"]
    )
    assert condition(cluster, "older")["status"] == "True"
    cluster.delete(Kind.NODE_RUNTIME, "older")
    cluster.settle()
    assert (default_of(cluster, "n1") or {})["handler"] == "other"
    assert condition(cluster, "younger")["status"] == "True"


def test_a_default_is_kept_while_its_profile_cannot_be_had(cluster: FakeCluster) -> None:
    cluster.runtime("restricted", default={"exemptNamespaces": ["a"]})
    cluster.settle()
    before = default_of(cluster, "n1")
    assert before is not None
    ref = {"name": "gone"}
    cluster.edit(Kind.NODE_RUNTIME, "restricted", securityProfileRef=ref, default={})
    cluster.runtime("other", handler="other")  # another revision is composed meanwhile
    cluster.settle()
    assert handlers_of(cluster, "n1") == {"restricted": "restricted", "other": "other"}
    assert default_of(cluster, "n1") == before


def test_two_with_one_handler_on_different_nodes_share_the_runtimeclass(
    cluster: FakeCluster,
) -> None:
    cluster.node("n3", pool="db", zone="a")
    cluster.runtime("web", nodeSelector={"matchLabels": {"pool": "web", "os": "linux"}})
    cluster.runtime("db", nodeSelector={"matchLabels": {"pool": "db", "os": "linux"}})
    cluster.settle()
    made = cluster.of(Kind.RUNTIME_CLASS)["restricted"]
    assert made["scheduling"] == {"nodeSelector": {"os": "linux"}}


# The RuntimeClass


def test_a_runtimeclass_says_overhead_and_where_to_run(cluster: FakeCluster) -> None:
    cluster.runtime(
        "restricted",
        nodeSelector={"matchLabels": {"pool": "web"}},
        resources={"overhead": {"memory": "8Mi"}},
    )
    cluster.settle()
    made = cluster.of(Kind.RUNTIME_CLASS)["restricted"]
    assert made["handler"] == "restricted"
    assert made["overhead"] == {"podFixed": {"memory": "8Mi"}}
    assert made["scheduling"] == {"nodeSelector": {"pool": "web"}}
    assert made["metadata"]["ownerReferences"][0]["name"] == "restricted"


def test_a_field_that_is_taken_away_goes_from_the_runtimeclass(cluster: FakeCluster) -> None:
    cluster.runtime("restricted", resources={"overhead": {"memory": "8Mi"}})
    cluster.settle()
    cluster.edit(Kind.NODE_RUNTIME, "restricted", resources={})
    cluster.settle()
    assert "overhead" not in cluster.of(Kind.RUNTIME_CLASS)["restricted"]


@pytest.mark.parametrize("kind", [Kind.RUNTIME_CLASS, Kind.DAEMON_SET, Kind.STATE, Kind.REVISION])
def test_what_somebody_deletes_is_made_again(cluster: FakeCluster, kind: Kind) -> None:
    cluster.runtime("restricted")
    cluster.settle()
    before = cluster.names(kind)
    for name in before:
        cluster.delete(kind, name)
    cluster.settle()
    assert cluster.names(kind) == before


def test_a_runtimeclass_of_somebody_else_is_left_alone(cluster: FakeCluster) -> None:
    cluster.create(Kind.RUNTIME_CLASS, "restricted", handler="runsc")
    cluster.runtime("restricted")
    cluster.settle()
    assert cluster.of(Kind.RUNTIME_CLASS)["restricted"]["handler"] == "runsc"
    stalled = condition(cluster, "restricted", "Stalled")
    assert (stalled["reason"], stalled["status"]) == ("RuntimeClassConflict", "True")
    cluster.delete(Kind.NODE_RUNTIME, "restricted")
    cluster.settle()
    assert cluster.names(Kind.NODE_RUNTIME) == []
    assert cluster.names(Kind.RUNTIME_CLASS) == ["restricted"]


# Revisions


def test_old_revisions_are_collected_and_ten_are_kept(cluster: FakeCluster) -> None:
    cluster.runtime("restricted")
    for number in range(KEPT_REVISIONS + 5):
        cluster.edit(Kind.NODE_RUNTIME, "restricted", resources={"pidsLimit": number + 1})
        cluster.settle()
    kept = sorted(
        each["data"]["handlers"][0]["resources"]["pidsLimit"]
        for each in cluster.of(Kind.REVISION).values()
    )
    assert kept == list(range(KEPT_REVISIONS + 5 - KEPT_REVISIONS, KEPT_REVISIONS + 6))


def test_nodes_with_the_same_handlers_share_a_revision(cluster: FakeCluster) -> None:
    cluster.runtime("restricted")
    cluster.settle()
    assert len(cluster.names(Kind.REVISION)) == 1


# Profiles that inherit
