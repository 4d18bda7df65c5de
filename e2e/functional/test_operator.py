"""The operator as a process on a real API server, with the chart's RBAC and admission policies.

Nodes are Node objects, the agents are played by the test; nothing else runs here.
"""

from __future__ import annotations

import time
from collections.abc import Generator
from typing import Any

import pytest

from e2e.framework.api_server import MERGE, TABLE, ApiServer, running_api_server, wait_for
from e2e.framework.operator_process import NAMESPACE, OperatorProcess, install_chart, token_of

Json = dict[str, Any]
GROUP = "/apis/noderuntime.io/v1alpha1"
CLASSES = "/apis/node.k8s.io/v1/runtimeclasses"
APPS = f"/apis/apps/v1/namespaces/{NAMESPACE}"
PODS = "/api/v1/namespaces/default/pods"
ADMISSION = "/apis/admissionregistration.k8s.io/v1"
POLICIES = ("validatingadmissionpolicies", "validatingadmissionpolicybindings")
MANAGED = "app.kubernetes.io/managed-by=noderuntime-operator"
OWN = (
    f"{GROUP}/noderuntimes",
    f"{GROUP}/noderuntimestates",
    CLASSES,
    f"{APPS}/daemonsets",
    f"{APPS}/controllerrevisions",
    *(f"{ADMISSION}/{plural}?labelSelector={MANAGED}" for plural in POLICIES),
)


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Generator[ApiServer]:
    with running_api_server() as running:
        install_chart(running, tmp_path_factory.mktemp("helm"))
        running.create("/api/v1/namespaces", {"metadata": {"name": "default"}})
        for name, pool in (("n1", "web"), ("n2", "web"), ("n3", "db")):
            labels = {"pool": pool, "kubernetes.io/os": "linux"}
            running.create("/api/v1/nodes", {"metadata": {"name": name, "labels": labels}})
        yield running


@pytest.fixture(scope="module")
def process(
    server: ApiServer, tmp_path_factory: pytest.TempPathFactory
) -> Generator[OperatorProcess]:
    made = OperatorProcess(server, tmp_path_factory.mktemp("operator"))
    try:
        made.start()
        yield made
    finally:
        made.kill()


@pytest.fixture
def operator(server: ApiServer, process: OperatorProcess) -> Generator[OperatorProcess]:
    """The running operator; afterwards everything is deleted and must have gone."""
    yield process
    if process.answer("/healthz") == 0:
        process.start()
    for pod in items(server, PODS):
        delete(server, f"{PODS}/{pod['metadata']['name']}?gracePeriodSeconds=0")
    for plural in ("noderuntimes", "securityprofiles"):
        for each in items(server, f"{GROUP}/{plural}"):
            delete(server, f"{GROUP}/{plural}/{each['metadata']['name']}")
    wait_for("everything is gone", lambda: agents_report(server) and not left(server))


def items(server: ApiServer, path: str) -> list[Json]:
    found: list[Json] = server.get(path).body["items"]
    return found


def delete(server: ApiServer, path: str) -> None:
    answer = server.call("DELETE", path)
    assert answer.status in (200, 202, 404), answer.error


def left(server: ApiServer) -> list[str]:
    return [each["metadata"]["name"] for path in OWN for each in items(server, path)]


def profile(server: ApiServer, name: str = "web", **spec: Any) -> None:  # noqa: ANN401
    body = {
        "apiVersion": "noderuntime.io/v1alpha1",
        "kind": "SecurityProfile",
        "metadata": {"name": name},
        "spec": spec,
    }
    assert server.apply(f"{GROUP}/securityprofiles/{name}", body).error == ""


def runtime(server: ApiServer, name: str = "restricted", **spec: Any) -> None:  # noqa: ANN401
    head = {
        "handler": "restricted",
        "nodeSelector": {"matchLabels": {"pool": "web"}},
        "securityProfileRef": {"name": "web"},
    }
    body = {
        "apiVersion": "noderuntime.io/v1alpha1",
        "kind": "NodeRuntime",
        "metadata": {"name": name},
        "spec": head | spec,
    }
    assert server.apply(f"{GROUP}/noderuntimes/{name}", body).error == ""


def pod(server: ApiServer, name: str, node: str) -> Json:
    container = {"name": "c", "image": "registry.example.com/web:1"}
    spec = {"runtimeClassName": "restricted", "nodeName": node, "containers": [container]}
    answer = server.create(PODS, {"metadata": {"name": name}, "spec": spec})
    assert answer.error == ""
    return answer.body


def agents_report(server: ApiServer) -> bool:
    """Play every agent: serve what the state names, if that revision can be read."""
    for state in items(server, f"{GROUP}/noderuntimestates"):
        name, wanted = state["metadata"]["name"], state["spec"]["revision"]
        revision = server.get(f"{APPS}/controllerrevisions/{wanted['name']}").body
        body = {
            "apiVersion": state["apiVersion"],
            "kind": state["kind"],
            "metadata": {"name": name},
            "status": {
                "observedGeneration": state["metadata"]["generation"],
                "revision": {"digest": revision["data"]["digest"]},
                "handlers": [each["name"] for each in revision["data"]["handlers"]],
            },
        }
        server.apply(f"{GROUP}/noderuntimestates/{name}/status", body, manager="agent")
    return True


def status(server: ApiServer, name: str = "restricted") -> Json:
    found: Json = server.get(f"{GROUP}/noderuntimes/{name}").body["status"]
    return found


def condition(server: ApiServer, kind: str, name: str = "restricted") -> Json:
    found = status(server, name).get("conditions", [])
    return next((each for each in found if each["type"] == kind), {"status": "", "message": ""})


def wait_condition(
    server: ApiServer, kind: str, reason: str, name: str = "restricted", *, agents: bool = True
) -> Json:
    def told() -> Json | None:
        if agents:
            agents_report(server)
        found = condition(server, kind, name)
        return found if (found["status"], found.get("reason")) == ("True", reason) else None

    found: Json = wait_for(f"{kind} because of {reason}", told)
    return found


def test_a_noderuntime_becomes_ready_when_its_nodes_serve_it(
    server: ApiServer, operator: OperatorProcess
) -> None:
    runtime(server, resources={"overhead": {"cpu": "1000m", "memory": "8Mi"}})
    told = wait_condition(server, "Stalled", "ProfileNotFound")
    assert told["message"].startswith("SecurityProfile web does not exist")
    profile(server, capabilities={"allow": ["NET_BIND_SERVICE"]})
    told = wait_condition(server, "Reconciling", "Progressing", agents=False)
    assert "waiting for n1 (its agent has not reported), n2" in told["message"]
    wait_condition(server, "Ready", "Served")
    assert status(server)["servedNodes"] == "2/2"

    made = server.get(f"{CLASSES}/restricted").body
    assert made["handler"] == "restricted"
    assert made["scheduling"]["nodeSelector"] == {"pool": "web"}
    assert made["overhead"]["podFixed"] == {"cpu": "1", "memory": "8Mi"}
    assert made["metadata"]["ownerReferences"][0]["kind"] == "NodeRuntime"

    daemonset = server.get(f"{APPS}/daemonsets/noderuntime-agent").body
    owner = server.get(f"{APPS}/deployments/noderuntime-operator").body["metadata"]["uid"]
    assert daemonset["metadata"]["ownerReferences"][0]["uid"] == owner
    template = daemonset["spec"]["template"]["spec"]
    assert template["containers"][0]["image"] == "registry.example.com/noderuntime:1"
    assert "runtimeClassName" not in template

    states = {
        each["metadata"]["name"]: each for each in items(server, f"{GROUP}/noderuntimestates")
    }
    assert sorted(states) == ["n1", "n2"]
    used = server.get(f"{GROUP}/securityprofiles/web").body["status"]["usedBy"]
    assert used == ["restricted"]


def test_kubectl_get_tells_the_story(server: ApiServer, operator: OperatorProcess) -> None:
    profile(server)
    runtime(server)
    wait_condition(server, "Ready", "Served")
    agents_report(server)
    assert columns(server, "noderuntimes") == {
        "Name": "restricted",
        "Handler": "restricted",
        "Profile": "web",
        "Ready": "True",
        "Nodes": "2/2",
        "Reason": "Served",
    }
    assert columns(server, "securityprofiles") == {
        "Name": "web",
        "Mode": "Enforce",
        "Inherits": None,
        "Used-By": '["restricted"]',
        "Ready": "True",
    }
    assert columns(server, "noderuntimestates")["Handlers"] == '["restricted"]'


def columns(server: ApiServer, plural: str) -> Json:
    """The first row as `kubectl get` prints it, without the age."""
    table = server.call("GET", f"{GROUP}/{plural}", accept=TABLE).body
    shown = [each["name"] for each in table["columnDefinitions"] if each["priority"] == 0]
    cells = [
        cell
        for cell, each in zip(table["rows"][0]["cells"], table["columnDefinitions"], strict=True)
        if each["priority"] == 0
    ]
    return {name: cell for name, cell in zip(shown, cells, strict=True) if name != "Age"}


def test_a_settled_cluster_is_not_written_to(server: ApiServer, operator: OperatorProcess) -> None:
    profile(server)
    runtime(server, resources={"overhead": {"cpu": "1000m"}})
    wait_condition(server, "Ready", "Served")

    def versions() -> list[str]:
        own = [*OWN, f"{GROUP}/securityprofiles"]
        return [each["metadata"]["resourceVersion"] for path in own for each in items(server, path)]

    before = versions()
    written = operator.log.read_text().count("step done")
    assert written > 0
    for number in range(3):  # each is a pass
        labels = {"metadata": {"labels": {"touched": str(number)}}}
        server.call("PATCH", "/api/v1/nodes/n3", labels, content_type=MERGE)
        time.sleep(0.4)
    assert versions() == before
    assert operator.log.read_text().count("step done") == written


def test_admission_refuses_what_the_profile_does_and_follows_it(
    server: ApiServer, operator: OperatorProcess
) -> None:
    profile(server, hostNamespaces=["PID"])
    runtime(server)
    wait_condition(server, "Ready", "Served")

    def denied(**spec: Any) -> str:  # noqa: ANN401
        container = {"name": "c", "image": "registry.example.com/web:1"}
        asked = {"runtimeClassName": "restricted", "containers": [container], **spec}
        body = {"metadata": {"name": "asking"}, "spec": asked}
        return server.create(PODS, body, dry_run=True).error

    wait_for("it is refused", lambda: denied(hostIPC=True))
    assert denied(hostIPC=True).endswith(
        "denied request: hostIPC: true is refused by SecurityProfile web: hostNamespaces has PID; "
        "remove hostIPC from the Pod, or add IPC to hostNamespaces"
    )
    assert denied(hostPID=True) == ""
    profile(server, hostNamespaces=["IPC"])
    wait_for("the other is", lambda: denied(hostPID=True))
    assert denied(hostIPC=True) == ""
    name = f"{ADMISSION}/{POLICIES[1]}/restricted.noderuntime.io"
    delete(server, name)
    wait_for("the binding is made again", lambda: server.get(name).status == 200)


def test_a_changed_profile_is_a_new_revision_and_the_old_one_stays(
    server: ApiServer, operator: OperatorProcess
) -> None:
    profile(server)
    runtime(server)
    wait_condition(server, "Ready", "Served")
    old = items(server, f"{GROUP}/noderuntimestates")[0]["spec"]["revision"]
    profile(server, rootFilesystem="ReadOnly")
    told = wait_condition(server, "Reconciling", "Progressing", agents=False)
    assert "it does not serve revision noderuntime-" in told["message"]
    wait_condition(server, "Ready", "Served")
    new = items(server, f"{GROUP}/noderuntimestates")[0]["spec"]["revision"]
    assert new != old
    names = [each["metadata"]["name"] for each in items(server, f"{APPS}/controllerrevisions")]
    assert {old["name"], new["name"]} <= set(names)


def test_a_deleted_noderuntime_waits_for_its_pods_also_over_a_crash(
    server: ApiServer, operator: OperatorProcess
) -> None:
    profile(server)
    runtime(server)
    wait_condition(server, "Ready", "Served")
    pod(server, "web", "n1")
    delete(server, f"{GROUP}/noderuntimes/restricted?propagationPolicy=Foreground")
    told = wait_condition(server, "Reconciling", "InUse")
    assert told["message"] == (
        "deleted, and waiting for 1 Pod that uses handler restricted: default/web; "
        "it goes when they are gone"
    )
    operator.kill()
    delete(server, f"{GROUP}/securityprofiles/web")
    operator.start()
    wait_condition(server, "Reconciling", "InUse")
    assert server.get(f"{CLASSES}/restricted").status == 200
    operator.kill()
    delete(server, f"{PODS}/web?gracePeriodSeconds=0")
    operator.start()
    # There is no garbage collector here, which would end the foreground deletion.
    server.call(
        "PATCH",
        f"{GROUP}/noderuntimes/restricted",
        {"metadata": {"finalizers": ["noderuntime.io/in-use"]}},
        content_type=MERGE,
    )
    wait_for("everything is gone", lambda: agents_report(server) and not left(server))


def test_of_two_with_one_handler_the_younger_is_stalled(
    server: ApiServer, operator: OperatorProcess
) -> None:
    profile(server)
    runtime(server, "first")
    wait_condition(server, "Ready", "Served", "first")
    time.sleep(1.1)  # creation times are whole seconds
    runtime(server, "second")
    told = wait_condition(server, "Stalled", "HandlerConflict", "second")
    assert "the older NodeRuntime first on 2 nodes" in told["message"]
    delete(server, f"{GROUP}/noderuntimes/first")
    wait_condition(server, "Ready", "Served", "second")


def test_an_agent_writes_only_to_the_state_of_its_own_node(
    server: ApiServer, operator: OperatorProcess
) -> None:
    profile(server)
    runtime(server)
    wait_condition(server, "Ready", "Served")
    token = agents_token(server, "n1")

    def write(node: str, by: str) -> str:
        body = {
            "apiVersion": "noderuntime.io/v1alpha1",
            "kind": "NodeRuntimeState",
            "metadata": {"name": node},
            "status": {"observedGeneration": 1, "handlers": ["restricted"]},
        }
        path = f"{GROUP}/noderuntimestates/{node}/status"
        return server.apply(path, body, manager="noderuntime-agent", token=by).error

    assert write("n1", token) == ""
    refused = "the agent of node n1 may write only to the NodeRuntimeState of that name"
    assert refused in write("n2", token)
    unbound = token_of(server, "noderuntime-agent")
    assert "the token of this agent is not bound to a node" in write("n1", unbound)
    spec = {"spec": {"revision": {"name": "x"}}}
    path = f"{GROUP}/noderuntimestates/n1"
    assert server.call("PATCH", path, spec, content_type=MERGE, token=token).status == 403


def agents_token(server: ApiServer, node: str) -> str:
    path = f"/api/v1/namespaces/{NAMESPACE}/pods"
    spec = {
        "serviceAccountName": "noderuntime-agent",
        "nodeName": node,
        "containers": [{"name": "agent", "image": "x"}],
    }
    answer = server.create(path, {"metadata": {"name": f"agent-{node}"}, "spec": spec})
    assert answer.error == ""
    return token_of(server, "noderuntime-agent", answer.body)


def test_an_agent_reads_what_it_needs(server: ApiServer, operator: OperatorProcess) -> None:
    profile(server)
    runtime(server)
    wait_condition(server, "Ready", "Served")
    token = token_of(server, "noderuntime-agent")
    state = server.call("GET", f"{GROUP}/noderuntimestates/n1", token=token)
    revision = state.body["spec"]["revision"]["name"]
    path = f"{APPS}/controllerrevisions"
    assert server.call("GET", f"{path}/{revision}", token=token).status == 200
    for forbidden in (path, f"{GROUP}/noderuntimes", "/api/v1/nodes", "/api/v1/secrets"):
        assert server.call("GET", forbidden, token=token).status == 403


def test_the_operator_cannot_write_to_a_spec(server: ApiServer, operator: OperatorProcess) -> None:
    profile(server)
    runtime(server)
    wait_condition(server, "Ready", "Served")
    token = token_of(server, "noderuntime-operator")
    path = f"{GROUP}/noderuntimes/restricted"
    body = {"spec": {"resources": {"pidsLimit": 1}}}
    answer = server.call("PATCH", path, body, content_type=MERGE, token=token)
    assert "the operator does not write to the spec of a NodeRuntime" in answer.error


def test_after_the_operator_is_removed_nothing_holds_a_noderuntime(
    server: ApiServer, operator: OperatorProcess
) -> None:
    profile(server)
    runtime(server)
    wait_condition(server, "Ready", "Served")
    operator.kill()
    operator.release()
    path = f"{GROUP}/noderuntimes/restricted"
    assert server.get(path).body["metadata"].get("finalizers", []) == []
    delete(server, path)
    assert server.get(path).status == 404
    delete(server, f"{CLASSES}/restricted")  # the garbage collector
    operator.start()


def test_the_operator_has_all_the_permissions_that_it_asks_for(operator: OperatorProcess) -> None:
    """The last word over all tests before: nothing was forbidden to it."""
    log = operator.log.read_text().lower()
    assert "forbidden" not in log
    assert "traceback" not in log


def test_the_operator_ends_cleanly_when_it_is_told_to(operator: OperatorProcess) -> None:
    assert operator.answer("/healthz") == 200
    assert operator.terminate() == 0
