"""From a manifest to what the kubelet sends; beside ``tests/fakes/kubelet_requests.py``."""

from __future__ import annotations

import json
from typing import Any

import pytest

from noderuntime.cli.manifest import requests
from noderuntime.cli.manifest.requests import ContainerRequest
from noderuntime.cli.manifest.volumes import OF_POD
from noderuntime.cli.manifest.workloads import TEMPLATES, Workload, workloads
from noderuntime.cri.runtime_v1 import api_pb2 as pb
from noderuntime.errors import ConfigError
from noderuntime.policy.mounts import behind
from noderuntime.policy.spec import DEFAULT_MASKED, DEFAULT_READONLY
from tests.fakes.kubelet_requests import kubelets_container, kubelets_sandbox


def workload(spec: dict[str, Any], **metadata: object) -> Workload:
    body = {"kind": "Pod", "metadata": {"name": "web-0", **metadata}, "spec": spec}
    [found] = workloads("pod.yaml", json.dumps(body).encode(), "default")
    return found


def requested(spec: dict[str, Any], image_user: str | None = None) -> list[ContainerRequest]:
    return list(requests.containers(workload(spec), image_user))


def one(container: dict[str, Any], **spec: object) -> pb.ContainerConfig:
    [found] = requested({"containers": [{"name": "app", "image": "app:1", **container}], **spec})
    return found.config


def test_a_sandbox_is_as_the_kubelet_writes_it() -> None:
    kubelets = kubelets_sandbox()
    sysctls = [{"name": name, "value": value} for name, value in kubelets.linux.sysctls.items()]
    security = {"runAsGroup": 1000, "supplementalGroups": [2000], "sysctls": sysctls}
    ours = requests.sandbox(
        workload(
            {"containers": [{"name": "app", "image": "app:1"}], "securityContext": security},
            annotations=dict(kubelets.annotations),
        )
    )
    assert ours.linux.security_context == kubelets.linux.security_context
    assert ours.linux.sysctls == kubelets.linux.sysctls
    assert (ours.hostname, ours.metadata.namespace) == (
        kubelets.hostname,
        kubelets.metadata.namespace,
    )
    uid = ours.metadata.uid
    assert ours.linux.cgroup_parent == kubelets.linux.cgroup_parent.replace("6e1e6e55-0000", uid)
    assert ours.log_directory == kubelets.log_directory.replace("6e1e6e55-0000", uid)
    assert ours.annotations == kubelets.annotations


def test_a_container_is_as_the_kubelet_writes_it() -> None:
    kubelets = kubelets_container()
    theirs = kubelets.linux.security_context
    ours = one(
        {
            "command": ["/bin/app"],
            "args": ["--greeting", "two\nlines"],
            "workingDir": "/srv/../srv",
            "env": [{"name": e.key, "value": e.value.decode()} for e in kubelets.envs],
            "resources": {"limits": {"cpu": "1", "memory": "1Gi", "hugepages-2Mi": "0"}},
            "securityContext": {
                "runAsUser": 0,
                "allowPrivilegeEscalation": False,
                "capabilities": {"add": ["NET_ADMIN"], "drop": ["ALL"]},
                "seccompProfile": {"type": "Localhost", "localhostProfile": "p.json"},
                "appArmorProfile": {"type": "Unconfined"},
            },
        }
    )
    security = ours.linux.security_context
    for field in ("capabilities", "run_as_user", "no_new_privs", "apparmor", "privileged"):
        assert getattr(security, field) == getattr(theirs, field), field
    assert security.seccomp.profile_type == theirs.seccomp.profile_type
    assert security.seccomp.localhost_ref == "/var/lib/kubelet/seccomp/p.json"
    assert security.namespace_options.pid == theirs.namespace_options.pid
    for field in ("command", "args", "working_dir", "envs"):
        assert getattr(ours, field) == getattr(kubelets, field), field
    for field in (
        "cpu_period",
        "cpu_shares",
        "memory_limit_in_bytes",
        "memory_swap_limit_in_bytes",
        "oom_score_adj",
        "hugepage_limits",
    ):
        assert getattr(ours.linux.resources, field) == getattr(kubelets.linux.resources, field)
    assert ours.linux.resources.cpu_quota == 100_000  # theirs has a CPU of its own: no quota


def test_a_container_that_says_nothing() -> None:
    security = one({}).linux.security_context
    assert security.seccomp.profile_type == pb.SecurityProfile.Unconfined
    assert not security.HasField("apparmor")
    assert tuple(security.masked_paths) == DEFAULT_MASKED
    assert tuple(security.readonly_paths) == DEFAULT_READONLY
    assert security.HasField("run_as_user")  # the image's, which the kubelet asks for
    assert not security.no_new_privs
    resources = one({}).linux.resources
    assert (resources.cpu_shares, resources.cpu_quota, resources.oom_score_adj) == (2, 0, 1000)


def test_the_containers_security_context_wins_over_the_pods() -> None:
    pod = {
        "runAsUser": 1,
        "runAsGroup": 2,
        "fsGroup": 3,
        "supplementalGroups": [4],
        "supplementalGroupsPolicy": "Strict",
        "seccompProfile": {"type": "RuntimeDefault"},
    }
    inherits = one({}, securityContext=pod).linux.security_context
    assert (inherits.run_as_user.value, inherits.run_as_group.value) == (1, 2)
    assert list(inherits.supplemental_groups) == [3, 4]
    assert inherits.supplemental_groups_policy == pb.Strict
    assert inherits.seccomp.profile_type == pb.SecurityProfile.RuntimeDefault
    own = {"runAsUser": 9, "seccompProfile": {"type": "Unconfined"}}
    wins = one({"securityContext": own}, securityContext=pod).linux.security_context
    assert (wins.run_as_user.value, wins.run_as_group.value) == (9, 2)
    assert wins.seccomp.profile_type == pb.SecurityProfile.Unconfined


@pytest.mark.parametrize(
    ("spec", "network", "ipc", "pid"),
    [
        ({}, pb.POD, pb.POD, pb.CONTAINER),
        ({"shareProcessNamespace": True}, pb.POD, pb.POD, pb.POD),
        ({"hostNetwork": True, "hostIPC": True, "hostPID": True}, pb.NODE, pb.NODE, pb.NODE),
    ],
)
def test_namespaces(spec: dict[str, Any], network: int, ipc: int, pid: int) -> None:
    containers = [{"name": "app", "image": "app:1"}]
    for options in (
        requests.sandbox(workload({"containers": containers, **spec})).linux.security_context,
        one({}, **spec).linux.security_context,
    ):
        found = options.namespace_options
        assert (found.network, found.ipc, found.pid) == (network, ipc, pid)
        assert found.userns_options.mode == pb.NODE


def test_a_pod_with_users_of_its_own_has_a_mapping() -> None:
    options = one({}, hostUsers=False).linux.security_context.namespace_options.userns_options
    assert options.mode == pb.POD
    assert [(ids.container_id, ids.length) for ids in (*options.uids, *options.gids)] == [
        (0, 65536),
        (0, 65536),
    ]


def test_init_containers_sidecars_and_ephemeral_ones_are_all_there_in_their_order() -> None:
    found = requested(
        {
            "initContainers": [{"name": "side", "image": "s:1", "restartPolicy": "Always"}],
            "containers": [
                {"name": "app", "image": "a:1", "securityContext": {"privileged": True}}
            ],
            "ephemeralContainers": [{"name": "dbg", "image": "d:1", "targetContainerName": "app"}],
        }
    )
    assert [(each.place, each.config.metadata.name) for each in found] == [
        ("initContainers", "side"),
        ("containers", "app"),
        ("ephemeralContainers", "dbg"),
    ]
    target = found[2].config.linux.security_context.namespace_options
    assert (target.pid, target.target_id) == (pb.TARGET, "app")


def test_volumes_are_where_the_kubelet_has_them() -> None:
    volumes: list[dict[str, object]] = [
        {"name": "node", "hostPath": {"path": "/var"}},
        {"name": "scratch", "emptyDir": {}},
        {"name": "none"},
        {"name": "settings", "configMap": {"name": "x"}},
        {"name": "disk", "persistentVolumeClaim": {"claimName": "x"}},
        {"name": "tools", "image": {"reference": "tools:1"}},
    ]
    names = [str(each["name"]) for each in volumes]
    mounts: list[dict[str, object]] = [{"name": name, "mountPath": f"/{name}"} for name in names]
    mounts.append({"name": "node", "mountPath": "/log", "subPath": "log", "readOnly": True})
    [found] = requested(
        {
            "containers": [{"name": "app", "image": "app:1", "volumeMounts": mounts}],
            "volumes": volumes,
        }
    )
    by_path = {mount.container_path: mount for mount in found.config.mounts}
    folder = f"{OF_POD}/volumes/kubernetes.io~"
    assert {path: mount.host_path for path, mount in by_path.items()} == {
        "/node": "/var",
        "/scratch": f"{folder}empty-dir/scratch",
        "/none": f"{folder}empty-dir/none",
        "/settings": f"{folder}configmap/settings",
        "/disk": f"{folder}persistent-volume-claim/disk/mount",
        "/tools": "",
        "/log": f"{OF_POD}/volume-subpaths/node/app/6",
        "/etc/hosts": f"{OF_POD}/etc-hosts",
        "/dev/termination-log": f"{OF_POD}/containers/app/00000000",
    }
    assert by_path["/log"].readonly
    assert by_path["/tools"].image.user_specified_image == "tools:1"
    assert behind(by_path["/log"].host_path, found.mountinfo) == ("/var/log",)


@pytest.mark.parametrize("sub_path", ["../etc", "/etc", "a/../../b"])
def test_a_sub_path_that_climbs_is_refused(sub_path: str) -> None:
    volumes = [{"name": "node", "hostPath": {"path": "/var"}}]
    mounts = [{"name": "node", "mountPath": "/x", "subPath": sub_path}]
    with pytest.raises(ConfigError, match=r"volumeMounts\[0\].subPath: must be a relative path"):
        one({"volumeMounts": mounts}, volumes=volumes)


@pytest.mark.parametrize("kind", sorted(TEMPLATES))
def test_every_kind_has_its_pod_found(kind: str) -> None:
    inner: dict[str, Any] = {"spec": {"containers": [{"name": "app", "image": "app:1"}]}}
    for step in reversed(TEMPLATES[kind]):
        inner = {step: inner}
    body = {**inner, "kind": kind, "metadata": {"name": "it", "namespace": "team"}}
    listed = {"kind": "List", "items": [body, {"kind": "Service"}]}
    [found] = workloads("x.yaml", json.dumps(listed).encode(), "default")
    assert (found.kind, found.name, found.namespace) == (kind, "it", "team")
    assert found.pod.spec.containers[0].name == "app"


@pytest.mark.parametrize(
    ("resources", "quality"),
    [
        ({}, "BestEffort"),
        ({"requests": {"cpu": "1"}}, "Burstable"),
        ({"limits": {"cpu": "1"}}, "Burstable"),
        ({"limits": {"cpu": "1", "memory": "1Gi"}}, "Guaranteed"),
        ({"limits": {"cpu": "1", "memory": "1Gi"}, "requests": {"cpu": "500m"}}, "Burstable"),
    ],
)
def test_the_quality_of_service_decides_about_the_cgroup(
    resources: dict[str, Any], quality: str
) -> None:
    spec = {"containers": [{"name": "app", "image": "app:1", "resources": resources}]}
    parent = requests.sandbox(workload(spec)).linux.cgroup_parent
    part = "" if quality == "Guaranteed" else f"/{quality.lower()}"
    assert parent.startswith(f"/kubepods{part}/pod")


def test_names_that_are_there_twice_are_refused() -> None:
    with pytest.raises(ConfigError, match=r"spec\.containers: app is there twice"):
        workload({"containers": [{"name": "app", "image": "a:1"}] * 2})
