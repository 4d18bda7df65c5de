"""Pods as no Kubernetes of today has them: a plan tells each, and ends for none."""

from __future__ import annotations

import asyncio
import copy
import json
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from noderuntime.api.securityprofile import SecurityProfileSpec
from noderuntime.cli.explaining.declared import Declared
from noderuntime.cli.planning import show
from noderuntime.cli.planning.cluster import Kind
from noderuntime.cli.planning.compare import Moment
from noderuntime.cli.planning.plan import Question, make
from tests.fakes.planned_cluster import PlannedCluster
from tests.fuzz.profile import FACTOR

pytestmark = pytest.mark.slow

Json = dict[str, Any]
ANYTHING = st.recursive(
    st.none()
    | st.booleans()
    | st.integers(-(2**70), 2**70)
    | st.floats()
    | st.text(alphabet=st.characters(exclude_categories=()), max_size=20)
    | st.sampled_from(
        ["Pod", "host", "Localhost", "/../..", "\x1b[2J", "1000", "9" * 400, "-1", ""]
    ),
    lambda inner: (
        st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=12), inner, max_size=3)
    ),
    max_leaves=6,
)
CONTAINER: Json = {
    "name": "main",
    "image": "127.0.0.1:5000/app:1",
    "command": ["a"],
    "env": [{"name": "A", "value": "b"}, {"name": "C", "valueFrom": {"fieldRef": {}}}],
    "resources": {"limits": {"cpu": "1", "memory": "1Gi", "hugepages-2Mi": "4Mi"}},
    "volumeMounts": [{"name": "host", "mountPath": "/host", "subPath": "x", "readOnly": True}],
    "volumeDevices": [{"name": "block", "devicePath": "/dev/x"}],
    "securityContext": {
        "runAsUser": 1000,
        "capabilities": {"add": ["CHOWN"], "drop": ["ALL"]},
        "seccompProfile": {"type": "Localhost", "localhostProfile": "x.json"},
        "appArmorProfile": {"type": "Unconfined"},
        "seLinuxOptions": {"level": "s0:c1"},
        "procMount": "Unmasked",
    },
}
SPEC: Json = {
    "runtimeClassName": "restricted",
    "nodeName": "n1",
    "hostname": "h",
    "hostPID": True,
    "shareProcessNamespace": False,
    "containers": [CONTAINER],
    "initContainers": [{"name": "init", "image": "x"}],
    "ephemeralContainers": [{"name": "debug", "image": "x", "targetContainerName": "main"}],
    "volumes": [
        {"name": "host", "hostPath": {"path": "/var/log"}},
        {"name": "block", "persistentVolumeClaim": {"claimName": "c"}},
        {"name": "memory", "emptyDir": {"medium": "Memory", "sizeLimit": "1Mi"}},
    ],
    "securityContext": {"fsGroup": 1, "sysctls": [{"name": "net.core.somaxconn", "value": "1"}]},
}
METADATA: Json = {
    "name": "pod",
    "namespace": "web",
    "labels": {"pod-template-hash": "5d"},
    "annotations": {"noderuntime.io/service-account": "a"},
    "ownerReferences": [{"kind": "ReplicaSet", "name": "web-5d", "controller": True}],
}
POD: Json = {"metadata": METADATA, "spec": SPEC, "status": {"phase": "Running"}}


def places(value: Any, path: tuple[str | int, ...] = ()) -> list[tuple[str | int, ...]]:
    keys: list[Any] = []
    if isinstance(value, dict):
        keys = [*value]
    elif isinstance(value, list):
        keys = [*range(len(value))]
    return [path, *(each for key in keys for each in places(value[key], (*path, key)))][
        0 if path else 1 :
    ]


def changed(place: tuple[str | int, ...], value: Any, how: str) -> Json:
    pod = copy.deepcopy(POD)
    at: Any = pod
    for step in place[:-1]:
        at = at[step]
    if how == "remove":
        del at[place[-1]]
    elif how == "beside" and isinstance(at, dict):
        at[str(value)[:20]] = value
    else:
        at[place[-1]] = value
    return pod


@settings(max_examples=300 * FACTOR, deadline=None, database=None)
@given(
    place=st.sampled_from(places(POD)),
    value=ANYTHING,
    how=st.sampled_from(["replace", "replace", "remove", "beside"]),
)
def test_a_pod_that_nobody_knows_ends_no_plan_and_reaches_no_terminal(
    place: tuple[str | int, ...], value: Any, how: str
) -> None:
    cluster = PlannedCluster()
    cluster.profile("web", capabilities={"allow": ["CHOWN"]})
    cluster.runtime("restricted", default={})
    cluster.objects[Kind.POD].append(changed(place, value, how))
    change = SecurityProfileSpec.model_validate({"rootFilesystem": "ReadOnly"})
    plan = asyncio.run(
        make(
            cluster,
            Declared(profiles={"web": change}, runtimes={}),
            Question(namespace="", own_namespace="noderuntime-system", prune=False),
            Moment(now_s=1.0, machine="x86_64"),
        )
    )
    assert sum(plan.counts.values()) <= 1
    text = show.as_text(plan)
    assert all(line.isprintable() for line in text.split("\n"))
    text.encode()
    json.loads(show.as_json(plan, 0))
