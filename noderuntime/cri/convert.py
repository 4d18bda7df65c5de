"""From CRI's messages to the engine's words; nothing below ``cri`` sees a protobuf.

A field that this version does not honour is refused with InvalidArgument that names it, never
ignored: a Pod that asked for a confinement must not run without it. What the kubelet sends with
every Pod passes (``pkg/kubelet/kuberuntime``: ``kuberuntime_sandbox.go``,
``kuberuntime_container.go``). Answers are in ``answers.py``.
Source: ``runtime.v1`` of k8s.io/cri-api v0.37.2.
"""

from __future__ import annotations

import re
from typing import TYPE_CHECKING, Final, TypeVar

from noderuntime.cri import texts
from noderuntime.cri.convert_security import (
    container_security,
    id_mapping,
    sandbox_security,
)
from noderuntime.cri.runtime_v1 import api_pb2 as pb
from noderuntime.cri.unknown_fields import refuse_unknown_fields
from noderuntime.errors import InvalidArgumentError
from noderuntime.policy.model import (
    ContainerConfig,
    Device,
    Dns,
    Mount,
    PodIdentity,
    PortMapping,
    Propagation,
    Resources,
    SandboxConfig,
    UserNamespace,
)

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator

_HOSTNAME: Final = re.compile(r"[A-Za-z0-9]([A-Za-z0-9.-]{0,62}[A-Za-z0-9])?")  # 64: uname(2)
_SYSCTL: Final = re.compile(r"[a-zA-Z0-9][a-zA-Z0-9_./-]*")
_PERMISSIONS: Final = re.compile(r"r?w?m?")
_PROTOCOLS: Final = {pb.TCP: "tcp", pb.UDP: "udp", pb.SCTP: "sctp"}
_PROPAGATIONS: Final = {
    pb.PROPAGATION_PRIVATE: Propagation.PRIVATE,
    pb.PROPAGATION_HOST_TO_CONTAINER: Propagation.HOST_TO_CONTAINER,
    pb.PROPAGATION_BIDIRECTIONAL: Propagation.BIDIRECTIONAL,
}
_MOUNT_OPTIONS: Final = frozenset(("noexec", "nodev", "nosuid"))  # each takes something away
_INT64: Final = 2**63 - 1

T = TypeVar("T")


def sandbox_config(config: pb.PodSandboxConfig) -> SandboxConfig:
    """Convert what RunPodSandbox asks for; raises InvalidArgumentError."""
    refuse_unknown_fields(config, "config")
    _refuse_windows(config.HasField("windows"), "windows")
    linux = config.linux
    security = sandbox_security(linux.security_context)
    return SandboxConfig(
        pod=_pod(config.metadata),
        hostname=_hostname(config.hostname),
        log_directory=_optional_path("log_directory", config.log_directory),
        dns=Dns(
            servers=texts.tokens("dns_config.servers", config.dns_config.servers),
            searches=texts.tokens("dns_config.searches", config.dns_config.searches),
            options=texts.tokens("dns_config.options", config.dns_config.options),
        ),
        port_mappings=tuple(_port_mappings(config.port_mappings)),
        labels=texts.mapping("labels", config.labels),
        annotations=texts.mapping("annotations", config.annotations),
        cgroup_parent=_cgroup_parent(linux.cgroup_parent),
        namespaces=security.namespaces,
        privileged=linux.security_context.privileged,
        sysctls=dict(_sysctls(linux)),
        seccomp=security.seccomp,
        selinux=security.selinux,
        run_as_user=security.run_as_user,
        run_as_group=security.run_as_group,
        supplemental_groups=security.supplemental_groups,
        overhead=resources("linux.overhead", linux.overhead),
        resources=resources("linux.resources", linux.resources),
    )


def container_config(config: pb.ContainerConfig) -> ContainerConfig:
    """Convert what CreateContainer asks for; raises InvalidArgumentError."""
    refuse_unknown_fields(config, "config")
    _refuse_windows(config.HasField("windows"), "windows")
    return ContainerConfig(
        name=texts.name("metadata.name", config.metadata.name),
        attempt=config.metadata.attempt,
        image=image_reference("image.image", config.image),
        image_reference=texts.line(
            "image.user_specified_image", config.image.user_specified_image, texts.MAX_PATH
        ),
        command=texts.arguments("command", config.command),
        args=texts.arguments("args", config.args),
        working_dir=_working_dir(config.working_dir),
        env=tuple(_environment(config.envs)),
        mounts=tuple(
            _mount(f"mounts[{i}]", mount) for i, mount in _enumerated("mounts", config.mounts)
        ),
        devices=tuple(
            _device(f"devices[{i}]", device) for i, device in _enumerated("devices", config.devices)
        ),
        cdi_devices=tuple(
            texts.line(f"CDI_devices[{i}]", device.name)
            for i, device in _enumerated("CDI_devices", config.CDI_devices)
        ),
        labels=texts.mapping("labels", config.labels),
        annotations=texts.mapping("annotations", config.annotations),
        log_path=texts.relative_path("log_path", config.log_path),
        stdin=config.stdin,
        stdin_once=config.stdin_once,
        tty=config.tty,
        stop_signal=signal_name(config.stop_signal),
        resources=resources("linux.resources", config.linux.resources),
        security=container_security(config.linux.security_context),
    )


def image_reference(field: str, image: pb.ImageSpec) -> str:
    """Return the image's name as the caller wrote it."""
    return texts.token(field, image.image, texts.MAX_PATH)


def resources(field: str, asked: pb.LinuxContainerResources) -> Resources:
    """Convert limits. A quota of -1 is 'no quota' (the kubelet, for exclusive CPUs)."""
    hugepages = {
        texts.token(f"{field}.hugepage_limits", limit.page_size, 32): limit.limit
        for limit in texts.bounded(f"{field}.hugepage_limits", asked.hugepage_limits)
    }
    return Resources(
        cpu_period_us=_amount(field, "cpu_period", asked.cpu_period),
        cpu_quota_us=texts.number(f"{field}.cpu_quota", asked.cpu_quota, -1, _INT64),
        cpu_shares=_amount(field, "cpu_shares", asked.cpu_shares),
        memory_limit_bytes=_amount(field, "memory_limit_in_bytes", asked.memory_limit_in_bytes),
        memory_swap_limit_bytes=texts.number(
            f"{field}.memory_swap_limit_in_bytes", asked.memory_swap_limit_in_bytes, -1, _INT64
        ),
        oom_score_adj=texts.number(f"{field}.oom_score_adj", asked.oom_score_adj, -1000, 1000),
        cpuset_cpus=_cpuset(f"{field}.cpuset_cpus", asked.cpuset_cpus),
        cpuset_mems=_cpuset(f"{field}.cpuset_mems", asked.cpuset_mems),
        hugepage_limits_bytes=hugepages,
        unified={
            texts.name(f"{field}.unified", key): texts.line(f"{field}.unified[{key}]", value, 4096)
            for key, value in asked.unified.items()
        },
    )


def signal_name(signal: pb.Signal.ValueType) -> str:
    """Return ``SIGTERM`` or ``SIGRTMIN+3`` as image-spec writes it; empty for the image's own."""
    if signal == pb.SIGNAL_RUNTIME_DEFAULT:
        return ""
    try:
        name = pb.Signal.Name(signal)
    except ValueError as error:
        raise InvalidArgumentError(f"stop_signal: {signal} is not a signal of CRI") from error
    return name.removeprefix("SIGNAL_").replace("PLUS", "+").replace("MINUS", "-")


def _pod(metadata: pb.PodSandboxMetadata) -> PodIdentity:
    return PodIdentity(
        name=texts.name("metadata.name", metadata.name),
        namespace=texts.name("metadata.namespace", metadata.namespace),
        uid=texts.name("metadata.uid", metadata.uid),
        attempt=metadata.attempt,
    )


def _hostname(value: str) -> str:
    if value and not _HOSTNAME.fullmatch(value):
        raise texts.fault("hostname", value, "must be a host name of at most 64 characters")
    return value


def _port_mappings(mappings: Iterable[pb.PortMapping]) -> Iterator[PortMapping]:
    for index, mapping in _enumerated("port_mappings", mappings):
        field = f"port_mappings[{index}]"
        if mapping.protocol not in _PROTOCOLS:
            raise InvalidArgumentError(f"{field}.protocol: {mapping.protocol} is not known")
        yield PortMapping(
            protocol=_PROTOCOLS[mapping.protocol],
            container_port=texts.number(
                f"{field}.container_port", mapping.container_port, 1, 65535
            ),
            host_port=texts.number(f"{field}.host_port", mapping.host_port, 0, 65535),
            host_ip=texts.token(f"{field}.host_ip", mapping.host_ip) if mapping.host_ip else "",
        )


def _cgroup_parent(value: str) -> str:
    """Take ``/kubepods/pod…`` (cgroupfs) as well as ``kubepods-pod….slice`` (systemd)."""
    if ".." in texts.line("linux.cgroup_parent", value, texts.MAX_PATH).split("/"):
        raise texts.fault("linux.cgroup_parent", value, "must not hold ..")
    return value


def _sysctls(linux: pb.LinuxPodSandboxConfig) -> Iterator[tuple[str, str]]:
    for key, value in texts.bounded("linux.sysctls", linux.sysctls.items()):
        if not _SYSCTL.fullmatch(key) or ".." in key or len(key) > texts.MAX_NAME:
            raise texts.fault("linux.sysctls", key, "is not the name of a sysctl")
        yield key, texts.line(f"linux.sysctls[{key}]", value, 4096)


def _environment(envs: Iterable[pb.KeyValue]) -> Iterator[tuple[str, str]]:
    # Values may be secrets: they are never quoted.
    total = 0
    for index, env in _enumerated("envs", envs):
        field = f"envs[{index}]"
        if not env.key or "=" in texts.line(f"{field}.key", env.key, texts.MAX_ARGUMENT):
            raise texts.fault(f"{field}.key", env.key, "is not a name of a variable")
        try:
            value = texts.text(f"{field}.value", env.value.decode(), texts.MAX_ARGUMENT)
        except UnicodeDecodeError as error:
            raise InvalidArgumentError(f"{field}.value: is not UTF-8") from error
        total += len(env.value) + len(env.key)
        if total > texts.MAX_ARGUMENTS:
            raise InvalidArgumentError(f"envs: is longer than {texts.MAX_ARGUMENTS} bytes in all")
        yield env.key, value


def _mount(field: str, mount: pb.Mount) -> Mount:
    if mount.propagation not in _PROPAGATIONS:
        raise InvalidArgumentError(f"{field}.propagation: {mount.propagation} is not known")
    if mount.recursive_read_only and not mount.readonly:
        raise InvalidArgumentError(f"{field}.recursive_read_only: needs readonly")
    if mount.recursive_read_only and mount.propagation != pb.PROPAGATION_PRIVATE:
        raise InvalidArgumentError(f"{field}.recursive_read_only: needs PROPAGATION_PRIVATE")
    if mount.HasField("image"):
        return _image_mount(field, mount)
    if mount.image_sub_path:
        raise InvalidArgumentError(f"{field}.image_sub_path: needs image")
    return Mount(
        container_path=texts.absolute_path(f"{field}.container_path", mount.container_path),
        host_path=texts.absolute_path(f"{field}.host_path", mount.host_path),
        options=_mount_options(field, mount.mount_options),
        readonly=mount.readonly,
        recursive_readonly=mount.recursive_read_only,
        propagation=_PROPAGATIONS[mount.propagation],
        selinux_relabel=mount.selinux_relabel,
        idmap=_idmap(field, mount),
    )


def _idmap(field: str, mount: pb.Mount) -> UserNamespace | None:
    if not mount.uidMappings and not mount.gidMappings:
        return None
    return UserNamespace(
        uids=id_mapping(f"{field}.uidMappings", mount.uidMappings),
        gids=id_mapping(f"{field}.gidMappings", mount.gidMappings),
    )


def _image_mount(field: str, mount: pb.Mount) -> Mount:
    """Take an image volume: read-only, as CRI says of all of them, and nothing of the node's."""
    if mount.host_path:
        raise InvalidArgumentError(f"{field}.host_path: must be empty with image")
    if not mount.readonly:
        raise InvalidArgumentError(f"{field}.readonly: is needed with image")
    if mount.propagation != pb.PROPAGATION_PRIVATE:
        raise InvalidArgumentError(f"{field}.propagation: must be PROPAGATION_PRIVATE with image")
    image, path = mount.image, f"{field}.image"
    return Mount(
        container_path=texts.absolute_path(f"{field}.container_path", mount.container_path),
        readonly=True,
        recursive_readonly=mount.recursive_read_only,
        options=_mount_options(field, mount.mount_options),
        image=image_reference(f"{path}.image", image),
        image_reference=texts.line(
            f"{path}.user_specified_image", image.user_specified_image, texts.MAX_PATH
        ),
        image_sub_path=texts.relative_path(f"{field}.image_sub_path", mount.image_sub_path),
        idmap=_idmap(field, mount),
    )


def _mount_options(field: str, options: Iterable[str]) -> tuple[str, ...]:
    for option in options:
        if option not in _MOUNT_OPTIONS:
            allowed = ", ".join(sorted(_MOUNT_OPTIONS))
            raise texts.fault(f"{field}.mount_options", option, f"is not one of {allowed}")
    return tuple(dict.fromkeys(options))


def _device(field: str, device: pb.Device) -> Device:
    if not _PERMISSIONS.fullmatch("".join(sorted(device.permissions, key="rwm".find))):
        raise texts.fault(f"{field}.permissions", device.permissions, "is not a subset of rwm")
    return Device(
        container_path=texts.absolute_path(f"{field}.container_path", device.container_path),
        host_path=texts.absolute_path(f"{field}.host_path", device.host_path),
        permissions=device.permissions,
    )


def _optional_path(field: str, value: str) -> str:
    return texts.absolute_path(field, value) if value else ""


def _working_dir(value: str) -> str:
    """Take any absolute path: it is resolved inside the container, so it may climb."""
    if value and not texts.line("working_dir", value, texts.MAX_PATH).startswith("/"):
        raise texts.fault("working_dir", value, "must be an absolute path")
    return value


def _amount(field: str, name: str, value: int) -> int:
    return texts.number(f"{field}.{name}", value, 0, _INT64)


def _cpuset(field: str, value: str) -> str:
    if not re.fullmatch(r"[0-9,-]*", value) or len(value) > 4096:
        raise texts.fault(field, value, "is not a list such as 0-3,7")
    return value


def _refuse_windows(is_there: bool, field: str) -> None:
    if is_there:
        raise InvalidArgumentError(f"{field}: this runtime runs Linux containers only")


def _enumerated(field: str, values: Iterable[T]) -> Iterator[tuple[int, T]]:
    return enumerate(texts.bounded(field, values))
