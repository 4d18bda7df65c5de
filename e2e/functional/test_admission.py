"""Admission policies on a real API server, against the verdict of the code that a node runs.

Only etcd and kube-apiserver run (``e2e/framework/api_server.py``). The policies are the operator's own, but
with ``failurePolicy: Fail``, so that an expression that fails shows itself as a refusal.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any, Final

import pytest

from e2e.framework.admission_pods import GOOD_IMAGE, plain_pod, pods
from e2e.framework.api_server import MERGE, Answer, ApiServer, running_api_server, wait_for
from e2e.performance.policy import profile_of_400_rules
from noderuntime.api.revision import RevisionHandler
from noderuntime.cli.explaining.image import Image
from noderuntime.cli.explaining.judge import ContainerReport, PodReport, judge
from noderuntime.cli.manifest.requests import SECCOMP_FOLDER
from noderuntime.cli.manifest.workloads import workloads
from noderuntime.policy.denial import printable
from noderuntime.policy.load import rules_of
from noderuntime.policy.rules import HandlerRules
from noderuntime_operator.admission.cel import Sentence
from noderuntime_operator.admission.policy import bodies
from noderuntime_operator.admission.policy import rules_of as admission_rules
from noderuntime_operator.admission.rule import Rule

Json = dict[str, Any]
POLICIES = "/apis/admissionregistration.k8s.io/v1/validatingadmissionpolicies"
BINDINGS = "/apis/admissionregistration.k8s.io/v1/validatingadmissionpolicybindings"
NOW_S: Final = 1_800_000_000.0  # 2027-01-15
COUNT: Final = 144  # Pods of each profile
STRICT: Final[Json] = {
    "userNamespace": "Required",
    "runAs": {
        "nonRoot": True,
        "users": [{"min": 5, "max": 9}, {"min": 1000, "max": 2000}],
        "groups": [{"min": 5, "max": 2000}],
        "supplementalGroups": [{"min": 1, "max": 2000}],
    },
    "capabilities": {"default": ["CHOWN"], "allow": ["KILL"]},
    "sysctls": {"allow": ["net.core.somaxconn", "net.ipv4.conf.eth0/1.forwarding"]},
    "hostPaths": [
        {"path": "/srv", "readOnly": False, "propagation": []},
        {"path": "/etc", "readOnly": True, "propagation": ["HostToContainer"]},
    ],
    "resources": {
        "cpu": {"max": "2"},
        "memory": {"max": "1Gi"},
        "hugepages": {"2Mi": "4Mi"},
        "shm": {"max": "64Mi"},
    },
    "images": {
        "allowedRegistries": ["registry.example.com/team", "docker.io"],
        "requireDigest": True,
    },
}
PROFILES: Final[dict[str, Json]] = {
    "strict": STRICT,
    "open": {
        "privileged": "Allow",
        "userNamespace": "Deny",
        "hostNamespaces": ["PID", "Network"],
        "capabilities": {"allow": ["ALL"]},
        "appArmor": {"name": "ours"},
        "seLinux": {"type": "spc_t", "level": "s0:c1,c2"},
        "hostPaths": [
            {"path": "/", "readOnly": True, "propagation": []},
            {"path": "/srv/\"] + x['{0}']\\n🦊", "propagation": []},  # text, never code
            {"path": "/srv/data", "readOnly": False, "propagation": ["Bidirectional"]},
        ],
        "images": {"allowedRegistries": ["registry.example.com", "localhost:5000"]},
    },
    "excepted": {
        **STRICT,
        "auditSections": ["privileged", "images", "resources"],
        "exceptions": [
            {
                "namespace": "web",
                "sections": ["runAs", "hostPaths"],
                "expires": "2030-01-01T00:00:00Z",
            },
            {
                "namespace": "default",
                "serviceAccount": "legacy",
                "sections": ["capabilities", "userNamespace"],
                "expires": "2030-01-01T00:00:00Z",
            },
            {"namespace": "web", "sections": ["sysctls"], "expires": "2026-01-01T00:00:00Z"},
        ],
    },
    "whole": {
        **profile_of_400_rules().model_dump(by_alias=True, exclude_none=True, mode="json"),
        "images": {
            "allowedRegistries": [
                *(f"registry-{number}.example.com/team" for number in range(63)),
                "registry.example.com",
            ]
        },
    },
}


def rules_named(name: str) -> HandlerRules:
    handler = RevisionHandler.model_validate(
        {
            "name": name,
            "nodeRuntime": name,
            "profile": {"name": name, "spec": PROFILES[name]},
            "allowedRegistries": ["registry.example.com", "docker.io/library", "localhost:5000"],
            "resources": {"limits": {"memory": "1536Mi"}},
        }
    )
    return rules_of(handler, "sha256:" + "0" * 64)


RULES: Final = {name: rules_named(name) for name in PROFILES}


@pytest.fixture(scope="module")
def server() -> Iterator[ApiServer]:
    with running_api_server() as running:
        for namespace in ("default", "web"):
            running.create("/api/v1/namespaces", {"metadata": {"name": namespace}})
        running.create("/api/v1/nodes", {"metadata": {"name": "n1"}})
        room = {"cpu": "8", "memory": "8Gi", "pods": "100"}
        told = {"status": {"capacity": room, "allocatable": room}}
        assert (
            running.call("PATCH", "/api/v1/nodes/n1/status", told, content_type=MERGE).error == ""
        )
        for name, own in RULES.items():
            runtime_class = {"metadata": {"name": name}, "handler": name}
            answer = running.create("/apis/node.k8s.io/v1/runtimeclasses", runtime_class)
            assert answer.error == ""
            for policy, binding in bodies(name, [name], [own], NOW_S):
                policy["spec"]["failurePolicy"] = "Fail"
                assert running.create(POLICIES, policy).error == ""
                assert running.create(BINDINGS, binding).error == ""
        for name in RULES:
            wait_for(f"{name} is enforced", lambda name=name: is_denied(asking(running, name)))
        yield running


def asking(server: ApiServer, name: str, **context: Any) -> Answer:  # noqa: ANN401
    """Create a Pod with a seccomp profile of the node, which every profile refuses."""
    made = plain_pod("probe", name)
    localhost = {"type": "Localhost", "localhostProfile": "x.json"}
    made["spec"]["securityContext"] |= {"seccompProfile": localhost, **context}
    return create(server, made)


def create(server: ApiServer, pod: Json, *, dry_run: bool = True) -> Answer:
    place = f"/api/v1/namespaces/{pod['metadata']['namespace']}/pods"
    return server.create(place, pod, dry_run=dry_run)


def is_denied(answer: Answer) -> bool:
    return "ValidatingAdmissionPolicy" in answer.error


def sentence(answer: Answer) -> str:
    """Return what admission says, without who says it."""
    return answer.error.partition(" denied request: ")[2]


def judged(pod: Json, own: HandlerRules) -> PodReport:
    (workload,) = workloads("pod.json", json.dumps(pod).encode(), "default")
    return judge(workload, own, Image(), now_s=NOW_S, machine="x86_64")


def parts_of(report: PodReport) -> tuple[PodReport | ContainerReport, ...]:
    return (report, *report.containers)


def said_by_the_node(report: PodReport) -> set[str]:
    """Return its sentences as admission writes them: it knows no revision, and no folder of the kubelet."""
    denials = [each for part in parts_of(report) for row in part.rows for each in row.denials]
    plain = (re.sub(r" \(revision [^)]*\)", "", each.sentence()) for each in denials)
    return {each.replace(f"{SECCOMP_FOLDER}/", "") for each in plain}


@dataclass(frozen=True, slots=True)
class Outcome:
    pod: Json
    report: PodReport
    answer: Answer


@pytest.fixture(scope="module")
def outcomes(server: ApiServer) -> dict[str, list[Outcome]]:
    """Every Pod with what the node says and what admission says."""
    found: dict[str, list[Outcome]] = {}
    for number, (name, own) in enumerate(RULES.items()):
        made = pods(number, COUNT, name)
        found[name] = [Outcome(pod, judged(pod, own), create(server, pod)) for pod in made]
    return found


@pytest.mark.parametrize("name", PROFILES)
def test_the_api_server_takes_every_pod_that_admission_lets_through(
    outcomes: dict[str, list[Outcome]], name: str
) -> None:
    for each in outcomes[name]:
        assert each.answer.error == "" or is_denied(each.answer), (each.pod, each.answer.error)


@pytest.mark.parametrize("name", PROFILES)
def test_admission_never_denies_what_the_node_allows_and_says_what_the_node_says(
    outcomes: dict[str, list[Outcome]], name: str
) -> None:
    for each in outcomes[name]:
        if is_denied(each.answer):
            assert each.report.verdict == "refused", (each.pod, each.answer.error)
            if not any(part.error for part in parts_of(each.report)):
                assert sentence(each.answer) in said_by_the_node(each.report)


@pytest.mark.parametrize("name", PROFILES)
def test_the_node_refuses_what_admission_cannot_show(
    outcomes: dict[str, list[Outcome]], name: str
) -> None:
    through = [each for each in outcomes[name] if not is_denied(each.answer)]
    left = [each for each in through if each.report.verdict == "refused"]
    denied = len(outcomes[name]) - len(through)
    assert denied >= 0.8 * (denied + len(left)), [each.pod for each in left]
    assert denied > 20


def test_each_validation_has_denied_something(outcomes: dict[str, list[Outcome]]) -> None:
    """Under one of the profiles: the API server tells the first that refuses, which may hide others."""
    denied: set[str] = set()
    everything: set[str] = set()
    for name, own in RULES.items():
        said = [sentence(each.answer) for each in outcomes[name] if is_denied(each.answer)]
        for rule in admission_rules(own):
            everything.add(rule.name)
            if any(pattern_of(rule).fullmatch(each) for each in said):
                denied.add(rule.name)
    silent = everything - denied - {"serviceAccount"}  # which has its own test below
    assert not silent, ", ".join(sorted(silent))


def pattern_of(rule: Rule) -> re.Pattern[str]:
    def regex(parts: Sentence) -> str:
        if all(isinstance(part, str) for part in parts):
            return re.escape(printable("".join(map(str, parts))))
        return "".join(re.escape(part) if isinstance(part, str) else ".+" for part in parts)

    last = re.escape(rule.field.rpartition(".")[2])
    return re.compile(
        rf".*{last}.*: .+ is refused by SecurityProfile .+: {regex(rule.says)}; {regex(rule.remedy)}"
    )


def test_the_annotation_must_name_the_service_account_of_the_pod(server: ApiServer) -> None:
    pod = plain_pod("tied", "excepted")
    pod["spec"]["serviceAccountName"] = "web"
    pod["metadata"]["annotations"] = {"noderuntime.io/service-account": "legacy"}
    assert sentence(create(server, pod)) == (
        "metadata.annotations[noderuntime.io/service-account]: legacy is refused by SecurityProfile "
        "excepted: it must name the Pod's service account, which is web; remove it, or write web"
    )
    pod["metadata"]["annotations"]["noderuntime.io/service-account"] = "web"
    assert create(server, pod).error == ""


def test_what_is_audited_is_warned_of(server: ApiServer) -> None:
    pod = plain_pod("warned", "excepted")
    pod["spec"]["containers"][0]["image"] = "quay.example.org/x" + GOOD_IMAGE[-72:]
    answer = create(server, pod)
    assert answer.error == ""
    assert any("would be refused by SecurityProfile excepted" in each for each in answer.warnings)


def test_pods_of_other_handlers_are_not_judged(server: ApiServer) -> None:
    pod = plain_pod("free", "strict")
    del pod["spec"]["runtimeClassName"]
    pod["spec"]["containers"][0]["securityContext"] = {"privileged": True}
    assert create(server, pod).error == ""


@pytest.fixture
def running_pod(server: ApiServer) -> Iterator[str]:
    """The path of a Pod that is there, bound to a node."""
    pod = plain_pod("there", "strict")
    pod["spec"]["nodeName"] = "n1"
    pod["spec"]["containers"][0]["resources"] = {"limits": {"cpu": "1", "memory": "64Mi"}}
    assert create(server, pod, dry_run=False).error == ""
    path = "/api/v1/namespaces/default/pods/there"
    yield path
    server.call("DELETE", f"{path}?gracePeriodSeconds=0")


def patched(server: ApiServer, path: str, body: Json) -> Answer:
    kind = "application/strategic-merge-patch+json"
    return server.call("PATCH", f"{path}?dryRun=All", body, content_type=kind)


def with_container(field: str = "containers", **fields: Any) -> Json:  # noqa: ANN401
    return {"spec": {field: [{"name": "web", **fields}]}}


def with_cpu(amount: str) -> Json:
    return with_container(resources={"limits": {"cpu": amount}, "requests": {"cpu": amount}})


def test_another_image_of_a_running_pod_is_judged(server: ApiServer, running_pod: str) -> None:
    bad = with_container(image="quay.example.org/x:1")
    assert "images.allowedRegistries" in sentence(patched(server, running_pod, bad))
    good = with_container(image=GOOD_IMAGE.replace("web:1", "web:2"))
    assert patched(server, running_pod, good).error == ""


def test_an_ephemeral_container_is_judged(server: ApiServer, running_pod: str) -> None:
    debug = {"name": "debug", "image": GOOD_IMAGE, "securityContext": {"privileged": True}}
    body: Json = {"spec": {"ephemeralContainers": [debug]}}
    answer = patched(server, f"{running_pod}/ephemeralcontainers", body)
    assert sentence(answer).startswith("containers[debug].securityContext.privileged: true")
    del debug["securityContext"]
    assert patched(server, f"{running_pod}/ephemeralcontainers", body).error == ""


def test_a_resize_is_judged(server: ApiServer, running_pod: str) -> None:
    body = with_cpu("3")
    answer = patched(server, f"{running_pod}/resize", body)
    assert sentence(answer).startswith("containers[web].resources.limits.cpu: 3 is refused")
    body = with_cpu("2")
    assert patched(server, f"{running_pod}/resize", body).error == ""


def test_a_pod_that_came_before_the_profile_can_still_be_labelled_and_resized(
    server: ApiServer,
) -> None:
    """Only what the update brings is judged: a Pod must always be able to go."""
    pod = plain_pod("before", "strict")
    pod["spec"]["nodeName"] = "n1"
    pod["spec"]["containers"][0] |= {
        "securityContext": {"capabilities": {"add": ["SYS_ADMIN"]}},
        "resources": {"limits": {"cpu": "1", "memory": "64Mi"}},
    }
    pod["metadata"]["labels"] = {"noderuntime.io/test": "before"}
    path = "/api/v1/namespaces/default/pods/before"
    policy = server.get(f"{POLICIES}/strict.noderuntime.io").body
    conditions = policy["spec"]["matchConditions"]
    none = [*conditions, {"name": "not-yet", "expression": "false"}]
    set_conditions(server, none)
    wait_for("it is not enforced", lambda: not is_denied(create(server, pod)))
    try:
        assert create(server, pod, dry_run=False).error == ""
        set_conditions(server, conditions)
        wait_for("it is enforced", lambda: is_denied(create(server, pod)))
        labels = {"metadata": {"labels": {"a": "b"}, "finalizers": []}}
        assert patched(server, path, labels).error == ""
        assert patched(server, f"{path}/resize", with_cpu("500m")).error == ""
    finally:
        server.call("DELETE", f"{path}?gracePeriodSeconds=0")


def set_conditions(server: ApiServer, conditions: list[Json]) -> None:
    body = {"spec": {"matchConditions": conditions}}
    path = f"{POLICIES}/strict.noderuntime.io"
    assert server.call("PATCH", path, body, content_type=MERGE).error == ""


def test_a_pod_of_a_hundred_containers_is_within_the_cost_of_a_profile_of_400_rules(
    server: ApiServer,
) -> None:
    pod = plain_pod("large", "whole")
    pod["spec"]["securityContext"] = {"runAsUser": 32_005, "runAsGroup": 32_005}
    pod["spec"]["volumes"] = [
        {"name": f"v{n}", "hostPath": {"path": f"/srv/data-{n}/x"}} for n in range(100, 120)
    ]
    mounts = [{"name": f"v{n}", "mountPath": f"/mnt/{n}"} for n in range(100, 120)]
    pod["spec"]["containers"] = [
        {
            "name": f"c{number}",
            "image": "registry.example.com/web/app:1",
            "volumeMounts": mounts,
            "resources": {"limits": {"cpu": "1", "memory": "64Mi"}},
            "securityContext": {"capabilities": {"add": ["KILL", "NET_BIND_SERVICE"]}},
        }
        for number in range(100)
    ]
    assert create(server, pod).error == ""
    pod["spec"]["containers"][-1]["securityContext"] = {"privileged": True}
    assert sentence(create(server, pod)).startswith("containers[c99].securityContext.privileged")
