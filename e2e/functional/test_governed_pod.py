"""The main job: a Pod that names the handler runs under the declared profile, and serves."""

from __future__ import annotations

import re
import urllib.request
from typing import Any

from e2e.framework import pods
from e2e.framework.cluster import Cluster
from e2e.framework.waiting import wait_for

RESTRICTED = "restricted"
Json = dict[str, Any]


def fetch(url: str) -> str:
    with urllib.request.urlopen(url, timeout=5) as answer:  # noqa: S310 - our own Service
        text: bytes = answer.read()
        return text.decode()


def test_the_node_offers_the_declared_handler(cluster: Cluster) -> None:
    node = cluster.api.get("node", cluster.node)
    assert node
    assert node["status"]["nodeInfo"]["containerRuntimeVersion"].startswith("noderuntime://")
    handlers = {handler.get("name", "") for handler in node["status"]["runtimeHandlers"]}
    assert {RESTRICTED, ""} <= handlers


def test_the_example_pod_answers_over_its_service(cluster: Cluster) -> None:
    service = cluster.api.get("service", "web")
    assert service
    address = service["spec"]["clusterIP"]
    hostname = wait_for("the Service", lambda: fetch(f"http://{address}/hostname"))
    assert hostname.startswith("web-")


def test_the_declared_capabilities_and_filter_are_in_force(
    cluster: Cluster, namespace: str
) -> None:
    asked: Json = {
        "securityContext": pods.AS_USER["securityContext"]
        | {"capabilities": {"add": ["NET_BIND_SERVICE"]}}
    }
    cluster.apply(
        pods.pod("plain", pods.busybox("sleep", "100000", **pods.AS_USER), handler=RESTRICTED),
        pods.pod("binds", pods.busybox("sleep", "100000", **asked), handler=RESTRICTED),
        namespace=namespace,
    )
    for name, bounding in (("plain", 0), ("binds", 1 << 10)):
        cluster.wait_ready(name, namespace)
        status = cluster.exec(name, "cat", "/proc/1/status", namespace=namespace)
        fields = dict(re.findall(r"^(\w+):\t(\S+)", status, re.MULTILINE))
        assert int(fields["CapBnd"], 16) == bounding
        assert fields["Seccomp"] == "2"
        assert fields["NoNewPrivs"] == "1"
        assert fields["Uid"] == "1000"


def test_a_system_call_that_the_profile_denies_fails_inside(
    cluster: Cluster, namespace: str
) -> None:
    cluster.apply(
        pods.pod("inside", pods.busybox("sleep", "100000", **pods.AS_USER), handler=RESTRICTED),
        namespace=namespace,
    )
    cluster.wait_ready("inside", namespace)
    unshare = cluster.kubectl.run("exec", "-n", namespace, "inside", "--", "unshare", "-U", "true")
    assert unshare.returncode != 0
    assert "Operation not permitted" in unshare.stderr


def test_the_root_is_read_only_and_limits_are_the_declared_defaults(
    cluster: Cluster, namespace: str
) -> None:
    cluster.apply(
        pods.pod("bounded", pods.busybox("sleep", "100000", **pods.AS_USER), handler=RESTRICTED),
        namespace=namespace,
    )
    cluster.wait_ready("bounded", namespace)
    touch = cluster.kubectl.run("exec", "-n", namespace, "bounded", "--", "touch", "/file")
    assert "Read-only file system" in touch.stderr
    limit = cluster.exec(
        "bounded",
        "sh",
        "-c",
        "cat /sys/fs/cgroup/memory.max /sys/fs/cgroup/memory/memory.limit_in_bytes 2>/dev/null; true",
        namespace=namespace,
    )
    assert limit.split()[0] == str(128 * 1024 * 1024)


def test_redis_serves_its_benchmark_under_the_profile(cluster: Cluster, namespace: str) -> None:
    """Redis as Debian ships it, and its own load generator in a second Pod, through a Service."""
    data: Json = {"volumeMounts": [{"name": "data", "mountPath": "/data"}]}
    cluster.apply(
        pods.pod(
            "redis",
            pods.container("redis", **pods.AS_USER, **data),
            handler=RESTRICTED,
            volumes=[{"name": "data", "emptyDir": {}}],
            securityContext={"fsGroup": 1000},
        ),
        pods.service("redis", 6379),
        namespace=namespace,
    )
    cluster.wait_ready("redis", namespace)
    service = cluster.api.get("service", "redis", namespace)
    assert service
    cluster.apply(
        pods.pod(
            "load",
            pods.container(
                "redis",
                "redis-benchmark",
                "-h",
                service["spec"]["clusterIP"],
                "-t",
                "set,get",
                "-n",
                "20000",
                "-q",
                **pods.AS_USER,
            ),
            handler=RESTRICTED,
            restartPolicy="Never",
        ),
        namespace=namespace,
    )
    cluster.wait_phase("load", "Succeeded", namespace, limit_s=120)
    rates = re.findall(
        r"(SET|GET): ([0-9.]+) requests per second",
        cluster.kubectl("logs", "-n", namespace, "load").replace("\r", "\n"),
    )
    assert {name for name, _ in rates} == {"SET", "GET"}
    assert cluster.exec("redis", "redis-cli", "dbsize", namespace=namespace).strip() != "0"


def test_a_pod_without_our_handler_runs_as_on_any_other_runtime(
    cluster: Cluster, namespace: str
) -> None:
    cluster.apply(pods.pod("free", pods.busybox("sleep", "100000")), namespace=namespace)
    cluster.wait_ready("free", namespace)
    status = cluster.exec("free", "cat", "/proc/1/status", namespace=namespace)
    assert "CapBnd:\t00000000a80425fb" in status  # the fourteen that engines share
    assert "Uid:\t0" in status
    assert cluster.exec("free", "touch", "/file", namespace=namespace) == ""
