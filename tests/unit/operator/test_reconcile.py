from __future__ import annotations

from datetime import timedelta
from typing import Any

import pytest

from noderuntime_operator.reconcile.names import AGENT, FINALIZER
from noderuntime_operator.reconcile.plan import Apply, Kind
from noderuntime_operator.reconcile.steps import KEPT_REVISIONS
from tests.fakes.operator_cluster import FakeCluster, cluster_with_nodes, condition, handlers_of

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


# Profiles that are missing


def test_without_its_profile_it_is_stalled_and_serves_nothing(cluster: FakeCluster) -> None:
    cluster.delete(Kind.SECURITY_PROFILE, "web")
    cluster.runtime("restricted")
    cluster.settle()
    stalled = condition(cluster, "restricted", "Stalled")
    assert (stalled["status"], stalled["reason"]) == ("True", "ProfileNotFound")
    assert "SecurityProfile web does not exist" in stalled["message"]
    assert cluster.names(Kind.STATE) == []


def test_when_its_profile_goes_nodes_keep_the_revision(cluster: FakeCluster) -> None:
    cluster.runtime("restricted")
    cluster.settle()
    before = cluster.of(Kind.STATE)["n1"]["spec"]
    cluster.delete(Kind.SECURITY_PROFILE, "web")
    cluster.settle()
    assert cluster.of(Kind.STATE)["n1"]["spec"] == before
    assert condition(cluster, "restricted", "Stalled")["reason"] == "ProfileNotFound"
    cluster.profile("web")
    cluster.settle()
    assert condition(cluster, "restricted")["status"] == "True"


def test_a_missing_profile_holds_only_its_own_handler_back(cluster: FakeCluster) -> None:
    cluster.profile("other")
    cluster.runtime("restricted")
    cluster.runtime("free", "free", securityProfileRef={"name": "other"})
    cluster.settle()
    cluster.delete(Kind.SECURITY_PROFILE, "web")
    cluster.edit(Kind.SECURITY_PROFILE, "other", privileged="Allow")
    cluster.settle()
    assert handlers_of(cluster, "n1") == {"restricted": "restricted", "free": "free"}
    assert condition(cluster, "free")["status"] == "True"


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


def test_a_profile_says_who_uses_it(cluster: FakeCluster) -> None:
    cluster.runtime("restricted")
    cluster.settle()
    status = cluster.of(Kind.SECURITY_PROFILE)["web"]["status"]
    assert status["usedBy"] == ["restricted"]
    assert status["conditions"][0]["reason"] == "InUse"
    cluster.delete(Kind.NODE_RUNTIME, "restricted")
    cluster.settle()
    assert "usedBy" not in cluster.of(Kind.SECURITY_PROFILE)["web"]["status"]


# Profiles that inherit


def test_nodes_get_a_profile_with_all_that_it_inherits(cluster: FakeCluster) -> None:
    cluster.profile("base", runAs={"nonRoot": True}, capabilities={"allow": ["KILL", "CHOWN"]})
    cluster.edit(Kind.SECURITY_PROFILE, "web", inherits="base", capabilities={"allow": ["KILL"]})
    cluster.runtime("restricted")
    cluster.settle()
    spec = served_profile(cluster)
    assert spec["inherits"] is None
    assert spec["runAs"]["nonRoot"] is True
    assert spec["capabilities"]["allow"] == ["KILL"]
    status = cluster.of(Kind.SECURITY_PROFILE)["base"]["status"]
    assert status["conditions"][0]["message"] == "inherited by web"
    cluster.edit(Kind.SECURITY_PROFILE, "base", rootFilesystem="ReadOnly")
    cluster.settle()
    assert served_profile(cluster)["rootFilesystem"] == "ReadOnly"


def served_profile(cluster: FakeCluster) -> Json:
    name = cluster.of(Kind.STATE)["n1"]["spec"]["revision"]["name"]
    data: Json = cluster.of(Kind.REVISION)[name]["data"]
    spec: Json = data["handlers"][0]["profile"]["spec"]
    return spec


def test_a_profile_that_is_looser_than_its_base_is_stalled_and_nodes_keep_what_they_have(
    cluster: FakeCluster,
) -> None:
    cluster.profile("base")
    cluster.runtime("restricted")
    cluster.settle()
    before = cluster.of(Kind.STATE)["n1"]["spec"]
    cluster.edit(Kind.SECURITY_PROFILE, "web", inherits="base", privileged="Allow")
    cluster.settle()
    assert cluster.of(Kind.STATE)["n1"]["spec"] == before
    ready, stalled = cluster.of(Kind.SECURITY_PROFILE)["web"]["status"]["conditions"]
    assert (ready["type"], ready["status"]) == ("Ready", "False")
    assert (stalled["type"], stalled["status"], stalled["reason"]) == (
        "Stalled",
        "True",
        "InheritanceInvalid",
    )
    assert "inherits base, which is tighter in privileged" in stalled["message"]
    told = condition(cluster, "restricted", "Stalled")
    assert (told["status"], told["reason"]) == ("True", "ProfileInvalid")
    assert "nodes keep what they serve" in told["message"]


@pytest.mark.parametrize(
    ("spec", "message"),
    [
        ({"inherits": "gone"}, "inherits: SecurityProfile gone does not exist"),
        ({"inherits": "web"}, "round in a circle: web -> web"),
        ({"capabilities": {"allow": ["NO_SUCH"]}}, "NO_SUCH is not a Linux capability"),
        (
            {"images": {"signatures": {"keys": ["k"]}}},
            "images.signatures: this version does not verify signatures",
        ),
    ],
)
def test_a_profile_that_no_node_could_serve_is_stalled(
    cluster: FakeCluster, spec: Json, message: str
) -> None:
    cluster.edit(Kind.SECURITY_PROFILE, "web", **spec)
    cluster.runtime("restricted")
    cluster.settle()
    stalled = cluster.of(Kind.SECURITY_PROFILE)["web"]["status"]["conditions"][1]
    assert stalled["status"] == "True"
    assert message in stalled["message"]
    assert message in condition(cluster, "restricted", "Stalled")["message"]
    assert cluster.names(Kind.STATE) == []
