"""From the engine's records to CRI's messages: states, statuses and images.

What the kubelet needs filled is filled (``k8s.io/cri-client`` ``pkg/utils.go`` refuses statuses
without): ``image`` and ``image_ref`` of a container, ``created_at``, the metadata of a sandbox.
"""

from __future__ import annotations

import json
from dataclasses import asdict
from typing import TYPE_CHECKING, Final

from noderuntime.cri.runtime_v1 import api_pb2 as pb
from noderuntime.policy.model import Propagation

if TYPE_CHECKING:
    from collections.abc import Callable

    from noderuntime.engine.events import Event
    from noderuntime.engine.state import ContainerRecord, SandboxRecord
    from noderuntime.images.ports import FsUsage, Image
    from noderuntime.policy.model import (
        IdMapping,
        Mount,
        Namespaces,
        PodIdentity,
        Resources,
        UserNamespace,
    )

_SIGNALS: Final = {
    name.removeprefix("SIGNAL_").replace("PLUS", "+").replace("MINUS", "-"): number
    for name, number in pb.Signal.items()
    if number != pb.SIGNAL_RUNTIME_DEFAULT
}
_MAX_UID: Final = 2**32 - 2


def sandbox_item(record: SandboxRecord) -> pb.PodSandbox:
    """Return a row of ListPodSandbox."""
    return pb.PodSandbox(
        id=record.id,
        metadata=sandbox_metadata(record.config.pod),
        state=pb.PodSandboxState.Value(record.state.value),
        created_at=record.created_at_ns,
        labels=record.config.labels,
        annotations=record.config.annotations,
        runtime_handler=record.handler,
    )


def sandbox_status(record: SandboxRecord) -> pb.PodSandboxStatus:
    """Return PodSandboxStatus; on the host's network ``network`` is there, but empty."""
    primary, *others = record.addresses or ("",)
    options = namespaces(record.config.namespaces)
    return pb.PodSandboxStatus(
        id=record.id,
        metadata=sandbox_metadata(record.config.pod),
        state=pb.PodSandboxState.Value(record.state.value),
        created_at=record.created_at_ns,
        network=pb.PodSandboxNetworkStatus(
            ip=primary, additional_ips=[pb.PodIP(ip=address) for address in others]
        ),
        linux=pb.LinuxPodSandboxStatus(namespaces=pb.Namespace(options=options)),
        labels=record.config.labels,
        annotations=record.config.annotations,
        runtime_handler=record.handler,
    )


def sandbox_info(record: SandboxRecord) -> dict[str, str]:
    """Return the verbose part, for ``crictl inspectp``."""
    return {
        "info": json.dumps(
            {
                "handler": record.handler,
                "ociRuntime": record.oci_runtime,
                "revision": record.revision,
                "nodeRuntime": record.node_runtime,
                "profile": record.profile,
                "cgroupParent": record.config.cgroup_parent,
                "overhead": asdict(record.config.overhead),
                "resources": asdict(record.config.resources),
            }
        )
    }


def sandbox_metadata(pod: PodIdentity) -> pb.PodSandboxMetadata:
    """Return the Pod's identity."""
    return pb.PodSandboxMetadata(
        name=pod.name, uid=pod.uid, namespace=pod.namespace, attempt=pod.attempt
    )


def namespaces(asked: Namespaces) -> pb.NamespaceOption:
    """Return the modes; the kubelet compares ``network`` to decide whether a Pod has changed."""
    return pb.NamespaceOption(
        network=pb.NamespaceMode.Value(asked.network.value),
        pid=pb.NamespaceMode.Value(asked.pid.value),
        ipc=pb.NamespaceMode.Value(asked.ipc.value),
        target_id=asked.target_id,
        userns_options=None if asked.user is None else _user_namespace(asked.user),
    )


def _user_namespace(users: UserNamespace) -> pb.UserNamespace:
    return pb.UserNamespace(
        mode=pb.POD, uids=[_id_mapping(users.uids)], gids=[_id_mapping(users.gids)]
    )


def _id_mapping(one: IdMapping) -> pb.IDMapping:
    return pb.IDMapping(host_id=one.host_id, container_id=one.container_id, length=one.length)


def container_item(record: ContainerRecord) -> pb.Container:
    """Return a row of ListContainers; the kubelet keeps images that an ``image_id`` names."""
    return pb.Container(
        id=record.id,
        pod_sandbox_id=record.sandbox_id,
        metadata=pb.ContainerMetadata(name=record.config.name, attempt=record.config.attempt),
        image=container_image(record),
        image_ref=record.image_id,
        state=pb.ContainerState.Value(record.state.value),
        created_at=record.created_at_ns,
        labels=record.config.labels,
        annotations=record.config.annotations,
        image_id=record.image_id,
    )


def container_status(record: ContainerRecord, image: Image | None) -> pb.ContainerStatus:
    """Return ContainerStatus; ``image_ref`` becomes the Pod's imageID: a digest if there is one."""
    return pb.ContainerStatus(
        id=record.id,
        metadata=pb.ContainerMetadata(name=record.config.name, attempt=record.config.attempt),
        state=pb.ContainerState.Value(record.state.value),
        created_at=record.created_at_ns,
        started_at=record.started_at_ns,
        finished_at=record.finished_at_ns,
        exit_code=record.exit_code,
        image=container_image(record),
        image_ref=image.repo_digests[0] if image and image.repo_digests else record.image_id,
        image_id=record.image_id,
        reason=record.reason,
        message=record.message,
        labels=record.config.labels,
        annotations=record.config.annotations,
        mounts=[mount(each) for each in record.config.mounts],
        log_path=record.log_path,
        resources=pb.ContainerResources(linux=resources(record.config.resources)),
        user=pb.ContainerUser(
            linux=pb.LinuxContainerUser(
                uid=record.uid, gid=record.gid, supplemental_groups=record.additional_gids
            )
        ),
        stop_signal=_stop_signal(record, image),
    )


def event(happened: Event, find_image: Callable[[str], Image | None]) -> pb.ContainerEventResponse:
    """Return an event with the whole Pod; the kubelet passes over one without a sandbox."""
    sandbox = happened.sandbox
    return pb.ContainerEventResponse(
        container_id=happened.object_id,
        container_event_type=pb.ContainerEventType.Value(happened.kind.value),
        created_at=happened.created_at_ns,
        pod_sandbox_status=None if sandbox is None else sandbox_status(sandbox),
        containers_statuses=[
            container_status(record, find_image(record.image_id)) for record in happened.containers
        ],
    )


def container_info(record: ContainerRecord) -> dict[str, str]:
    """Return the verbose part, for ``crictl inspect``."""
    return {
        "info": json.dumps(
            {
                "sandboxID": record.sandbox_id,
                "pid": record.pid,
                "revision": record.revision,
                "cgroupPath": record.cgroup_path,
                "privileged": record.config.security.privileged,
            }
        )
    }


def container_image(record: ContainerRecord) -> pb.ImageSpec:
    """Return the image by the name that people gave it."""
    config = record.config
    return pb.ImageSpec(
        image=record.image_reference or config.image_reference or config.image,
        user_specified_image=config.image_reference,
    )


def mount(asked: Mount) -> pb.Mount:
    """Return a mount; the kubelet finds the termination message through these."""
    return pb.Mount(
        container_path=asked.container_path,
        host_path=asked.host_path,
        readonly=asked.readonly,
        recursive_read_only=asked.recursive_readonly,
        selinux_relabel=asked.selinux_relabel,
        propagation=pb.MountPropagation.Value(Propagation(asked.propagation).value),
        uidMappings=[] if asked.idmap is None else [_id_mapping(asked.idmap.uids)],
        gidMappings=[] if asked.idmap is None else [_id_mapping(asked.idmap.gids)],
        image=pb.ImageSpec(
            image=asked.image,
            user_specified_image=asked.image_reference,
            image_ref=asked.image_ref,
        )
        if asked.image
        else None,
        image_sub_path=asked.image_sub_path,
        mount_options=asked.options,
    )


def resources(limits: Resources) -> pb.LinuxContainerResources:
    """Return limits."""
    return pb.LinuxContainerResources(
        cpu_period=limits.cpu_period_us,
        cpu_quota=limits.cpu_quota_us,
        cpu_shares=limits.cpu_shares,
        memory_limit_in_bytes=limits.memory_limit_bytes,
        memory_swap_limit_in_bytes=limits.memory_swap_limit_bytes,
        oom_score_adj=limits.oom_score_adj,
        cpuset_cpus=limits.cpuset_cpus,
        cpuset_mems=limits.cpuset_mems,
        hugepage_limits=[
            pb.HugepageLimit(page_size=size, limit=limit)
            for size, limit in limits.hugepage_limits_bytes.items()
        ],
        unified=limits.unified,
    )


def image(found: Image) -> pb.Image:
    """Return an image. Its user decides what the kubelet's ``runAsNonRoot`` says."""
    uid, username = _image_user(found.config.user)
    return pb.Image(
        id=found.id,
        repo_tags=found.repo_tags,
        repo_digests=found.repo_digests,
        size=max(found.size_bytes, 1),  # 0 means 'not set' to the CRI client, which refuses it
        uid=None if uid is None else pb.Int64Value(value=uid),
        username=username,
        spec=pb.ImageSpec(image=found.id),
        pinned=found.pinned,
    )


def image_info(found: Image) -> dict[str, str]:
    """Return the verbose part, for ``crictl inspecti``."""
    config = found.config
    return {
        "info": json.dumps(
            {
                "imageSpec": {
                    "config": {
                        "User": config.user,
                        "Env": list(config.env),
                        "Entrypoint": list(config.entrypoint),
                        "Cmd": list(config.cmd),
                        "WorkingDir": config.working_dir,
                        "StopSignal": config.stop_signal,
                        "Volumes": {path: {} for path in config.volumes},
                        "Labels": dict(config.labels),
                    }
                }
            }
        )
    }


def filesystem(usage: FsUsage) -> pb.FilesystemUsage:
    """Return the usage of a file system."""
    return pb.FilesystemUsage(
        timestamp=usage.timestamp_ns,
        fs_id=pb.FilesystemIdentifier(mountpoint=str(usage.mountpoint)),
        used_bytes=pb.UInt64Value(value=max(usage.used_bytes, 0)),
        inodes_used=pb.UInt64Value(value=max(usage.inodes_used, 0)),
    )


def _image_user(user: str) -> tuple[int | None, str]:
    """Return (uid, "") for a numeric ``USER``, (None, name) for a named one."""
    name = user.split(":", 1)[0].strip()
    if name.isascii() and name.isdigit() and int(name) <= _MAX_UID:
        return int(name), ""
    return None, name


def _stop_signal(record: ContainerRecord, image: Image | None) -> pb.Signal.ValueType:
    """Return what StopContainer sends: the Pod's, else the image's, else SIGTERM."""
    asked = record.config.stop_signal or (image.config.stop_signal if image else "")
    return _SIGNALS.get(asked, pb.SIGNAL_SIGTERM)
