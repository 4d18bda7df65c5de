"""SecurityProfiles in the plan: missing, inherited, looser than their base, impossible."""

from __future__ import annotations

from typing import Any

import pytest

from noderuntime_operator.reconcile.plan import Kind
from tests.fakes.operator_cluster import FakeCluster, cluster_with_nodes, condition, handlers_of

Json = dict[str, Any]


@pytest.fixture
def cluster() -> FakeCluster:
    return cluster_with_nodes()


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


def test_a_profile_says_who_uses_it(cluster: FakeCluster) -> None:
    cluster.runtime("restricted")
    cluster.settle()
    status = cluster.of(Kind.SECURITY_PROFILE)["web"]["status"]
    assert status["usedBy"] == ["restricted"]
    assert status["conditions"][0]["reason"] == "InUse"
    cluster.delete(Kind.NODE_RUNTIME, "restricted")
    cluster.settle()
    assert "usedBy" not in cluster.of(Kind.SECURITY_PROFILE)["web"]["status"]


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
