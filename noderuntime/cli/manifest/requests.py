"""What the kubelet would send for a Pod: RunPodSandbox's config, and CreateContainer's for each.

In CRI's own words, so that they pass through the same door as the kubelet's (``cri.convert``), and
what that refuses is refused here. Not here, as only a cluster knows it: values of ``valueFrom`` and
``envFrom``, the service account's volume, devices of plugins.
Source: kubelet v1.37 ``pkg/kubelet/kuberuntime`` (kuberuntime_sandbox.go, kuberuntime_container.go,
security_context.go), ``pkg/securitycontext``.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Final, Literal

from noderuntime.cli.manifest import amounts, volumes
from noderuntime.cli.manifest.model import (
    ConfinedBy,
    Container,
    ContainerSecurity,
    PodSecurity,
    PodSpec,
    SelinuxOptions,
)
from noderuntime.cli.manifest.workloads import Workload
from noderuntime.cri.runtime_v1 import api_pb2 as pb
from noderuntime.policy.spec import DEFAULT_MASKED, DEFAULT_READONLY

SECCOMP_FOLDER: Final = "/var/lib/kubelet/seccomp"
UNKNOWN_VALUE: Final = "(known in the cluster alone)"
_CONFINED: Final = {
    "RuntimeDefault": pb.SecurityProfile.RuntimeDefault,
    "Unconfined": pb.SecurityProfile.Unconfined,
    "Localhost": pb.SecurityProfile.Localhost,
}
_IDS: Final = 65_536  # of a Pod's user namespace; where they begin on the node, the kubelet chooses

Place = Literal["initContainers", "containers", "ephemeralContainers"]


@dataclass(frozen=True, slots=True, kw_only=True)
class ContainerRequest:
    """What CreateContainer gets, and what of the node's mount table belongs to it."""

    place: Place
    container: Container
    config: pb.ContainerConfig
    mountinfo: str


def sandbox(workload: Workload) -> pb.PodSandboxConfig:
    """Return the Pod's. Raises ConfigError."""
    spec, identity = workload.pod.spec, f"{workload.namespace}_{workload.name}_{volumes.UID}"
    quality = amounts.quality(spec)
    slice_of = "" if quality == "Guaranteed" else f"/{quality.lower()}"
    security = spec.security_context
    context = pb.LinuxSandboxSecurityContext(
        namespace_options=_namespaces(spec),
        privileged=any(c.security_context.privileged for _, _, c in each_container(spec)),
        seccomp=pb.SecurityProfile(profile_type=pb.SecurityProfile.RuntimeDefault),
        supplemental_groups=_groups(security),
        supplemental_groups_policy=_policy(security),
        selinux_options=_selinux(security.se_linux_options),
    )
    if security.run_as_user is not None:
        context.run_as_user.value = security.run_as_user
    if security.run_as_group is not None:
        context.run_as_group.value = security.run_as_group
    return pb.PodSandboxConfig(
        metadata=pb.PodSandboxMetadata(
            name=workload.name, namespace=workload.namespace, uid=volumes.UID
        ),
        hostname="" if spec.host_network else (spec.hostname or workload.name)[:63].rstrip("-."),
        log_directory=f"/var/log/pods/{identity}",
        annotations=dict(workload.pod.metadata.annotations),
        linux=pb.LinuxPodSandboxConfig(
            cgroup_parent=f"/kubepods{slice_of}/pod{volumes.UID}",
            security_context=context,
            sysctls={each.name: each.value for each in security.sysctls},
        ),
    )


def containers(workload: Workload, image_user: str | None) -> Iterator[ContainerRequest]:
    """Yield each container's, in the order in which they start. Raises ConfigError.

    ``image_user`` is the image's own user, as the kubelet asks the runtime for it: a number or a
    name; None, unknown, is 0 here.
    """
    for place, index, _ in each_container(workload.pod.spec):
        yield container(workload, place, index, image_user)


def container(
    workload: Workload, place: Place, index: int, image_user: str | None
) -> ContainerRequest:
    """Return one container's, the ``index``-th of its list. Raises ConfigError."""
    spec = workload.pod.spec
    each = _lists(spec)[place][index]
    where = f"{workload.kind} {workload.name}: spec.{place}[{index}]"
    found = volumes.mounted(spec, each, where)
    quality = amounts.quality(spec)
    resources = amounts.resources(each.resources, quality, f"{where}.resources")
    config = pb.ContainerConfig(
        metadata=pb.ContainerMetadata(name=each.name),
        image=pb.ImageSpec(image=each.image, user_specified_image=each.image),
        command=each.command,
        args=each.args,
        working_dir=each.working_dir,
        envs=_environment(each),
        mounts=found.mounts,
        devices=volumes.devices(spec, each, where),
        log_path=f"{each.name}/0.log",
        stdin=each.stdin,
        stdin_once=each.stdin_once,
        tty=each.tty,
        linux=pb.LinuxContainerConfig(
            resources=resources, security_context=_context(spec, each, image_user)
        ),
    )
    return ContainerRequest(place=place, container=each, config=config, mountinfo=found.mountinfo)


def each_container(spec: PodSpec) -> Iterator[tuple[Place, int, Container]]:
    """Yield every container with its list and its place in it, in the order in which they start."""
    for place, found in _lists(spec).items():
        for index, each in enumerate(found):
            yield place, index, each


def _lists(spec: PodSpec) -> dict[Place, list[Container]]:
    return {
        "initContainers": spec.init_containers,
        "containers": spec.containers,
        "ephemeralContainers": spec.ephemeral_containers,
    }


def _context(
    spec: PodSpec, container: Container, image_user: str | None
) -> pb.LinuxContainerSecurityContext:
    pod, own = spec.security_context, container.security_context
    usual = own.proc_mount == "Default"
    context = pb.LinuxContainerSecurityContext(
        capabilities=pb.Capability(
            add_capabilities=own.capabilities.add, drop_capabilities=own.capabilities.drop
        ),
        privileged=own.privileged,
        namespace_options=_namespaces(spec, container.target_container_name or ""),
        supplemental_groups=_groups(pod),
        supplemental_groups_policy=_policy(pod),
        readonly_rootfs=own.read_only_root_filesystem,
        no_new_privs=own.allow_privilege_escalation is False,
        masked_paths=DEFAULT_MASKED if usual else (),
        readonly_paths=DEFAULT_READONLY if usual else (),
        seccomp=_seccomp(own.seccomp_profile or pod.seccomp_profile),
        selinux_options=_selinux(own.se_linux_options or pod.se_linux_options),
    )
    apparmor = own.app_armor_profile or pod.app_armor_profile
    if apparmor is not None:
        context.apparmor.CopyFrom(_confined(apparmor, ""))
    _identify(context, pod, own, image_user)
    return context


def _identify(
    context: pb.LinuxContainerSecurityContext,
    pod: PodSecurity,
    own: ContainerSecurity,
    image_user: str | None,
) -> None:
    """Write the user: the container's, the Pod's, or the image's, which the kubelet asks for."""
    user = pod.run_as_user if own.run_as_user is None else own.run_as_user
    group = pod.run_as_group if own.run_as_group is None else own.run_as_group
    if user is None and image_user and not image_user.isdecimal():
        context.run_as_username = image_user
    else:
        context.run_as_user.value = int(image_user or 0) if user is None else user
    if group is not None:
        context.run_as_group.value = group


def _namespaces(spec: PodSpec, target: str = "") -> pb.NamespaceOption:
    own_pid = pb.POD if spec.share_process_namespace else pb.CONTAINER
    users = pb.UserNamespace(mode=pb.NODE)
    if not spec.host_users:
        ids = pb.IDMapping(container_id=0, host_id=_IDS, length=_IDS)
        users = pb.UserNamespace(mode=pb.POD, uids=[ids], gids=[ids])
    options = pb.NamespaceOption(
        network=pb.NODE if spec.host_network else pb.POD,
        pid=pb.NODE if spec.host_pid else own_pid,
        ipc=pb.NODE if spec.host_ipc else pb.POD,
        userns_options=users,
    )
    if target and not spec.host_pid and not spec.share_process_namespace:
        options.pid, options.target_id = pb.TARGET, target
    return options


def _seccomp(profile: ConfinedBy | None) -> pb.SecurityProfile:
    if profile is None:
        return pb.SecurityProfile(profile_type=pb.SecurityProfile.Unconfined)
    return _confined(profile, f"{SECCOMP_FOLDER}/")


def _confined(profile: ConfinedBy, folder: str) -> pb.SecurityProfile:
    reference = f"{folder}{profile.localhost_profile}" if profile.localhost_profile else ""
    return pb.SecurityProfile(profile_type=_CONFINED[profile.type], localhost_ref=reference)


def _selinux(options: SelinuxOptions | None) -> pb.SELinuxOption | None:
    return None if options is None else pb.SELinuxOption(**options.model_dump())


def _groups(security: PodSecurity) -> list[int]:
    own = [] if security.fs_group is None else [security.fs_group]
    return own + security.supplemental_groups


def _policy(security: PodSecurity) -> pb.SupplementalGroupsPolicy.ValueType:
    return pb.Strict if security.supplemental_groups_policy == "Strict" else pb.Merge


def _environment(container: Container) -> Iterator[pb.KeyValue]:
    for each in container.env:
        value = UNKNOWN_VALUE if each.value_from is not None else each.value
        yield pb.KeyValue(key=each.name, value=value.encode())
