from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from noderuntime.policy.model import (
    IdMapping,
    Mount,
    Propagation,
    ResolvedUser,
    Resources,
    UserNamespace,
)
from noderuntime.policy.spec import DeviceNode, SpecLayout, build, exec_process
from tests.unit.policy.factories import (
    KUBELET,
    container,
    granted,
    image,
    rules,
    sandbox,
    security,
)

GOLDEN = Path(__file__).parents[2] / "golden" / "policy"
RUN = "/run/noderuntime"
LAYOUT = SpecLayout(
    rootfs=f"{RUN}/containers/c1/rootfs",
    network_ns=f"{RUN}/sandboxes/s1/ns/net",
    ipc_ns=f"{RUN}/sandboxes/s1/ns/ipc",
    uts_ns=f"{RUN}/sandboxes/s1/ns/uts",
    cgroups_path="/kubepods/pod1/c1",
    hostname="web-0",
    shm_path=f"{RUN}/sandboxes/s1/shm",
    resolv_conf=f"{RUN}/sandboxes/s1/resolv.conf",
    hostname_file=f"{RUN}/sandboxes/s1/hostname",
    machine="x86_64",
)
STRICT = {
    "runAs": {"nonRoot": True},
    "rootFilesystem": "ReadOnly",
    "capabilities": {"allow": ["NET_BIND_SERVICE"]},
    "seccomp": {
        "base": "DenyAll",
        "allow": [{"names": ["read", "write", "clone", "exit_group", "execve"]}],
        "deny": [{"names": ["write"]}],
    },
    "hostPaths": [{"path": "/var/log/web"}],
}
BOUNDS = {"defaults": {"cpu": "500m", "memory": "128Mi"}, "pidsLimit": 512}
MOUNTS = (
    Mount(container_path="/var/log/web", host_path="/var/log/web", readonly=True),
    Mount(container_path="/etc/hosts", host_path=f"{KUBELET}/etc-hosts"),
    Mount(
        container_path="/var",
        host_path=f"{KUBELET}/volumes/kubernetes.io~empty-dir/var",
        propagation=Propagation.HOST_TO_CONTAINER,
    ),
)


def default_spec() -> dict[str, Any]:
    grant = granted(rules({}), container(env=(("A", "1"),)), pod=sandbox(hostname="web-0"))
    return build(grant, LAYOUT)


def strict_spec() -> dict[str, Any]:
    asked = container(
        security(capabilities_add=("NET_BIND_SERVICE",)),
        mounts=MOUNTS,
        resources=Resources(cpu_shares=512, oom_score_adj=999),
    )
    return build(granted(rules(STRICT, resources=BOUNDS), asked), _with(mounts=MOUNTS))


def audit_spec() -> dict[str, Any]:
    return build(granted(rules({"mode": "Audit"}), container()), _with(machine="aarch64"))


def whole_spec() -> dict[str, Any]:
    profile = {
        "maskedPaths": ["/etc/machine-id"],
        "readonlyPaths": ["/usr"],
        "capabilities": {"default": ["NET_BIND_SERVICE", "KILL"], "ambient": ["NET_BIND_SERVICE"]},
        "devices": {"allow": [{"path": "/dev/fuse", "permissions": "rw"}]},
        "ulimits": [
            {"name": "nofile", "soft": 1024, "hard": 4096},
            {"name": "core", "soft": 0, "hard": 0},
        ],
        "resources": {"pids": 64, "cpu": {"max": "1"}, "memory": {"default": "64Mi"}},
    }
    device = DeviceNode(path="/dev/fuse", kind="c", major=10, minor=229, access="rw")
    built: dict[str, Any] = build(granted(rules(profile), container()), _with(devices=(device,)))
    linux: dict[str, Any] = built["linux"]
    return {**built, "linux": {key: linux[key] for key in linux if key != "seccomp"}}


def node_spec() -> dict[str, Any]:
    return build(granted(None, container()), LAYOUT)


def privileged_spec() -> dict[str, Any]:
    root = image(ResolvedUser(uid=0, gid=0))
    device = DeviceNode(path="/dev/fuse", kind="c", major=10, minor=229)
    layout = SpecLayout(
        rootfs="/rootfs", host_pid=True, terminal=True, devices=(device,), machine="x86_64"
    )
    return build(granted(None, container(security(privileged=True)), facts=root), layout)


def _with(**fields: object) -> SpecLayout:
    return replace(LAYOUT, **fields)  # type: ignore[arg-type]


@pytest.mark.parametrize(
    "make", [default_spec, strict_spec, whole_spec, audit_spec, node_spec, privileged_spec]
)
def test_a_spec_is_the_golden_one(make: Callable[[], dict[str, Any]], update_golden: bool) -> None:
    path = GOLDEN / f"{make.__name__.removesuffix('_spec')}.json"
    text = json.dumps(make(), indent=2) + "\n"
    if update_golden:
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text)
    assert text == path.read_text(), "review the difference, then run with --update-golden"


@pytest.mark.parametrize(
    "make", [default_spec, strict_spec, audit_spec, node_spec, privileged_spec]
)
def test_no_spec_that_is_asked_for_nothing_has_limits_or_capabilities_that_are_inherited(
    make: Callable[[], dict[str, Any]],
) -> None:
    built = make()
    assert "annotations" not in built
    assert "hooks" not in built
    process = built["process"]
    assert "rlimits" not in process
    assert process["capabilities"]["inheritable"] == process["capabilities"]["ambient"] == []


@pytest.mark.parametrize(
    ("propagations", "root"),
    [
        ((Propagation.PRIVATE,), None),
        ((Propagation.PRIVATE, Propagation.HOST_TO_CONTAINER), "rslave"),
        ((Propagation.HOST_TO_CONTAINER, Propagation.BIDIRECTIONAL), "rshared"),
    ],
)
def test_the_root_lets_the_volumes_propagate(
    propagations: tuple[Propagation, ...], root: str | None
) -> None:
    mounts = tuple(
        Mount(container_path=f"/{place}", host_path=f"/srv/{place}", propagation=propagation)
        for place, propagation in enumerate(propagations)
    )
    built = build(granted(None, container()), _with(mounts=mounts))
    linux: Any = built["linux"]
    assert linux.get("rootfsPropagation") == root


def test_the_pods_annotations_never_reach_the_spec() -> None:
    pod = sandbox(annotations={"run.oci.hooks.stdout": "x"}, labels={"run.oci.a": "x"})
    asked = container(annotations={"run.oci.handler": "krun"}, labels={"run.oci.b": "x"})
    assert "run.oci" not in json.dumps(build(granted(None, asked, pod=pod), LAYOUT))


def test_an_exec_runs_as_the_container_does() -> None:
    process = strict_spec()["process"]
    other = exec_process(process, ["sh", "-c", "id"], tty=True)
    assert other["args"] == ["sh", "-c", "id"]
    assert other["terminal"] is True
    unchanged = process.keys() - {"args", "terminal"}
    assert {key: other[key] for key in unchanged} == {key: process[key] for key in unchanged}
    assert process["args"] == ["/bin/web"]


def test_namespaces_that_are_none_are_the_nodes() -> None:
    types = {entry["type"] for entry in privileged_spec()["linux"]["namespaces"]}
    assert types == {"mount"}
    assert "hostname" not in privileged_spec()


def test_a_volume_of_the_pod_replaces_a_mount_of_ours() -> None:
    shm = Mount(container_path="/dev/shm", host_path=f"{KUBELET}/volumes/e/shm")
    built: Any = build(granted(None, container(mounts=(shm,))), _with(mounts=(shm,)))
    assert [m["source"] for m in built["mounts"] if m["destination"] == "/dev/shm"] == [
        shm.host_path
    ]


def test_a_user_namespace_is_joined_and_told() -> None:
    mapping = IdMapping(container_id=0, host_id=100000, length=65536)
    users = UserNamespace(uids=mapping, gids=mapping)
    layout = SpecLayout(rootfs="/r", user_ns="/pin", users=users)
    linux = build(granted(None, container()), layout)["linux"]
    assert isinstance(linux, dict)
    assert {"type": "user", "path": "/pin"} in linux["namespaces"]
    told = [{"containerID": 0, "hostID": 100000, "size": 65536}]
    assert linux["uidMappings"] == linux["gidMappings"] == told


def test_a_pid_namespace_is_its_own_the_nodes_or_one_that_is_joined() -> None:
    def namespaces(**changes: object) -> object:
        layout = SpecLayout(rootfs="/r", **changes)  # type: ignore[arg-type]
        linux = build(granted(None, container()), layout)["linux"]
        assert isinstance(linux, dict)
        return [n for n in linux["namespaces"] if n["type"] == "pid"]

    assert namespaces() == [{"type": "pid"}]
    assert namespaces(host_pid=True) == []
    assert namespaces(pid_ns="/pin") == [{"type": "pid", "path": "/pin"}]


SCOPE = "kubepods-pod1.slice:cri-noderuntime:c1"
NO_SWAP = Resources(memory_limit_bytes=64 << 20, memory_swap_limit_bytes=64 << 20)


@pytest.mark.parametrize(
    ("path", "unified", "bounds", "is_told"),
    [
        pytest.param(SCOPE, {}, {}, True, id="systemd"),
        pytest.param("/kubepods/pod1/c1", {}, {}, False, id="cgroupfs"),
        pytest.param(SCOPE, {}, BOUNDS, False, id="a-bound"),
        pytest.param(SCOPE, {"pids.max": "5"}, {}, False, id="unified"),
    ],
)
def test_systemd_sets_no_limit_of_tasks_that_nobody_asked_for(
    path: str, unified: dict[str, str], bounds: dict[str, Any], *, is_told: bool
) -> None:
    grant = granted(rules({}, resources=bounds), container())
    grant = replace(grant, resources=replace(grant.resources, unified=unified))
    spec: dict[str, Any] = build(grant, replace(LAYOUT, cgroups_path=path))
    assert ("org.systemd.property.TasksMax" in spec.get("annotations", {})) is is_told


@pytest.mark.parametrize(
    ("resources", "cgroup_v2", "wanted"),
    [
        pytest.param(NO_SWAP, True, {"memory.swap.max": "0"}, id="none-on-v2"),
        pytest.param(NO_SWAP, False, None, id="none-on-v1"),
        pytest.param(replace(NO_SWAP, memory_swap_limit_bytes=0), True, None, id="not-asked"),
    ],
)
def test_swap_that_is_not_allowed_is_a_limit_that_systemd_keeps(
    resources: Resources, wanted: dict[str, str] | None, *, cgroup_v2: bool
) -> None:
    grant = replace(granted(rules({}), container()), resources=resources)
    spec: dict[str, Any] = build(grant, replace(LAYOUT, cgroup_v2=cgroup_v2))
    assert spec["linux"]["resources"].get("unified") == wanted
