"""Whatever is made and deleted, in any order, with the operator killed anywhere: it ends, and nothing stays."""

from __future__ import annotations

from datetime import timedelta

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from noderuntime_operator.reconcile.names import FINALIZER
from noderuntime_operator.reconcile.plan import Kind
from tests.fakes.operator_cluster import FakeCluster

NODES = ("n1", "n2", "n3")
RUNTIMES = {"a": "restricted", "b": "restricted", "c": "free"}
OWN = (
    *(Kind.NODE_RUNTIME, Kind.RUNTIME_CLASS, Kind.DAEMON_SET, Kind.STATE, Kind.REVISION),
    *(Kind.ADMISSION_POLICY, Kind.ADMISSION_BINDING),
)
DELETIONS = [
    *[(str(Kind.NODE_RUNTIME), name) for name in RUNTIMES],
    *[(str(Kind.SECURITY_PROFILE), name) for name in ("web", "other")],
    *[("Node", name) for name in NODES],
    *[("Pod", f"default/{number}") for number in range(4)],
    (str(Kind.RUNTIME_CLASS), "restricted"),
    (str(Kind.DAEMON_SET), "noderuntime-agent"),
    (str(Kind.STATE), "n1"),
]
FIXED = settings(deadline=None, derandomize=True, database=None)
# After each deletion: nothing, a whole pass, one that is killed after some writes, agents that report.
BETWEEN = st.one_of(st.none(), st.just(99), st.integers(0, 6), st.just("agents"))


def full_cluster() -> FakeCluster:
    cluster = FakeCluster()
    for number, name in enumerate(NODES):
        cluster.node(name, pool="web" if number else "db")
    cluster.profile("web")
    cluster.profile("other")
    cluster.runtime("a", RUNTIMES["a"], nodeSelector={"matchLabels": {"pool": "web"}})
    cluster.runtime("b", RUNTIMES["b"])
    cluster.runtime("c", RUNTIMES["c"], securityProfileRef={"name": "other"})
    cluster.settle()
    for number, (node, handler) in enumerate(
        [("n1", "restricted"), ("n2", "restricted"), ("n3", "free"), ("", "free")]
    ):
        cluster.pod(f"default/{number}", node, handler)
    return cluster


@pytest.mark.slow
@given(
    st.permutations(DELETIONS), st.lists(BETWEEN, min_size=len(DELETIONS), max_size=len(DELETIONS))
)
@settings(FIXED, max_examples=40, suppress_health_check=[HealthCheck.too_slow])
def test_deleting_everything_in_any_order_ends(
    order: list[tuple[str, str]], between: list[int | str | None]
) -> None:
    cluster = full_cluster()
    for (kind, name), then in zip(order, between, strict=True):
        cluster.delete(kind, name)
        if then == "agents":
            cluster.agents_report()
        elif isinstance(then, int):
            pass_that_keeps_what_is_used(cluster, then)
    for kind, name in order:  # what came back in between goes as well
        if kind in ("Node", "Pod"):
            cluster.delete(kind, name)
    cluster.settle()
    for kind in OWN:
        assert cluster.names(kind) == [], kind


@given(st.permutations(sorted(RUNTIMES)))
@settings(FIXED, max_examples=6)
def test_it_ends_without_any_agent_too(order: list[str]) -> None:
    cluster = full_cluster()
    for name in cluster.names("Pod"):
        cluster.delete("Pod", name)
    for name in order:
        cluster.delete(Kind.NODE_RUNTIME, name)
        cluster.run_pass()
    for _ in range(8):
        cluster.now += timedelta(minutes=1)
        cluster.run_pass()
    for kind in OWN:
        assert cluster.names(kind) == [], kind


def pass_that_keeps_what_is_used(cluster: FakeCluster, stop_after: int) -> None:
    """Run a pass, and check that no NodeRuntime goes while a Pod on a node needs its handler."""
    before = {
        name: body["spec"]["handler"]
        for name, body in cluster.of(Kind.NODE_RUNTIME).items()
        if FINALIZER in body["metadata"].get("finalizers", [])
    }
    cluster.run_pass(stop_after=stop_after)
    left = {
        body["spec"]["handler"]
        for body in cluster.of(Kind.NODE_RUNTIME).values()
        if "deletionTimestamp" in body["metadata"] or FINALIZER in body["metadata"]["finalizers"]
    }
    needed = {
        body["spec"]["runtimeClassName"]
        for body in cluster.of("Pod").values()
        if not body["spec"].get("nodeName") or body["spec"]["nodeName"] in cluster.of("Node")
    }
    assert needed & set(before.values()) <= left
