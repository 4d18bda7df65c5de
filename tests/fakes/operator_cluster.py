"""A cluster in memory for the operator: objects as JSON, finalizers, garbage collection, agents on request.

It knows only what the reconcile needs of an API server. What it takes for true is checked against the
real one in ``e2e/functional/test_operator.py``.
"""

from __future__ import annotations

import copy
import itertools
from collections.abc import Mapping
from datetime import UTC, datetime, timedelta
from typing import Any

from noderuntime.api.revision import Revision
from noderuntime_operator import parse
from noderuntime_operator.reconcile.names import FINALIZER, LABELS
from noderuntime_operator.reconcile.observed import AdmissionSeen, Observed, Settings
from noderuntime_operator.reconcile.plan import Action, Apply, Kind, Plan
from noderuntime_operator.reconcile.reconcile import reconcile

Json = dict[str, Any]
START = datetime(2026, 1, 1, tzinfo=UTC)
SETTINGS = Settings(namespace="noderuntime-system", agent_image="registry/noderuntime:1")


class FakeCluster:
    """Objects by kind and name; a Pod's name is ``namespace/name``."""

    def __init__(self) -> None:
        self.now = START
        self.objects: dict[str, dict[str, Json]] = {}
        self.writes: list[Action] = []
        self.without_admission = ""  # why the API server has no admission policies
        self._uids = itertools.count(1)

    # What users, kubelets and controllers do.

    def create(self, kind: str, name: str, **body: Any) -> Json:
        """Make an object; a second later than the one before."""
        self.now += timedelta(seconds=1)
        metadata = {
            "name": name.rpartition("/")[2],
            "namespace": name.rpartition("/")[0],
            "uid": f"uid-{next(self._uids)}",
            "generation": 1,
            "creationTimestamp": self.now.isoformat(timespec="seconds"),
        } | body.pop("metadata", {})
        made = {"kind": kind, "metadata": metadata, **body}
        self.of(kind)[name] = made
        return made

    def node(self, name: str, **labels: str) -> None:
        self.create("Node", name, metadata={"labels": labels})

    def profile(self, name: str = "web", **spec: Any) -> None:
        self.create(Kind.SECURITY_PROFILE, name, spec=spec)

    def runtime(self, name: str, handler: str = "restricted", **spec: Any) -> None:
        head = {"handler": handler, "securityProfileRef": {"name": "web"}}
        self.create(Kind.NODE_RUNTIME, name, spec=head | spec)

    def pod(self, name: str, node: str = "", runtime_class: str = "restricted") -> None:
        spec = {"runtimeClassName": runtime_class} | ({"nodeName": node} if node else {})
        self.create("Pod", name, spec=spec)

    def edit(self, kind: str, name: str, **spec: Any) -> None:
        found = self.of(kind)[name]
        found["spec"] = found["spec"] | spec
        found["metadata"]["generation"] += 1

    def delete(self, kind: str, name: str) -> None:
        """Delete as the API server does: with finalizers, only marked."""
        found = self.of(kind).get(name)
        if found is None:
            return
        if found["metadata"].get("finalizers"):
            found["metadata"].setdefault("deletionTimestamp", self.now.isoformat())
        else:
            del self.of(kind)[name]
            self._collect(found["metadata"]["uid"])

    def agents_report(self) -> None:
        """Let every agent serve what its node's state names, as far as that revision exists."""
        for name, state in self.of(Kind.STATE).items():
            revision = self.of(Kind.REVISION).get(state["spec"]["revision"]["name"])
            if name in self.of("Node") and revision:
                state["status"] = {
                    "observedGeneration": state["metadata"]["generation"],
                    "revision": {"digest": revision["data"]["digest"]},
                    "handlers": [each["name"] for each in revision["data"]["handlers"]],
                }

    # What the operator sees and does.

    def of(self, kind: str) -> dict[str, Json]:
        return self.objects.setdefault(str(kind), {})

    def names(self, kind: str) -> list[str]:
        return sorted(self.of(kind))

    def observe(self) -> Observed:
        everything = copy.deepcopy(self.objects)

        def all_of(kind: str) -> list[Json]:
            found = list(everything.get(str(kind), {}).values())
            for each in found:  # as in lists of built-in kinds
                each.pop("kind", None)
                each.pop("apiVersion", None)
            return found

        runtimes = tuple(map(parse.node_runtime, all_of(Kind.NODE_RUNTIME)))
        pods = [pod for body in all_of("Pod") if (pod := parse.pod(body))]
        revisions = [
            each for each in all_of(Kind.REVISION) if each["metadata"].get("labels") == LABELS
        ]
        return Observed(
            settings=SETTINGS,
            node_runtimes=runtimes,
            profiles=tuple(map(parse.profile, all_of(Kind.SECURITY_PROFILE))),
            nodes=tuple(map(parse.node, all_of("Node"))),
            states=tuple(map(parse.state, all_of(Kind.STATE))),
            revisions=tuple(map(parse.revision, revisions)),
            runtime_classes=tuple(map(parse.runtime_class, all_of(Kind.RUNTIME_CLASS))),
            daemonset=next(iter(all_of(Kind.DAEMON_SET)), None),
            admission=AdmissionSeen(problem=self.without_admission)
            if self.without_admission
            else AdmissionSeen(
                policies=tuple(all_of(Kind.ADMISSION_POLICY)),
                bindings=tuple(all_of(Kind.ADMISSION_BINDING)),
            ),
            pods=tuple(pods) if any(each.deleting for each in runtimes) else (),
        )

    def run_pass(self, *, stop_after: int | None = None) -> Plan:
        """Look, plan and write; stopping after some actions is the operator killed in between."""
        plan = reconcile(self.observe(), self.now)
        for action in plan.actions[:stop_after]:
            self.do(action)
        return plan

    def settle(self, most_passes: int = 12) -> int:
        """Run passes, and the agents between them, until nothing is left to write; returns how many."""
        for number in range(most_passes):
            if not self.run_pass().actions:
                before = copy.deepcopy(self.of(Kind.STATE))
                self.agents_report()
                if self.of(Kind.STATE) == before:
                    return number
            self.agents_report()
        raise AssertionError(f"not settled after {most_passes} passes: {self.run_pass().actions}")

    def do(self, action: Action) -> None:
        self.writes.append(action)
        if not isinstance(action, Apply):
            self.delete(action.kind, action.name)
        elif action.status:
            self.of(action.kind)[action.name]["status"] = copy.deepcopy(action.body["status"])
        elif action.kind is Kind.NODE_RUNTIME:
            self._set_finalizers(action)
        else:
            self._apply(action)

    def _set_finalizers(self, action: Apply) -> None:
        found = self.of(action.kind).get(action.name)
        if found is None or found["metadata"]["uid"] != action.body["metadata"]["uid"]:
            return
        others = [each for each in found["metadata"].get("finalizers", []) if each != FINALIZER]
        found["metadata"]["finalizers"] = others + action.body["metadata"]["finalizers"]
        if "deletionTimestamp" in found["metadata"] and not found["metadata"]["finalizers"]:
            self.delete(action.kind, action.name)

    def _apply(self, action: Apply) -> None:
        body = copy.deepcopy(dict(action.body))
        metadata: Mapping[str, Any] = body.pop("metadata")
        found = self.of(action.kind).get(action.name)
        if found is None:
            found = self.create(action.kind, action.name)
        elif action.kind is Kind.REVISION:
            raise AssertionError(f"a revision is immutable, but {action.name} is written again")
        generation = found["metadata"]["generation"] + (found.get("spec") != body.get("spec"))
        kept = {key: found["metadata"][key] for key in ("uid", "creationTimestamp")}
        status = {"status": found["status"]} if "status" in found else {}
        self.of(action.kind)[action.name] = {
            **body,
            **status,
            "metadata": {**metadata, **kept, "generation": generation},
        }

    def _collect(self, uid: str) -> None:
        for kind, objects in list(self.objects.items()):
            for name, each in list(objects.items()):
                owners = each["metadata"].get("ownerReferences", [])
                if owners and all(owner["uid"] == uid for owner in owners):
                    self.delete(kind, name)


def cluster_with_nodes() -> FakeCluster:
    """A profile ``web``, a node n1 with the label pool=web and a node n2 without."""
    made = FakeCluster()
    made.profile("web")
    made.node("n1", pool="web")
    made.node("n2")
    return made


def condition(cluster: FakeCluster, name: str, kind: str = "Ready") -> Json:
    conditions = cluster.of(Kind.NODE_RUNTIME)[name]["status"]["conditions"]
    found: Json = next(each for each in conditions if each["type"] == kind)
    return found


def handlers_of(cluster: FakeCluster, node: str) -> dict[str, str]:
    """Handler -> NodeRuntime, of the revision that the node is told to serve."""
    name = cluster.of(Kind.STATE)[node]["spec"]["revision"]["name"]
    revision = Revision.model_validate(cluster.of(Kind.REVISION)[name]["data"])
    return {each.name: each.node_runtime for each in revision.handlers}


def assert_nothing_is_left(cluster: FakeCluster) -> None:
    for kind in (
        Kind.NODE_RUNTIME,
        Kind.RUNTIME_CLASS,
        Kind.DAEMON_SET,
        Kind.STATE,
        Kind.REVISION,
        Kind.ADMISSION_POLICY,
        Kind.ADMISSION_BINDING,
    ):
        assert cluster.names(kind) == [], kind
