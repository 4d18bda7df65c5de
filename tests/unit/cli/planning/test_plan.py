"""``noderuntime plan`` on a cluster in memory: a change in files, and what becomes of the Pods."""

from __future__ import annotations

from typing import Any

import pytest

from noderuntime.cli import output, plan
from noderuntime.cli.explaining.judge import PodReport, judge
from noderuntime.cli.manifest.workloads import Workload
from noderuntime.cli.planning import compare
from noderuntime.cli.planning.cluster import Kind
from tests.fakes.planned_cluster import PlannedCluster
from tests.unit.cli.planning.plan_kit import (
    BINDS,
    USER,
    Json,
    Run,
    profile,
    runtime,
    told,
)


def test_the_same_as_the_cluster_touches_nothing(cluster: PlannedCluster, run: Run) -> None:
    cluster.replicas("shop", 3, container=BINDS)
    code, said = run(profile(), runtime())
    assert code == 0
    assert said["objects"] == []
    assert (told(said), said["exitCode"]) == ({"same": 3}, 0)


def test_a_hundred_replicas_are_judged_once_and_told_as_one(
    cluster: PlannedCluster, run: Run, monkeypatch: pytest.MonkeyPatch
) -> None:
    judged: list[str] = []

    def counting(workload: Workload, *rest: Any, **named: Any) -> PodReport:
        judged.append(workload.name)
        return judge(workload, *rest, **named)

    monkeypatch.setattr(compare, "judge", counting)
    cluster.replicas("shop", 120, container=BINDS)
    cluster.pod("alone", container=USER)
    code, said = run(profile(capabilities={"allow": []}))
    assert code == output.REFUSED
    assert told(said) == {"refused": 120, "same": 1}
    (group,) = said["pods"]
    assert (group["workload"], group["count"]) == ({"kind": "Deployment", "name": "shop"}, 120)
    assert len(judged) == 4
    assert group["examples"] == ["shop-5d9c-00000", "shop-5d9c-00001", "shop-5d9c-00002"]
    (denial,) = group["denials"]
    assert denial["field"] == "containers[main].securityContext.capabilities.add"
    assert denial["value"] == "NET_BIND_SERVICE"
    assert "capabilities.allow" in denial["remedy"]


def test_a_pod_that_would_run_otherwise_is_told_by_the_fields_of_its_config(
    cluster: PlannedCluster, run: Run
) -> None:
    cluster.pod("a", container=USER)
    code, said = run(profile(rootFilesystem="ReadOnly", capabilities={"default": ["CHOWN"]}))
    assert code == plan.CHANGED
    (group,) = said["pods"]
    changes = {each["field"]: (each["before"], each["after"]) for each in group["changes"]}
    assert changes["root.readonly"] == ("false", "true")
    assert changes["process.capabilities.bounding"] == ("", "+CAP_CHOWN")
    assert {each["field"] for each in said["objects"][1]["fields"]} == {
        "rootFilesystem",
        "capabilities.default",
        "capabilities.allow",
    }
    assert said["objects"][0]["change"] == "affected"
    assert said["objects"][0]["notes"] == ["through SecurityProfile web"]


@pytest.mark.parametrize(
    ("change", "field"),
    [
        (runtime(engine={"ociRuntime": "runc"}), "engine.ociRuntime"),
        (runtime(engine={"cniConfDir": "/etc/cni/own.d"}), "engine.cniConfDir"),
        (runtime(resources={"pidsLimit": 64}), "linux.resources.pids.limit"),
        (profile(resources={"shm": {"default": "8Mi"}}), "resources.shm"),
        (profile(seccomp={"artifact": f"r.example/f@sha256:{'a' * 64}"}), "seccomp.artifact"),
    ],
)
def test_what_is_not_in_the_profile_or_not_in_the_config_changes_a_pod_too(
    cluster: PlannedCluster, run: Run, change: tuple[str, str, Json], field: str
) -> None:
    cluster.pod("a", container=USER)
    code, said = run(change)
    assert code == plan.CHANGED
    assert field in [each["field"] for each in said["pods"][0]["changes"]]


def test_a_pod_whose_image_alone_tells_is_not_counted_as_refused(
    cluster: PlannedCluster, run: Run
) -> None:
    cluster.pod("a")
    cluster.pod("b", container=USER)
    code, said = run(profile(runAs={"nonRoot": True, "users": [{"min": 1000, "max": 2000}]}))
    assert (code, told(said)) == (plan.CHANGED, {"depends": 1, "same": 1})
    assert said["pods"][0]["says"] == [
        "containers[main]: runAs: runAsUser is known by the image alone"
    ]
    code, said = run(profile(sysctls={"allow": ["net.ipv4.ip_unprivileged_port_start"]}))
    assert (code, told(said)) == (0, {"same": 2})  # it runs now: its image fits the same runAs


def test_a_looser_profile_lets_in_what_was_refused(cluster: PlannedCluster, run: Run) -> None:
    cluster.pod("a", spec={"hostPID": True}, container=USER, phase="Pending")
    code, said = run(profile(hostNamespaces=["PID"]))
    assert (code, told(said)) == (plan.CHANGED, {"admitted": 1})
    assert said["pods"][0]["denials"][0]["field"] == "hostPID"


def test_a_pod_that_is_refused_already_is_told_and_stops_no_pipeline(
    cluster: PlannedCluster, run: Run
) -> None:
    cluster.pod("a", spec={"hostPID": True}, container=USER)
    code, said = run(profile(capabilities={"allow": []}))
    assert (code, told(said)) == (0, {"stillRefused": 1})


def test_audit_first_tells_what_enforce_would_refuse(cluster: PlannedCluster, run: Run) -> None:
    cluster.pod("a", container=BINDS)
    none: Json = {"capabilities": {"allow": []}}
    code, said = run(profile(auditSections=["capabilities"], **none))
    assert (code, told(said)) == (0, {"recorded": 1})
    assert said["pods"][0]["denials"][0]["value"] == "NET_BIND_SERVICE"


def test_without_prune_what_is_not_in_the_files_stays(cluster: PlannedCluster, run: Run) -> None:
    cluster.pod("a", container=USER)
    cluster.profile("other")
    assert run(("SecurityProfile", "third", {}))[0] == 0
    code, said = run(("SecurityProfile", "third", {}), "--prune")
    assert (code, told(said)) == (output.REFUSED, {"lost": 1})
    assert said["pods"][0]["nodeRuntime"] == "restricted"
    assert "is removed" in said["pods"][0]["says"][0]
    assert [(each["name"], each["change"]) for each in said["objects"]] == [
        ("restricted", "removed"),
        ("other", "removed"),
        ("third", "added"),
        ("web", "removed"),
    ]


def test_a_noderuntime_that_leaves_a_node_takes_its_handler_from_the_pods_there(
    cluster: PlannedCluster, run: Run
) -> None:
    for name, pool in (("n1", "web"), ("n2", "db")):
        cluster.add(Kind.NODE, name, metadata={"labels": {"pool": pool}})
        cluster.pod(f"on-{name}", container=USER, spec={"nodeName": name})
    cluster.pod("nowhere-yet", container=USER)
    code, said = run(runtime(nodeSelector={"matchLabels": {"pool": "web"}}))
    assert (code, told(said)) == (output.REFUSED, {"lost": 1, "same": 2})
    assert said["pods"][0]["says"] == [
        "NodeRuntime restricted no longer selects node n2, so restricted is not served there"
    ]


def test_of_two_noderuntimes_the_older_one_governs(cluster: PlannedCluster, run: Run) -> None:
    cluster.profile("open", privileged="Allow")
    cluster.runtime("second", handler="restricted", securityProfileRef={"name": "open"})
    cluster.pod("a", container=USER)
    assert run(runtime("second", handler="restricted", securityProfileRef={"name": "web"}))[0] == 0
    new = runtime("newest", handler="restricted", securityProfileRef={"name": "open"})
    assert run(new)[0] == 0


def test_a_pod_of_a_runtimeclass_with_another_name_is_governed(
    cluster: PlannedCluster, run: Run
) -> None:
    cluster.add(Kind.RUNTIME_CLASS, "alias", handler="restricted")
    cluster.pod("a", container=BINDS, spec={"runtimeClassName": "alias"})
    cluster.pod("b", container=BINDS, spec={"runtimeClassName": "runc"})
    assert told(run(profile(capabilities={}))[1]) == {"refused": 1}


ANY: Json = {"runtimeClassName": None}


def test_a_default_that_is_new_governs_who_names_no_handler_but_in_exempt_namespaces(
    cluster: PlannedCluster, run: Run
) -> None:
    for namespace in ("web", "kube-system", "noderuntime-system", "elsewhere"):
        cluster.pod(
            "root", namespace=namespace, container={"securityContext": {"runAsUser": 0}}, spec=ANY
        )
    cluster.pod("user", container=USER, spec=ANY)
    exempt = {"exemptNamespaces": ["kube-system"]}
    code, said = run(runtime(default=exempt), "--system-namespace", "elsewhere")
    assert (code, told(said)) == (output.REFUSED, {"refused": 2, "changed": 1})
    assert [each["namespace"] for each in said["pods"]] == ["noderuntime-system", "web", "web"]
    assert told(run(runtime(default=exempt))[1]) == {"refused": 2, "changed": 1}
    assert said["pods"][1]["denials"][0]["field"].endswith("securityContext.runAsUser")


def test_without_its_default_a_pod_runs_under_no_profile(cluster: PlannedCluster, run: Run) -> None:
    cluster.runtime("second", default={})
    cluster.pod("a", container=USER, spec=ANY)
    assert told(run(runtime("second", default={"exemptNamespaces": ["x"]}))[1]) == {"same": 1}
    code, said = run(runtime("second"))
    assert (code, told(said)) == (plan.CHANGED, {"released": 1})
    assert "under no profile" in said["pods"][0]["says"][0]
    assert told(run(runtime("second", default={"exemptNamespaces": ["web"]}))[1]) == {"released": 1}


def test_of_two_defaults_the_older_one_that_serves_its_handler_governs(
    cluster: PlannedCluster, run: Run
) -> None:
    cluster.profile("tight", runAs={"users": [{"min": 5000, "max": 5000}]})
    cluster.runtime(
        "shadowed", handler="restricted", securityProfileRef={"name": "tight"}, default={}
    )
    cluster.runtime("older", securityProfileRef={"name": "web"}, default={})
    cluster.runtime("younger", securityProfileRef={"name": "tight"}, default={})
    cluster.pod("a", container=USER, spec=ANY)
    assert told(run(("SecurityProfile", "tight", {"privileged": "Allow"}))[1]) == {"same": 1}
    assert told(run(profile(privileged="Allow", rootFilesystem="ReadOnly"))[1]) == {"changed": 1}


def test_a_new_noderuntime_governs_pods_that_wait_for_it(cluster: PlannedCluster, run: Run) -> None:
    cluster.pod("a", container=USER, spec={"runtimeClassName": "fresh"}, phase="Pending")
    code, said = run(runtime("fresh"))
    assert (code, told(said)) == (plan.CHANGED, {"changed": 1})
    assert "no NodeRuntime governs it now" in said["pods"][0]["says"][0]


def test_pods_that_have_ended_or_are_being_deleted_are_not_asked_about(
    cluster: PlannedCluster, run: Run
) -> None:
    cluster.pod("a", container=BINDS, phase="Succeeded")
    cluster.pod("b", container=BINDS, metadata={"deletionTimestamp": "2026-01-01T00:00:00Z"})
    assert told(run(profile(capabilities={}))[1]) == {}


def test_only_the_namespace_that_is_named_is_read(cluster: PlannedCluster, run: Run) -> None:
    cluster.pod("a", container=BINDS)
    cluster.pod("b", namespace="other", container=BINDS)
    assert told(run(profile(capabilities={}), "--namespace", "other")[1]) == {"refused": 1}
    assert (Kind.POD, "other") in cluster.asked
    assert Kind.NODE not in [
        kind for kind, _ in cluster.asked
    ]  # every NodeRuntime selects every node


def test_a_pod_of_a_newer_kubernetes_is_told_and_ends_nothing(
    cluster: PlannedCluster, run: Run
) -> None:
    newer = {"securityContext": {"runAsUser": 1000, "futureConfinement": {"level": 9}}}
    cluster.replicas("newer", 2, container=newer)
    cluster.pod("odd", spec={"containers": "none"})
    cluster.pod("a", container=BINDS)
    code, said = run(profile(capabilities={}))
    assert (code, told(said)) == (output.REFUSED, {"refused": 1, "unjudged": 3})
    assert said["pods"][1]["says"] == [
        "spec.containers[0].securityContext.futureConfinement: there is no such field"
    ]
    assert said["pods"][1]["count"] == 2
    cluster.objects[Kind.POD].pop()
    assert run(profile(capabilities={}))[0] == plan.CHANGED


@pytest.mark.parametrize(
    ("change", "sentence"),
    [
        (
            [profile(seccomp={"deny": [{"names": ["ptrase"]}]})],
            "SecurityProfile web: seccomp.deny: ",
        ),
        (
            [("SecurityProfile", "child", {"inherits": "web", "privileged": "Allow"})],
            "SecurityProfile child: inherits web, which is tighter in privileged",
        ),
        (
            [runtime("new", securityProfileRef={"name": "gone"})],
            "SecurityProfile gone does not exist",
        ),
        ([runtime(handler="other")], "restricted cannot become other"),
        ([profile(privileged="Perhaps")], "change.yaml: SecurityProfile web: spec.privileged: "),
    ],
)
def test_what_would_be_stalled_or_refused_is_an_error_of_the_change(
    run: Run, change: list[tuple[str, str, Json]], sentence: str
) -> None:
    code, said = run(*change)
    assert code == output.WRONG
    assert sentence in said


def test_a_base_that_is_changed_under_an_heir_in_the_cluster_names_the_heir(
    cluster: PlannedCluster, run: Run
) -> None:
    cluster.profile("heir", inherits="web", capabilities={"allow": ["NET_BIND_SERVICE"]})
    cluster.profile("broken", inherits="nothing")
    code, said = run(profile(capabilities={"allow": []}))
    assert code == output.WRONG
    assert "SecurityProfile heir: inherits web, which is tighter in capabilities" in said
    assert "broken" not in said  # it was so before
    assert run(profile(privileged="Deny"))[1]["notes"] == [
        "stalled already: SecurityProfile broken: inherits: SecurityProfile nothing does not exist"
    ]


def test_a_stalled_noderuntime_that_stays_so_changes_no_pod(
    cluster: PlannedCluster, run: Run
) -> None:
    cluster.runtime("lost", securityProfileRef={"name": "gone"})
    cluster.pod("a", container=USER, spec={"runtimeClassName": "lost"})
    assert told(run(profile(capabilities={}))[1]) == {"same": 1}
    code, said = run(profile("gone"))
    assert (code, told(said)) == (plan.CHANGED, {"changed": 1})
    assert "NodeRuntime lost is stalled now" in said["pods"][0]["says"][0]


def test_objects_of_a_newer_noderuntime_in_the_cluster_are_a_note(
    cluster: PlannedCluster, run: Run
) -> None:
    cluster.profile("newer", futureField=1)
    code, said = run(profile())
    assert code == 0
    assert said["notes"] == [
        "SecurityProfile newer cannot be read by this version: futureField: extra inputs are not permitted"
    ]


def test_a_default_that_an_heir_writes_out_is_a_change_of_it(
    cluster: PlannedCluster, run: Run
) -> None:
    cluster.profile("heir", inherits="web")
    _, said = run(("SecurityProfile", "heir", {"inherits": "web", "privileged": "Deny"}))
    assert [each["field"] for each in said["objects"][0]["fields"]] == ["privileged"]
    assert run(profile(privileged="Deny"))[1]["objects"] == []  # for web it is the same


def test_a_demand_on_the_kernel_that_is_new_is_told(cluster: PlannedCluster, run: Run) -> None:
    _, said = run(profile(appArmor={"mode": "RuntimeDefault"}))
    assert said["objects"][0]["notes"][1] == (
        "appArmor demands AppArmor: a node without it no longer offers the handler"
    )


def test_people_are_shown_the_same_and_no_escape_reaches_the_terminal(
    cluster: PlannedCluster, run: Run
) -> None:
    cluster.replicas("shop", 120, container=BINDS)
    cluster.pod("evil\x1b[2J", container=BINDS)
    cluster.pod("evil", owner="Widget/\x1b]0;gotcha\x07", container=BINDS)
    newer = {"securityContext": {"\x1b[31mred": 1}}
    cluster.pod("odd", container=newer)
    code, said = run(profile(capabilities={}), text=True)
    assert code == output.REFUSED
    assert "\x1b" not in said and "\x07" not in said
    lines = said.splitlines()
    assert "  ~ SecurityProfile web changed" in lines
    assert "      capabilities.allow: -NET_BIND_SERVICE" in lines
    assert "121 Pods REFUSED when they start next" in lines
    assert (
        "  120 Pods of Deployment web/shop under NodeRuntime restricted, SecurityProfile web "
        "(shop-5d9c-00000, shop-5d9c-00001, shop-5d9c-00002, ...)"
    ) in lines
    assert lines[-1] == ("123 Pods under NodeRuntimes: 121 would be refused, 2 could not be judged")


def test_of_too_many_workloads_the_rest_is_counted(
    cluster: PlannedCluster, run: Run, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("noderuntime.cli.planning.plan.MOST_GROUPS", 2)
    monkeypatch.setattr("noderuntime.cli.planning.plan._REMEMBERED", 1)
    for number in range(4):
        container = {**BINDS, "workingDir": f"/{number}"}
        cluster.pod(f"p{number}", container=container)
    code, said = run(profile(capabilities={}))
    assert (code, told(said), said["untold"]) == (output.REFUSED, {"refused": 4}, 2)
    assert (
        "2 Pods more, of other workloads, are only counted"
        in run(profile(capabilities={}), text=True)[1]
    )
