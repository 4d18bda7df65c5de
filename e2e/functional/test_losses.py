"""Whatever dies beside them, running Pods keep serving; what dies itself comes back."""

from __future__ import annotations

import urllib.request
from collections.abc import Callable

import pytest

from e2e.framework import pods
from e2e.framework.cluster import Cluster
from e2e.framework.waiting import wait_for

SYSTEM = "noderuntime-system"


def answers(address: str) -> bool:
    with urllib.request.urlopen(f"http://{address}:8080/healthz", timeout=5) as answer:
        return bool(answer.status == 200)


@pytest.fixture
def server(cluster: Cluster, namespace: str) -> Callable[[], bool]:
    """A governed web server; call it to ask whether it answers and never restarted."""
    cluster.apply(
        pods.pod("server", pods.agnhost("netexec", "--http-port=8080", **pods.AS_USER),
                 pods.shell("n=0; while :; do n=$((n+1)); echo tick $n; sleep 0.2; done",
                            name="ticker", **pods.AS_USER),
                 handler="restricted"),
        namespace=namespace,
    )  # fmt: skip
    address = cluster.wait_ready("server", namespace)["status"]["podIP"]
    return lambda: answers(address)


def restarts(cluster: Cluster, namespace: str) -> list[int]:
    states = cluster.pod("server", namespace)["status"]["containerStatuses"]
    return [state["restartCount"] for state in states]


def ticks(cluster: Cluster, namespace: str) -> list[int]:
    text = cluster.kubectl("logs", "-n", namespace, "server", "-c", "ticker")
    return [int(line.split()[1]) for line in text.splitlines()]


def test_the_runtime_killed_with_kill_9(
    cluster: Cluster, namespace: str, server: Callable[[], bool]
) -> None:
    """Containers and their logs go on without the runtime; the new one knows them all."""
    before = max(ticks(cluster, namespace))
    cluster.kill("noderuntime")
    assert server()
    cluster.restart("--tracing")
    assert server()
    wait_for("the node ready", lambda: node_is_ready(cluster))
    after = wait_for("later ticks", lambda: later(cluster, namespace, before + 10))
    assert after == list(range(1, len(after) + 1)), "a line was lost"
    assert restarts(cluster, namespace) == [0, 0]
    assert cluster.kubectl("exec", "-n", namespace, "server", "-c", "ticker", "--", "true") == ""
    cluster.apply(pods.pod("next", pods.busybox("sleep", "1000", **pods.AS_USER), handler="restricted"),
                  namespace=namespace)  # fmt: skip
    cluster.wait_ready("next", namespace)


def later(cluster: Cluster, namespace: str, least: int) -> list[int] | None:
    seen = ticks(cluster, namespace)
    return seen if max(seen) >= least else None


def node_is_ready(cluster: Cluster) -> bool:
    node = cluster.api.get("node", cluster.node)
    assert node
    return any(c["type"] == "Ready" and c["status"] == "True" for c in node["status"]["conditions"])


@pytest.mark.parametrize("who", ["noderuntime-agent", "noderuntime-operator"])
def test_the_agent_and_the_operator_killed(
    cluster: Cluster, namespace: str, server: Callable[[], bool], who: str
) -> None:
    """A process of the Pod is killed on the node; the kubelet starts it again."""
    name = pod_of(cluster, who)
    count = restart_count(cluster, name)
    kill_main_process(cluster, name)
    assert server()
    wait_for(f"{who} back", lambda: restart_count(cluster, name) > count)
    cluster.wait_ready(name, SYSTEM)
    assert server()
    assert restarts(cluster, namespace) == [0, 0]


def pod_of(cluster: Cluster, who: str) -> str:
    names = [pod["metadata"]["name"] for pod in cluster.api.list("pod", SYSTEM)]
    found: list[str] = [name for name in names if name.startswith(who)]
    assert found, names
    return found[0]


def restart_count(cluster: Cluster, name: str) -> int:
    states = cluster.pod(name, SYSTEM)["status"]["containerStatuses"]
    return sum(int(state["restartCount"]) for state in states)


def kill_main_process(cluster: Cluster, name: str) -> None:
    """SIGKILL to PID 1 of the Pod's container, from the node."""
    identifier = cluster.pod(name, SYSTEM)["status"]["containerStatuses"][0]["containerID"]
    cluster.kill_container(identifier.split("://")[1])


def test_the_api_server_stopped(
    cluster: Cluster, namespace: str, server: Callable[[], bool]
) -> None:
    """Without the control plane Pods serve on."""
    cluster.kill("kube-apiserver")
    try:
        for _ in range(5):
            assert server()
    finally:
        cluster.restart("--tracing")
    assert server()
    assert restarts(cluster, namespace) == [0, 0]


def test_a_crashed_container_is_restarted_and_its_last_log_kept(
    cluster: Cluster, namespace: str
) -> None:
    cluster.apply(
        pods.pod("crasher", pods.shell("echo life of $(cut -d. -f1 /proc/uptime); exit 3", **pods.AS_USER),
                 handler="restricted"),
        namespace=namespace,
    )  # fmt: skip

    def state() -> dict[str, object] | None:
        states = cluster.pod("crasher", namespace)["status"].get("containerStatuses", [])
        return states[0] if states and states[0]["restartCount"] >= 1 else None

    found = wait_for("a restart", state, 90)
    last = found["lastState"]
    assert isinstance(last, dict)
    assert (last["terminated"]["exitCode"], last["terminated"]["reason"]) == (3, "Error")
    words = ("logs", "-n", namespace, "crasher", "--previous")
    # The kubelet keeps the last one only, so just after a restart it may have gone.
    wait_for("the log", lambda: cluster.kubectl(*words).startswith("life of "))
    cluster.wait_event("crasher", "Back-off", namespace=namespace, limit_s=60)
