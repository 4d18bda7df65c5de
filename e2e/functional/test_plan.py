"""``noderuntime plan`` as a pipeline runs it, on a real API server with Pods of several workloads.

Only etcd and kube-apiserver run (``e2e/framework/api_server.py``): no Pod is started, each is only there.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest
import yaml

from e2e.framework.api_server import MERGE, ApiServer, running_api_server, wait_for
from noderuntime.api.crd import crd_of
from noderuntime.api.definitions import DEFINITIONS

GROUP = "/apis/noderuntime.io/v1alpha1"
CRDS = "/apis/apiextensions.k8s.io/v1/customresourcedefinitions"
CLASSES = "/apis/node.k8s.io/v1/runtimeclasses"
REPOSITORY = Path(__file__).resolve().parents[2]
REPLICAS = 120
Json = dict[str, Any]

WEB: Json = {
    "runAs": {"nonRoot": True},
    "capabilities": {"allow": ["NET_BIND_SERVICE"]},
    "hostPaths": [{"path": "/var/log", "readOnly": True}],
}
BINDS: Json = {"runAsUser": 1000, "capabilities": {"add": ["NET_BIND_SERVICE"]}}


def of_ours(kind: str, name: str, spec: Json) -> Json:
    return {
        "apiVersion": "noderuntime.io/v1alpha1",
        "kind": kind,
        "metadata": {"name": name},
        "spec": spec,
    }


PROFILE = of_ours("SecurityProfile", "web", WEB)
HEIR = of_ours("SecurityProfile", "heir", {"inherits": "web", "privileged": "Deny"})
RUNTIME = of_ours(
    "NodeRuntime",
    "restricted",
    {"handler": "restricted", "securityProfileRef": {"name": "web"}},
)
APART = of_ours(
    "NodeRuntime",
    "apart",
    {
        "handler": "apart",
        "securityProfileRef": {"name": "heir"},
        "nodeSelector": {"matchLabels": {"pool": "apart"}},
    },
)


def pod(name: str, security: Json, owner: Json | None = None, **spec: Any) -> Json:  # noqa: ANN401
    metadata: Json = {"name": name}
    if owner is not None:
        metadata["labels"] = {"pod-template-hash": "5d9c"}
        metadata["ownerReferences"] = [
            {"apiVersion": "apps/v1", "controller": True, "uid": name, **owner}
        ]
    container: Json = {"name": "main", "image": "127.0.0.1:5000/app:1", "securityContext": security}
    mounts = [{"name": each["name"], "mountPath": "/logs"} for each in spec.get("volumes", [])]
    container["volumeMounts"] = [{**each, "readOnly": True} for each in mounts]
    head = {"runtimeClassName": "restricted", "containers": [container]}
    return {"metadata": metadata, "spec": head | spec}


def pods() -> Iterator[Json]:
    shop = {"kind": "ReplicaSet", "name": "shop-5d9c"}
    for number in range(REPLICAS):
        yield pod(f"shop-5d9c-{number}", BINDS, shop)
    logs = [{"name": "logs", "hostPath": {"path": "/var/log/pods"}}]
    yield pod("reader", {"runAsUser": 1000}, volumes=logs)
    yield pod("of-image", {})
    yield pod("elsewhere", BINDS, runtimeClassName="apart", nodeName="n1")
    yield pod("ungoverned", {"privileged": True}, runtimeClassName=None)


def ensure(server: ApiServer, path: str, body: Json) -> None:
    answer = server.create(path, body)
    assert answer.error == "", answer.error


@pytest.fixture(scope="module")
def server() -> Iterator[ApiServer]:
    with running_api_server() as running:
        for definition in DEFINITIONS:
            ensure(running, CRDS, crd_of(definition))
        wait_for(
            "the CRDs are served",
            lambda: all(
                running.get(f"{GROUP}/{each.plural}").status == 200 for each in DEFINITIONS
            ),
        )
        for name in ("restricted", "apart"):
            ensure(running, CLASSES, {"metadata": {"name": name}, "handler": name})
        for each in (PROFILE, HEIR, RUNTIME, APART):
            ensure(running, f"{GROUP}/{each['kind'].lower()}s", each)
        for name, labels in (("n1", {"pool": "apart"}), ("n2", {})):
            ensure(running, "/api/v1/nodes", {"metadata": {"name": name, "labels": labels}})
        ensure(running, "/api/v1/namespaces", {"metadata": {"name": "shop"}})
        with ThreadPoolExecutor(8) as at_once:
            made = at_once.map(lambda each: running.create(IN_SHOP, each).error, pods())
        assert [each for each in made if each] == []
        yield running


IN_SHOP = "/api/v1/namespaces/shop/pods"


class Pipeline:
    """A repository of manifests, and the command on it."""

    def __init__(self, server: ApiServer, folder: Path) -> None:
        self._kubeconfig = server.kubeconfig(folder / "kubeconfig")
        self._manifests = folder / "manifests"
        (self._manifests / "deep").mkdir(parents=True)
        self.commit(PROFILE, HEIR, RUNTIME, APART)

    def commit(self, *documents: Json) -> None:
        """Write each into a file of its own, in the place of what it was."""
        for each in documents:
            name = f"{each['kind'].lower()}-{each['metadata']['name']}.yaml"
            (self._manifests / "deep" / name).write_text(yaml.safe_dump(each))

    def remove(self, document: Json) -> None:
        name = f"{document['kind'].lower()}-{document['metadata']['name']}.yaml"
        (self._manifests / "deep" / name).unlink()

    def run(self, *options: str) -> subprocess.CompletedProcess[str]:
        return subprocess.run(
            [
                *(sys.executable, "-m", "noderuntime", "plan", str(self._manifests)),
                *("--kubeconfig", str(self._kubeconfig), *options),
            ],
            env={**os.environ, "PYTHONPATH": str(REPOSITORY)},
            capture_output=True,
            text=True,
            timeout=60,
            check=False,
        )

    def plan(self, *options: str) -> tuple[int, Json]:
        done = self.run("-o", "json", *options)
        assert done.stderr == ""
        document: Json = json.loads(done.stdout)
        assert document["exitCode"] == done.returncode
        document["summary"] = {key: n for key, n in document["summary"].items() if n}
        return done.returncode, document


@pytest.fixture
def pipeline(server: ApiServer, tmp_path: Path) -> Pipeline:
    return Pipeline(server, tmp_path)


def test_what_is_in_the_cluster_already_changes_nothing(pipeline: Pipeline) -> None:
    code, said = pipeline.plan()
    assert (code, said["objects"], said["pods"]) == (0, [], [])
    assert said["summary"] == {"same": REPLICAS + 3}


def test_a_tighter_profile_stops_the_pipeline_and_names_each_workload_once(
    pipeline: Pipeline,
) -> None:
    paths = [{"path": "/srv", "readOnly": True}]
    pipeline.commit({**PROFILE, "spec": WEB | {"capabilities": {}, "hostPaths": paths}})
    code, said = pipeline.plan()
    assert code == 3
    assert said["summary"] == {"refused": REPLICAS + 2, "same": 1}
    found = {each["workload"]["name"]: each for each in said["pods"]}
    assert found["shop"]["workload"]["kind"] == "Deployment"
    assert found["shop"]["count"] == REPLICAS
    assert [each["field"] for each in found["shop"]["denials"]] == [
        "containers[main].securityContext.capabilities.add"
    ]
    assert found["elsewhere"]["profile"] == "heir"  # by what it inherits
    (denial,) = found["reader"]["denials"]
    assert denial["value"] == "hostPath /var/log/pods"
    assert {each["name"]: each["change"] for each in said["objects"]} == {
        "apart": "affected",
        "restricted": "affected",
        "web": "changed",
    }
    shown = pipeline.run()
    assert shown.returncode == 3
    assert f"{REPLICAS} Pods of Deployment shop/shop under NodeRuntime restricted" in shown.stdout


def test_a_change_that_only_changes_pods_is_another_exit_code(pipeline: Pipeline) -> None:
    users = {"nonRoot": True, "users": [{"min": 1000, "max": 2000}]}
    pipeline.commit({**PROFILE, "spec": WEB | {"rootFilesystem": "ReadOnly", "runAs": users}})
    code, said = pipeline.plan("--namespace", "shop")
    assert code == 4
    assert said["summary"] == {"changed": REPLICAS + 2, "depends": 1}
    changed = next(each for each in said["pods"] if each["workload"]["name"] == "shop")
    assert {"container": "main", "field": "root.readonly", "before": "false", "after": "true"} in (
        changed["changes"]
    )
    assert pipeline.plan("--namespace", "default")[1]["summary"] == {}


def test_a_noderuntime_that_is_pruned_takes_the_handler_from_its_pods(pipeline: Pipeline) -> None:
    pipeline.remove(APART)
    assert pipeline.plan()[0] == 0
    code, said = pipeline.plan("--prune")
    assert (code, said["summary"]) == (3, {"lost": 1, "same": REPLICAS + 2})
    assert said["pods"][0]["workload"] == {"kind": "Pod", "name": "elsewhere"}


def test_a_profile_that_would_be_stalled_is_an_error_of_the_change(pipeline: Pipeline) -> None:
    pipeline.commit({**HEIR, "spec": {"inherits": "web", "privileged": "Allow"}})
    done = pipeline.run()
    assert (done.returncode, done.stdout) == (2, "")
    assert "SecurityProfile heir: inherits web, which is tighter in privileged" in done.stderr


def test_a_namespace_and_an_account_that_may_read_is_all_that_is_needed(
    server: ApiServer, pipeline: Pipeline, tmp_path: Path
) -> None:
    account = "/api/v1/namespaces/shop/serviceaccounts"
    ensure(server, account, {"metadata": {"name": "pipeline"}})
    spec = {"audiences": ["https://noderuntime.test"], "expirationSeconds": 600}
    body = {"apiVersion": "authentication.k8s.io/v1", "kind": "TokenRequest", "spec": spec}
    answer = server.create(f"{account}/pipeline/token", body)
    kubeconfig = server.kubeconfig(tmp_path / "other", answer.body["status"]["token"])
    done = pipeline.run("--kubeconfig", str(kubeconfig))
    assert done.returncode == 1
    assert f"the API server at {server.url}: no list of NodeRuntimes: " in done.stderr
    assert "Traceback" not in done.stderr
    rbac = "/apis/rbac.authorization.k8s.io/v1"
    role: Json = {
        "metadata": {"name": "plan"},
        "rules": [
            {
                "apiGroups": ["", "node.k8s.io", "noderuntime.io"],
                "resources": [
                    *("pods", "nodes", "runtimeclasses", "noderuntimes", "securityprofiles"),
                ],
                "verbs": ["list"],
            }
        ],
    }
    ensure(server, f"{rbac}/clusterroles", role)
    subject = {"kind": "ServiceAccount", "name": "pipeline", "namespace": "shop"}
    ref = {"kind": "ClusterRole", "name": "plan", "apiGroup": "rbac.authorization.k8s.io"}
    binding = {"metadata": {"name": "plan"}, "roleRef": ref, "subjects": [subject]}
    ensure(server, f"{rbac}/clusterrolebindings", binding)
    wait_for(
        "the role is in force",
        lambda: pipeline.run("--kubeconfig", str(kubeconfig)).returncode == 0,
    )


def test_a_pod_with_a_field_of_a_newer_kubernetes_is_told(
    server: ApiServer, pipeline: Pipeline
) -> None:
    # windowsOptions is one that this version does not read; a real API server takes it.
    odd = pod("odd", {"windowsOptions": {"runAsUserName": "web"}})
    ensure(server, IN_SHOP, odd)
    try:
        pipeline.commit({**PROFILE, "spec": WEB | {"rootFilesystem": "ReadOnly"}})
        code, said = pipeline.plan()
    finally:
        assert server.call("DELETE", f"{IN_SHOP}/odd?gracePeriodSeconds=0").error == ""
    assert code == 4
    assert said["summary"] == {"unjudged": 1, "changed": REPLICAS + 3}
    assert "windowsOptions: there is no such field" in said["pods"][0]["says"][0]


def test_what_the_plan_says_of_a_merge_is_so_when_it_is_applied(
    server: ApiServer, pipeline: Pipeline
) -> None:
    spec = WEB | {"rootFilesystem": "ReadOnly"}
    pipeline.commit({**PROFILE, "spec": spec})
    assert pipeline.plan()[0] == 4
    path = f"{GROUP}/securityprofiles/web"
    assert server.call("PATCH", path, {"spec": spec}, content_type=MERGE).error == ""
    try:
        assert pipeline.plan()[0] == 0
    finally:
        back = {"spec": {"rootFilesystem": None}}
        assert server.call("PATCH", path, back, content_type=MERGE).error == ""
