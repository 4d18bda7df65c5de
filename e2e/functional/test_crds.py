"""The CRDs on a real API server: each wrong object is refused with its reason, each good one is taken.

Only etcd and kube-apiserver run (``e2e/framework/api_server.py``).
"""

from __future__ import annotations

import copy
from collections.abc import Iterator
from pathlib import Path
from typing import Any, cast

import pytest
import yaml

from e2e.framework.api_server import ApiServer, running_api_server, wait_for
from e2e.framework.crd_cases import WRONG_NODE_RUNTIMES, WRONG_PROFILES
from noderuntime.api.crd import crd_of
from noderuntime.api.definitions import DEFINITIONS

GROUP = "/apis/noderuntime.io/v1alpha1"
CRDS = "/apis/apiextensions.k8s.io/v1/customresourcedefinitions"
REPOSITORY = Path(__file__).resolve().parents[2]
Json = dict[str, Any]


@pytest.fixture(scope="module")
def server() -> Iterator[ApiServer]:
    with running_api_server() as running:
        for definition in DEFINITIONS:
            answer = running.create(CRDS, crd_of(definition))
            assert answer.error == ""
        wait_for(
            "the CRDs are served",
            lambda: all(
                running.get(f"{GROUP}/{each.plural}").status == 200 for each in DEFINITIONS
            ),
        )
        yield running


def node_runtime(spec: Json | None = None, name: str = "restricted") -> Json:
    head: Json = {"handler": "restricted", "securityProfileRef": {"name": "web"}}
    return {
        "apiVersion": "noderuntime.io/v1alpha1",
        "kind": "NodeRuntime",
        "metadata": {"name": name},
        "spec": head | (spec or {}),
    }


def profile(spec: Json, name: str = "web") -> Json:
    return {
        "apiVersion": "noderuntime.io/v1alpha1",
        "kind": "SecurityProfile",
        "metadata": {"name": name},
        "spec": spec,
    }


def state(node: str = "node-1", name: str = "node-1", digest: str = "sha256:" + "a" * 64) -> Json:
    return {
        "apiVersion": "noderuntime.io/v1alpha1",
        "kind": "NodeRuntimeState",
        "metadata": {"name": name},
        "spec": {
            "nodeName": node,
            "revision": {"name": "noderuntime-aaaaaaaaaaaa", "digest": digest},
        },
    }


@pytest.mark.parametrize(("spec", "message"), WRONG_NODE_RUNTIMES)
def test_a_wrong_noderuntime_is_refused_with_its_reason(
    server: ApiServer, spec: Json, message: str
) -> None:
    answer = server.create(f"{GROUP}/noderuntimes", node_runtime(spec), dry_run=True)
    assert message in answer.error


@pytest.mark.parametrize("name", ["has.dot", "n" * 64])
def test_a_noderuntime_whose_name_is_no_label_is_refused(server: ApiServer, name: str) -> None:
    answer = server.create(f"{GROUP}/noderuntimes", node_runtime(name=name), dry_run=True)
    assert "the name of a NodeRuntime must be a DNS label" in answer.error


@pytest.mark.parametrize(("spec", "message"), WRONG_PROFILES)
def test_a_wrong_profile_is_refused_with_its_reason(
    server: ApiServer, spec: Json, message: str
) -> None:
    answer = server.create(f"{GROUP}/securityprofiles", profile(spec), dry_run=True)
    assert message in answer.error


WRONG_STATES = [
    pytest.param(state(name="node-2"), "is named as its node", id="another name than the node's"),
    pytest.param(state(digest="sha256:abc"), "spec.revision.digest", id="short digest"),
    pytest.param(
        {**state(), "spec": {"nodeName": "node-1"}}, "spec.revision: Required", id="no revision"
    ),
]


@pytest.mark.parametrize(("body", "message"), WRONG_STATES)
def test_a_wrong_state_is_refused_with_its_reason(
    server: ApiServer, body: Json, message: str
) -> None:
    answer = server.create(f"{GROUP}/noderuntimestates", body, dry_run=True)
    assert message in answer.error


def test_the_handler_cannot_be_changed(server: ApiServer) -> None:
    path = f"{GROUP}/noderuntimes/immutable"
    assert server.apply(path, node_runtime(name="immutable")).error == ""
    changed = server.apply(path, node_runtime({"handler": "other"}, name="immutable"))
    assert "handler is immutable: make another NodeRuntime" in changed.error


def test_the_node_of_a_state_cannot_be_changed(server: ApiServer) -> None:
    path = f"{GROUP}/noderuntimestates/fixed"
    assert server.apply(path, state("fixed", "fixed")).error == ""
    assert "nodeName is immutable" in server.apply(path, state("node-2", "fixed")).error


GOOD = [
    pytest.param("noderuntimes", node_runtime(name="least"), id="least NodeRuntime"),
    pytest.param(
        "noderuntimes",
        node_runtime(
            {
                "nodeSelector": {
                    "matchLabels": {"pool": "web"},
                    "matchExpressions": [
                        {"key": "gpu", "operator": "DoesNotExist"},
                        {"key": "zone", "operator": "In", "values": ["a", "b"]},
                    ],
                },
                "engine": {"ociRuntime": "runc"},
                "images": {"allowedRegistries": ["127.0.0.1:5000", "registry.example.com/team"]},
                "resources": {
                    "defaults": {"cpu": "500m", "memory": "128Mi"},
                    "limits": {"cpu": 2, "memory": "1.5Gi"},
                    "pidsLimit": 512,
                    "overhead": {"cpu": "10m", "memory": "8Mi"},
                },
                "tracing": {"endpoint": "http://10.0.0.5:4317", "samplingRatePerMillion": 10000},
                "default": {"exemptNamespaces": ["kube-system", "monitoring"]},
            },
            name="whole",
        ),
        id="whole NodeRuntime",
    ),
    pytest.param(
        "noderuntimes",
        node_runtime(
            {"resources": {"defaults": {"cpu": "1000m"}, "limits": {"cpu": 1}}}, name="equal"
        ),
        id="default equal to the limit",
    ),
    pytest.param(
        "noderuntimes",
        node_runtime({"default": {}}, name="everywhere"),
        id="default that exempts nothing",
    ),
    pytest.param("securityprofiles", profile({}, name="least"), id="least profile"),
    pytest.param(
        "securityprofiles",
        profile(
            {
                "mode": "Audit",
                "privileged": "Allow",
                "hostNamespaces": ["PID", "IPC", "Network"],
                "runAs": {"nonRoot": True, "users": [{"min": 1, "max": 4294967294}]},
                "noNewPrivileges": "Optional",
                "rootFilesystem": "ReadOnly",
                "capabilities": {"default": ["CHOWN"], "allow": ["NET_BIND_SERVICE", "CHOWN"]},
                "seccomp": {
                    "base": "DenyAll",
                    "allow": [{"names": ["read", "write", "exit_group"]}, {"names": ["_sysctl"]}],
                    "deny": [{"names": ["ptrace"]}],
                },
                "sysctls": {
                    "allow": ["net.ipv4.ip_unprivileged_port_start", "kernel.shm_rmid_forced"]
                },
                "hostPaths": [
                    {"path": "/var/log/web", "propagation": []},
                    {"path": "/", "readOnly": False, "propagation": ["Bidirectional"]},
                ],
                "inherits": "base",
                "auditSections": ["seccomp", "appArmor"],
                "exceptions": [
                    {
                        "namespace": "web",
                        "serviceAccount": "system:legacy",
                        "sections": ["hostPaths"],
                        "expires": "2026-12-31T00:00:00Z",
                    }
                ],
                "userNamespace": "Required",
                "procMount": "UnmaskedAllowed",
                "maskedPaths": ["/proc/a"],
                "readonlyPaths": ["/etc"],
                "devices": {
                    "allow": [{"path": "/dev/fuse"}, {"path": "/dev/dri", "permissions": "rw"}],
                    "cdi": ["vendor.com/gpu=*", "vendor.com/net-nic=0:1"],
                },
                "ulimits": [{"name": "nofile", "soft": 1024, "hard": 1024}],
                "resources": {
                    "pids": 100,
                    "cpu": {"default": "500m", "max": 2},
                    "memory": {"default": "128Mi", "max": "1Gi"},
                    "hugepages": {"2Mi": "64Mi"},
                    "shm": {"default": "8Mi", "max": "64Mi"},
                },
                "images": {
                    "allowedRegistries": ["registry.example.com/web"],
                    "requireDigest": True,
                    "signatures": {"keys": ["-----BEGIN PUBLIC KEY-----"]},
                },
            },
            name="whole",
        ),
        id="whole profile",
    ),
    pytest.param("noderuntimestates", state(), id="state"),
]


@pytest.mark.parametrize(("plural", "body"), GOOD)
def test_a_good_object_is_taken_and_does_not_drift(
    server: ApiServer, plural: str, body: Json
) -> None:
    path = f"{GROUP}/{plural}/{body['metadata']['name']}"
    first = server.apply(path, body)
    assert first.error == ""
    # The API server itself writes once more at the second apply, of anything, with the same content.
    second = server.apply(path, copy.deepcopy(body))
    again = server.apply(path, copy.deepcopy(body))
    assert again.body["metadata"]["resourceVersion"] == second.body["metadata"]["resourceVersion"]
    assert again.body["metadata"]["generation"] == first.body["metadata"]["generation"] == 1
    assert_within(body["spec"], again.body["spec"])


def assert_within(declared: Any, live: Any) -> None:  # noqa: ANN401 - free-form JSON
    """All that was declared is there, and lists are exactly as they were written."""
    if isinstance(declared, dict):
        for key, value in cast("Json", declared).items():
            assert_within(value, live[key])
    else:
        assert live == declared


def test_the_examples_are_taken(server: ApiServer) -> None:
    for file in sorted((REPOSITORY / "examples").glob("*.yaml")):
        for body in yaml.safe_load_all(file.read_text()):
            group, _, version = body["apiVersion"].rpartition("/")
            base = f"/apis/{group}/{version}" if group else f"/api/{version}"
            scope = "" if group == "noderuntime.io" else "/namespaces/default"
            plural = body["kind"].lower() + "s"
            answer = server.create(f"{base}{scope}/{plural}", body, dry_run=True)
            assert answer.error == "", f"{file.name}: {answer.error}"


def test_a_new_object_has_a_status_that_says_that_nobody_looked_yet(server: ApiServer) -> None:
    answer = server.create(f"{GROUP}/noderuntimes", node_runtime(name="fresh"), dry_run=True)
    assert answer.body["status"]["observedGeneration"] == -1


def test_a_write_to_the_status_does_not_touch_the_spec(server: ApiServer) -> None:
    path = f"{GROUP}/noderuntimestates/split"
    server.apply(path, state("split", "split"))
    body = state("split", "split", "sha256:" + "b" * 64) | {
        "status": {
            "observedGeneration": 1,
            "revision": {"digest": "sha256:" + "a" * 64, "servedAt": "2026-11-24T21:00:00Z"},
            "handlers": ["restricted"],
            "staleContainers": ["default/web/web"],
        }
    }
    written = server.apply(f"{path}/status", body, manager="agent")
    assert written.error == ""
    assert written.body["spec"]["revision"]["digest"] == "sha256:" + "a" * 64
    assert written.body["status"]["handlers"] == ["restricted"]


def test_states_can_be_selected_by_node(server: ApiServer) -> None:
    for node in ("near", "far"):
        server.apply(f"{GROUP}/noderuntimestates/{node}", state(node, node))
    found = server.get(f"{GROUP}/noderuntimestates?fieldSelector=spec.nodeName%3Dnear").body
    assert [item["metadata"]["name"] for item in found["items"]] == ["near"]


def test_kubectl_knows_short_names_and_the_category(server: ApiServer) -> None:
    resources = server.get(GROUP).body["resources"]
    named = {each["name"]: each for each in resources if "/" not in each["name"]}
    assert {name: each["shortNames"] for name, each in named.items()} == {
        "noderuntimes": ["nrt"],
        "securityprofiles": ["sprof"],
        "noderuntimestates": ["nrs"],
    }
    assert all(each["categories"] == ["noderuntime-all"] for each in named.values())


def test_the_api_server_fills_in_nothing_that_a_profile_would_inherit(server: ApiServer) -> None:
    spec: Json = {"seccomp": {}, "runAs": {}, "resources": {"cpu": {}}}
    answer = server.create(f"{GROUP}/securityprofiles", profile(spec, name="heir"), dry_run=True)
    assert answer.error == ""
    assert answer.body["spec"] == {**spec, "mode": "Enforce"}
