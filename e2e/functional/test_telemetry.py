"""A Pod's start is one trace, received by a real collector; metrics and probes tell the truth."""

from __future__ import annotations

import json
import subprocess
import urllib.request
from collections.abc import Iterator
from typing import NamedTuple

import pytest

from e2e.framework import pods
from e2e.framework.cluster import Cluster
from e2e.framework.waiting import wait_for

METRICS = "http://127.0.0.1:9475"
COLLECTOR = "http://127.0.0.1:4317"
OURS = {
    "policy.admit", "images.pull", "images.snapshot", "network.attach", "sandbox.namespaces",
    "oci.create", "oci.start",
}  # fmt: skip


class Span(NamedTuple):
    service: str
    trace: str
    span: str
    parent: str
    name: str


def spans(cluster: Cluster) -> Iterator[Span]:
    text = cluster.layout.traces.read_text()
    for line in text[: text.rfind("\n") + 1].splitlines():  # the last may be half written
        for resource in json.loads(line).get("resourceSpans", []):
            attributes = resource["resource"].get("attributes", [])
            service = next(
                a["value"]["stringValue"] for a in attributes if a["key"] == "service.name"
            )
            for scope in resource["scopeSpans"]:
                for found in scope["spans"]:
                    yield Span(service, found["traceId"], found["spanId"],
                               found.get("parentSpanId", ""), found["name"])  # fmt: skip


@pytest.fixture
def traced(cluster: Cluster) -> Iterator[str]:
    """The handler restricted with tracing on."""
    endpoint = {"endpoint": COLLECTOR, "samplingRatePerMillion": 1000000}
    patch("tracing", endpoint, cluster)
    yield "restricted"
    patch("tracing", None, cluster)


def patch(field: str, value: object, cluster: Cluster) -> None:
    cluster.kubectl("patch", "noderuntime", "restricted", "--type=merge", "-p",
                    json.dumps({"spec": {field: value}}))  # fmt: skip

    def served() -> bool:
        found = cluster.api.get("noderuntime", "restricted")
        state = cluster.api.get("noderuntimestate", cluster.node)
        assert found
        assert state
        assert found["status"]["observedGeneration"] == found["metadata"]["generation"]
        return bool(state["status"]["revision"]["digest"] == state["spec"]["revision"]["digest"])

    wait_for("the revision served", served)
    wait_for(
        "tracing as declared", lambda: followed(cluster) == ("off" if value is None else COLLECTOR)
    )


def followed(cluster: Cluster) -> str:
    """Where the runtime last said that its spans go; it follows the revision once a second."""
    lines = (cluster.layout.logs / "noderuntime.log").read_text().splitlines()
    told = [json.loads(line) for line in lines if '"message": "tracing"' in line]
    return str(told[-1]["endpoint"]) if told else "off"


def test_a_pods_start_is_one_trace(cluster: Cluster, namespace: str, traced: str) -> None:
    cluster.apply(
        pods.pod("traced", pods.busybox("sleep", "100000", imagePullPolicy="Always", **pods.AS_USER),
                 handler=traced),
        namespace=namespace,
    )  # fmt: skip
    cluster.wait_ready("traced", namespace)

    def whole() -> list[Span]:
        traces: dict[str, list[Span]] = {}
        for found in spans(cluster):
            traces.setdefault(found.trace, []).append(found)
        best = max(
            traces.values(), key=lambda each: len(OURS & {span.name for span in each}), default=[]
        )
        missing = OURS - {span.name for span in best}
        assert not missing, f"missing {missing} in {sorted({(s.service, s.name) for s in best})}"
        by_id = {span.span: span for span in best}
        for span in best:  # the kubelet sends its spans every few seconds, so they come later
            if span.name in OURS:
                assert "kubelet" in services_above(span, by_id), span
        return best

    assert {span.service for span in wait_for("the trace", whole, 30)} == {"kubelet", "noderuntime"}


def services_above(span: Span, by_id: dict[str, Span]) -> set[str]:
    seen: set[str] = set()
    while span.parent in by_id:
        span = by_id[span.parent]
        seen.add(span.service)
    return seen


def test_metrics_are_valid_and_count(cluster: Cluster) -> None:
    with urllib.request.urlopen(f"{METRICS}/metrics", timeout=5) as answer:  # noqa: S310
        text = answer.read().decode()
    checked = subprocess.run(
        ["promtool", "check", "metrics"], input=text, capture_output=True, text=True, check=False,
    )  # fmt: skip
    assert checked.returncode == 0, checked.stdout + checked.stderr
    assert 'method="RunPodSandbox"' in text


@pytest.mark.parametrize("path", ["healthz", "readyz"])
def test_the_probes_say_ok_while_it_serves(cluster: Cluster, path: str) -> None:
    del cluster
    with urllib.request.urlopen(f"{METRICS}/{path}", timeout=5) as answer:  # noqa: S310
        assert answer.status == 200
