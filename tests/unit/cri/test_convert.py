"""What the kubelet always sends passes; what we do not honour is refused by its name."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import pytest

from noderuntime.cri import answers, convert
from noderuntime.cri.runtime_v1 import api_pb2 as pb
from noderuntime.errors import InvalidArgumentError
from noderuntime.policy.model import (
    NamespaceMode,
    ProfileType,
    Propagation,
    SecurityProfileRef,
    SelinuxOptions,
)
from tests.fakes.kubelet_requests import kubelets_container, kubelets_sandbox

if TYPE_CHECKING:
    from collections.abc import Callable

Sandbox = pb.PodSandboxConfig
Container = pb.ContainerConfig


def test_the_kubelets_sandbox_passes_whole() -> None:
    found = convert.sandbox_config(kubelets_sandbox())
    assert (found.pod.name, found.pod.attempt) == ("web-0", 1)
    assert found.dns.servers == ("10.96.0.10", "fe80::1%eth0")
    assert found.port_mappings[0].protocol == "sctp"
    assert found.namespaces.pid is NamespaceMode.CONTAINER
    assert found.seccomp.type is ProfileType.RUNTIME_DEFAULT
    assert (found.run_as_user, found.run_as_group) == (None, 1000)
    assert found.sysctls["kernel/shm_rmid_forced"] == "1"
    assert found.resources.cpu_shares == 2


def test_the_kubelets_container_passes_whole() -> None:
    found = convert.container_config(kubelets_container())
    assert (found.name, found.attempt, found.image_reference) == ("app", 3, "app:1")
    assert found.env == (("PATH", "/bin"), ("my.odd key", "grüß\n"))
    assert found.mounts[0].recursive_readonly
    assert found.mounts[1].propagation is Propagation.BIDIRECTIONAL
    assert found.stop_signal == "SIGRTMIN+3"
    assert found.resources.cpu_quota_us == -1
    assert found.resources.unified == {"memory.high": "max"}
    assert found.security.capabilities_add == ("NET_ADMIN",)
    assert found.security.run_as_user == 0
    assert found.security.seccomp.localhost_ref == "/var/lib/k/p.json"
    assert found.security.no_new_privs


def test_without_namespace_options_our_defaults_hold() -> None:
    config = Sandbox(metadata=pb.PodSandboxMetadata(name="a", namespace="b", uid="c"))
    assert convert.sandbox_config(config).namespaces.pid is NamespaceMode.CONTAINER


def security(config: Sandbox) -> pb.LinuxSandboxSecurityContext:
    return config.linux.security_context


def namespaces(config: Sandbox) -> pb.NamespaceOption:
    return config.linux.security_context.namespace_options


SANDBOX_REFUSALS: list[tuple[str, Callable[[Sandbox], object]]] = [
    ("metadata.name", lambda c: c.metadata.ClearField("name")),
    ("metadata.namespace", lambda c: setattr(c.metadata, "namespace", "a/b")),
    ("metadata.uid", lambda c: setattr(c.metadata, "uid", "..")),
    ("hostname", lambda c: setattr(c, "hostname", "a b")),
    ("hostname", lambda c: setattr(c, "hostname", "a" * 65)),
    ("log_directory", lambda c: setattr(c, "log_directory", "logs")),
    ("log_directory", lambda c: setattr(c, "log_directory", "/var/log/../../etc")),
    ("dns_config.servers[2]", lambda c: c.dns_config.servers.append("1.1.1.1\nsearch evil")),
    ("dns_config.options[1]", lambda c: c.dns_config.options.append("")),
    ("port_mappings[1].container_port", lambda c: c.port_mappings.add(container_port=0)),
    ("port_mappings[1].protocol", lambda c: c.port_mappings.add(container_port=1, protocol=9)),
    ("labels key", lambda c: c.labels.update({"a b": "c"})),
    ("annotations[a]", lambda c: c.annotations.update({"a": "b\0c"})),
    ("annotations", lambda c: c.annotations.update({"a": "b" * (2 << 20)})),
    ("windows", lambda c: c.windows.SetInParent()),
    ("linux.cgroup_parent", lambda c: setattr(c.linux, "cgroup_parent", "/kubepods/../system")),
    ("linux.sysctls", lambda c: c.linux.sysctls.update({"net/../kernel.panic": "1"})),
    ("linux.sysctls[a.b]", lambda c: c.linux.sysctls.update({"a.b": "1\n2"})),
    ("linux.resources.cpu_shares", lambda c: setattr(c.linux.resources, "cpu_shares", -1)),
    ("selinux_options.level", lambda c: setattr(security(c).selinux_options, "level", "s0:x")),
    ("run_as_user", lambda c: setattr(security(c).run_as_user, "value", -1)),
    ("supplemental_groups", lambda c: security(c).supplemental_groups.append(2**32)),
    ("supplemental_groups_policy", lambda c: setattr(security(c), "supplemental_groups_policy", 2)),
    ("seccomp.localhost_ref", lambda c: setattr(security(c).seccomp, "localhost_ref", "x")),
    ("seccomp.profile_type", lambda c: setattr(security(c).seccomp, "profile_type", 7)),
    ("apparmor.localhost_ref", lambda c: setattr(security(c).apparmor, "profile_type", 2)),
    ("namespace_options.pid", lambda c: setattr(namespaces(c), "pid", pb.TARGET)),
    ("namespace_options.network", lambda c: setattr(namespaces(c), "network", pb.CONTAINER)),
    ("namespace_options.ipc", lambda c: setattr(namespaces(c), "ipc", 17)),
    ("namespace_options.target_id", lambda c: setattr(namespaces(c), "target_id", "x")),
    ("userns_options.mode", lambda c: setattr(namespaces(c).userns_options, "mode", pb.TARGET)),
    ("userns_options.uids", lambda c: setattr(namespaces(c).userns_options, "mode", pb.POD)),
    ("userns_options", lambda c: namespaces(c).userns_options.uids.add(length=1)),
]


@pytest.mark.parametrize(("field", "change"), SANDBOX_REFUSALS)
def test_a_sandbox_is_refused_by_the_name_of_its_field(
    field: str, change: Callable[[Sandbox], object]
) -> None:
    config = kubelets_sandbox()
    change(config)
    with pytest.raises(InvalidArgumentError) as caught:
        convert.sandbox_config(config)
    assert field in str(caught.value)


def confinement(config: Container) -> pb.LinuxContainerSecurityContext:
    return config.linux.security_context


def _image_volume(config: Container, *, image: str = "app:1", **changes: Any) -> None:
    asked = {"container_path": "/a", "readonly": True, **changes}
    config.mounts.add(image=pb.ImageSpec(image=image), **asked)


def test_an_image_volume_is_taken_with_its_sub_path_and_options() -> None:
    config = kubelets_container()
    config.mounts.add(
        container_path="/model",
        readonly=True,
        image=pb.ImageSpec(image="sha256:" + "ab" * 32, user_specified_image="model:1"),
        image_sub_path="weights/small",
        mount_options=["noexec", "nosuid"],
    )
    mount = convert.container_config(config).mounts[-1]
    assert (mount.image, mount.image_reference) == ("sha256:" + "ab" * 32, "model:1")
    assert (mount.host_path, mount.readonly, mount.image_sub_path) == ("", True, "weights/small")
    assert mount.options == ("noexec", "nosuid")


def test_pid_namespaces_are_the_pods_the_containers_the_nodes_or_a_targets() -> None:
    config = kubelets_container()
    options = confinement(config).namespace_options
    for mode, target in ((pb.POD, ""), (pb.CONTAINER, ""), (pb.NODE, ""), (pb.TARGET, "abc")):
        options.pid, options.target_id = mode, target
        found = convert.container_config(config).security.namespaces
        assert (found.pid, found.target_id) == (pb.NamespaceMode.Name(mode), target)
    options.pid, options.target_id = pb.TARGET, ""
    with pytest.raises(InvalidArgumentError, match=r"target_id: belongs to pid TARGET"):
        convert.container_config(config)
    sandbox = kubelets_sandbox()
    namespaces(sandbox).pid = pb.POD
    assert convert.sandbox_config(sandbox).namespaces.pid is NamespaceMode.POD


def test_a_user_namespace_has_one_mapping_from_root_on() -> None:
    sandbox = kubelets_sandbox()
    options = namespaces(sandbox).userns_options
    options.mode = pb.POD
    uid = options.uids.add(host_id=100000, container_id=0, length=65536)
    options.gids.add(host_id=200000, container_id=0, length=65536)
    found = convert.sandbox_config(sandbox).namespaces
    assert found.user is not None
    assert (found.user.uids.host_id, found.user.gids.host_id) == (100000, 200000)
    assert answers.namespaces(found).userns_options == options
    for field, value in (
        ("host_id", 0),
        ("host_id", 2**32 - 2),
        ("container_id", 1),
        ("length", 0),
    ):
        before = getattr(uid, field)
        setattr(uid, field, value)
        with pytest.raises(InvalidArgumentError, match=r"userns_options\.uids"):
            convert.sandbox_config(sandbox)
        setattr(uid, field, before)
    options.uids.add(host_id=300000, container_id=65536, length=1)
    with pytest.raises(InvalidArgumentError, match="exactly one"):
        convert.sandbox_config(sandbox)


def test_a_mounts_mappings_are_kept() -> None:
    config = kubelets_container()
    config.mounts[0].uidMappings.add(host_id=100000, length=65536)
    with pytest.raises(InvalidArgumentError, match="gidMappings"):
        convert.container_config(config)
    config.mounts[0].gidMappings.add(host_id=100000, length=65536)
    found = convert.container_config(config).mounts[0]
    assert found.idmap is not None
    assert answers.mount(found).uidMappings == config.mounts[0].uidMappings


CONTAINER_REFUSALS: list[tuple[str, Callable[[Container], object]]] = [
    ("metadata.name", lambda c: c.ClearField("metadata")),
    ("image.image", lambda c: c.ClearField("image")),
    ("image.image", lambda c: setattr(c.image, "image", "a b")),
    ("command[1]", lambda c: c.command.append("a\0b")),
    ("args[2]", lambda c: c.args.append("x" * 200000)),
    ("args", lambda c: c.args.extend(["x" * 131000] * 17)),
    ("args", lambda c: c.args.extend(["x"] * 5000)),
    ("working_dir", lambda c: setattr(c, "working_dir", "srv")),
    ("envs[2].key", lambda c: c.envs.add(key="A=B")),
    ("envs[2].key", lambda c: c.envs.add(key="")),
    ("envs[2].value", lambda c: c.envs.add(key="A", value=b"\xff")),
    ("envs[2].value", lambda c: c.envs.add(key="A", value=b"a\0b")),
    ("mounts[2].host_path", lambda c: c.mounts.add(container_path="/a")),
    ("mounts[0].container_path", lambda c: setattr(c.mounts[0], "container_path", "a")),
    ("mounts[0].host_path", lambda c: setattr(c.mounts[0], "host_path", "/a/../../etc/shadow")),
    ("mounts[0].host_path", lambda c: c.mounts[0].image.SetInParent()),
    ("mounts[2].image.image", lambda c: _image_volume(c, image="a b")),
    ("mounts[2].readonly", lambda c: _image_volume(c, readonly=False)),
    ("mounts[2].propagation", lambda c: _image_volume(c, propagation=1)),
    ("mounts[2].image_sub_path", lambda c: _image_volume(c, image_sub_path="../etc")),
    ("mounts[2].image_sub_path", lambda c: _image_volume(c, image_sub_path="/etc")),
    ("mounts[0].image_sub_path", lambda c: setattr(c.mounts[0], "image_sub_path", "x")),
    ("mounts[0].uidMappings", lambda c: c.mounts[0].uidMappings.add(length=0)),
    ("mounts[0].uidMappings", lambda c: c.mounts[0].gidMappings.add(length=1)),
    ("mounts[0].mount_options", lambda c: c.mounts[0].mount_options.append("suid")),
    ("mounts[0].propagation", lambda c: setattr(c.mounts[0], "propagation", 5)),
    ("mounts[0].recursive_read_only", lambda c: setattr(c.mounts[0], "readonly", False)),
    ("mounts[0].recursive_read_only", lambda c: setattr(c.mounts[0], "propagation", 1)),
    ("devices[0].permissions", lambda c: setattr(c.devices[0], "permissions", "rx")),
    ("CDI_devices[0]", lambda c: c.CDI_devices.add(name="vendor.com/gpu=0\nx")),
    ("log_path", lambda c: setattr(c, "log_path", "../../../etc/passwd")),
    ("log_path", lambda c: setattr(c, "log_path", "/etc/passwd")),
    ("stop_signal", lambda c: setattr(c, "stop_signal", 1000)),
    ("windows", lambda c: c.windows.SetInParent()),
    ("oom_score_adj", lambda c: setattr(c.linux.resources, "oom_score_adj", 1001)),
    ("cpuset_cpus", lambda c: setattr(c.linux.resources, "cpuset_cpus", "0-3 evil")),
    ("unified", lambda c: c.linux.resources.unified.update({"../x": "1"})),
    ("add_ambient", lambda c: confinement(c).capabilities.add_ambient_capabilities.append("X")),
    ("add_capabilities[1]", lambda c: confinement(c).capabilities.add_capabilities.append("a b")),
    ("run_as_username", lambda c: setattr(confinement(c), "run_as_username", "root")),
    ("seccomp_profile_path", lambda c: _old_seccomp(confinement(c))),
    ("apparmor.localhost_ref", lambda c: setattr(confinement(c).apparmor, "profile_type", 2)),
    ("apparmor.localhost_ref", lambda c: setattr(confinement(c).apparmor, "localhost_ref", "x")),
    ("apparmor.localhost_ref", lambda c: _localhost(confinement(c), "localhost/")),
    ("apparmor.localhost_ref", lambda c: _localhost(confinement(c), "a\nb")),
    ("apparmor.profile_type", lambda c: setattr(confinement(c).apparmor, "profile_type", 9)),
    ("apparmor_profile", lambda c: _old_apparmor(confinement(c), "x")),
    ("apparmor_profile", lambda c: _old_apparmor(confinement(c), "localhost/")),
    ("apparmor_profile", lambda c: _old_apparmor(confinement(c), "localhost/a\tb")),
    ("selinux_options.type", lambda c: setattr(confinement(c).selinux_options, "type", "x:t")),
    ("selinux_options.user", lambda c: setattr(confinement(c).selinux_options, "user", "a b")),
    ("selinux_options.level", lambda c: setattr(confinement(c).selinux_options, "level", "0:c1")),
    ("readonly_paths[1]", lambda c: confinement(c).readonly_paths.append("proc")),
    ("run_as_group", lambda c: _group_alone(confinement(c))),
]


def _old_seccomp(context: pb.LinuxContainerSecurityContext) -> None:
    context.ClearField("seccomp")
    setattr(context, "seccomp_profile_path", "localhost/x")  # noqa: B010  # deprecated


def _old_apparmor(context: pb.LinuxContainerSecurityContext, profile: str) -> None:
    context.ClearField("apparmor")
    setattr(context, "apparmor_profile", profile)  # noqa: B010  # deprecated


def _localhost(context: pb.LinuxContainerSecurityContext, profile: str) -> None:
    context.apparmor.profile_type = pb.SecurityProfile.Localhost
    context.apparmor.localhost_ref = profile


def _group_alone(context: pb.LinuxContainerSecurityContext) -> None:
    context.ClearField("run_as_user")
    context.run_as_group.value = 5


@pytest.mark.parametrize(("field", "change"), CONTAINER_REFUSALS)
def test_a_container_is_refused_by_the_name_of_its_field(
    field: str, change: Callable[[Container], object]
) -> None:
    config = kubelets_container()
    change(config)
    with pytest.raises(InvalidArgumentError) as caught:
        convert.container_config(config)
    assert field in str(caught.value)
    assert len(str(caught.value)) < 300


def test_selinux_options_are_taken_as_they_are_and_none_is_none() -> None:
    sandbox, container = kubelets_sandbox(), kubelets_container()
    assert convert.container_config(container).security.selinux is None
    security(sandbox).selinux_options.level = "s0-s15:c0.c1023,c7"
    confinement(container).selinux_options.type = "web_t"
    found = convert.sandbox_config(sandbox).selinux
    assert found == SelinuxOptions(level="s0-s15:c0.c1023,c7")
    asked = convert.container_config(container).security.selinux
    assert asked == SelinuxOptions(type="web_t")


LOCALHOST_X = SecurityProfileRef(type=ProfileType.LOCALHOST, localhost_ref="x")


@pytest.mark.parametrize(
    ("old", "asked"),
    [
        ("", None),
        ("runtime/default", SecurityProfileRef(type=ProfileType.RUNTIME_DEFAULT)),
        ("unconfined", SecurityProfileRef(type=ProfileType.UNCONFINED)),
        ("localhost/x", LOCALHOST_X),
    ],
)
def test_the_deprecated_apparmor_field_is_read_where_it_is_alone(
    old: str, asked: SecurityProfileRef | None
) -> None:
    config = kubelets_container()
    _old_apparmor(confinement(config), old)
    assert convert.container_config(config).security.apparmor == asked


@pytest.mark.parametrize("name", ["x", "localhost/x"])
def test_the_new_apparmor_field_wins_and_its_prefix_is_dropped(name: str) -> None:
    config = kubelets_container()
    _old_apparmor(confinement(config), "localhost/other")
    _localhost(confinement(config), name)
    assert convert.container_config(config).security.apparmor == LOCALHOST_X


def test_an_unknown_field_is_refused_wherever_it_is() -> None:
    config = kubelets_sandbox()
    raw = security(config).SerializeToString() + b"\xfa\x3f\x01x"  # field 1023, one byte
    security(config).ParseFromString(raw)
    with pytest.raises(InvalidArgumentError, match="security_context holds field number 1023"):
        convert.sandbox_config(config)


def test_an_environment_is_never_quoted() -> None:
    config = kubelets_container()
    config.envs.add(key="SECRET", value=b"hunter2\xff")
    with pytest.raises(InvalidArgumentError) as caught:
        convert.container_config(config)
    assert "hunter2" not in str(caught.value)


def test_every_signal_has_a_name_and_the_way_back() -> None:
    names = {convert.signal_name(number) for number in pb.Signal.values()}
    assert {"", "SIGTERM", "SIGRTMIN", "SIGRTMAX-14", "SIGRTMAX"} <= names
    assert len(names) == len(pb.Signal.values())
