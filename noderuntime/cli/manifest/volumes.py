"""A container's mounts and devices as the kubelet makes them, and the node's mount table for these.

The kubelet binds a subPath to a folder of its own; only the mount table says what is behind, so the
lines that a node would have are written here (``mountinfo``). What is behind a claim is unknown
without a cluster: it is taken for a volume of the kubelet's.
Source: kubelet ``pkg/kubelet/kubelet_pods.go`` (makeMounts, makeBlockVolumes),
``pkg/volume/util/subpath``; proc_pid_mountinfo(5).
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import dataclass
from posixpath import join, normpath
from typing import Final

from noderuntime.api.quantity import size_bytes
from noderuntime.cli.manifest.model import Container, PodSpec, Volume, VolumeMount
from noderuntime.cri.runtime_v1 import api_pb2 as pb
from noderuntime.errors import ConfigError

UID: Final = "00000000-0000-4000-8000-000000000000"  # any: nobody knows it before the Pod exists
OF_POD: Final = f"/var/lib/kubelet/pods/{UID}"
_PROPAGATIONS: Final = {
    "None": pb.PROPAGATION_PRIVATE,
    "HostToContainer": pb.PROPAGATION_HOST_TO_CONTAINER,
    "Bidirectional": pb.PROPAGATION_BIDIRECTIONAL,
}
# One file system with everything on it, shared, as systemd makes it.
_ROOT: Final = "1 0 8:1 / / rw,relatime shared:1 - ext4 /dev/sda1 rw"


@dataclass(frozen=True, slots=True)
class Mounted:
    """The mounts of a container, and the node's mount table as they need it."""

    mounts: tuple[pb.Mount, ...]
    mountinfo: str


def mounted(spec: PodSpec, container: Container, where: str) -> Mounted:
    """Return the container's mounts; raises ConfigError for a volume that the Pod does not have."""
    volumes = {volume.name: volume for volume in spec.volumes}
    mounts: list[pb.Mount] = []
    lines = [_ROOT, *_tmpfs(spec.volumes, where)]
    for index, each in enumerate(container.volume_mounts):
        field = f"{where}.volumeMounts[{index}]"
        volume = volumes.get(each.name)
        if volume is None:
            raise ConfigError(f"{field}.name: the Pod has no volume {each.name}")
        mount = _mount(volume, each)
        sub_path = each.sub_path or each.sub_path_expr
        if sub_path and volume.image is not None:
            mount.image_sub_path = sub_path
        elif sub_path:
            behind = _inside(mount.host_path, sub_path, field)
            mount.host_path = f"{OF_POD}/volume-subpaths/{each.name}/{container.name}/{index}"
            lines.append(_bind(behind, mount.host_path, len(lines)))
        mounts.append(mount)
    return Mounted((*mounts, *_own(spec, container)), "\n".join(lines))


def devices(spec: PodSpec, container: Container, where: str) -> Iterator[pb.Device]:
    """Yield the block volumes. Raises ConfigError for a volume that the Pod does not have."""
    names = {volume.name for volume in spec.volumes}
    for index, each in enumerate(container.volume_devices):
        if each.name not in names:
            raise ConfigError(
                f"{where}.volumeDevices[{index}].name: the Pod has no volume {each.name}"
            )
        yield pb.Device(
            container_path=each.device_path,
            host_path=f"{OF_POD}/volumeDevices/kubernetes.io~csi/{each.name}",
            permissions="mrw",
        )


def _mount(volume: Volume, asked: VolumeMount) -> pb.Mount:
    inside = asked.mount_path if asked.mount_path.startswith("/") else f"/{asked.mount_path}"
    if volume.image is not None:
        reference = volume.image.reference
        return pb.Mount(
            container_path=inside,
            image=pb.ImageSpec(image=reference, user_specified_image=reference),
            readonly=True,
        )
    return pb.Mount(
        container_path=inside,
        host_path=source_of(volume),
        readonly=asked.read_only,
        recursive_read_only=asked.read_only and asked.recursive_read_only == "Enabled",
        propagation=_PROPAGATIONS[asked.mount_propagation],
    )


def source_of(volume: Volume) -> str:
    """Return where the volume is on the node: a hostPath, or the kubelet's folder of its kind."""
    if volume.host_path is not None:
        return volume.host_path.path
    plugin = re.sub("([A-Z])", lambda m: f"-{m[1].lower()}", volume.source)
    if plugin == "config-map":
        plugin = "configmap"
    folder = f"{OF_POD}/volumes/kubernetes.io~{re.sub('[^a-z-]', '', plugin)}/{volume.name}"
    return f"{folder}/mount" if volume.source in ("csi", "persistentVolumeClaim") else folder


def _own(spec: PodSpec, container: Container) -> Iterator[pb.Mount]:
    """Yield the files that the kubelet adds: /etc/hosts and where a last message is written."""
    taken = {normpath(each.mount_path) for each in container.volume_mounts}
    if not spec.host_network and "/etc/hosts" not in taken:
        yield pb.Mount(container_path="/etc/hosts", host_path=f"{OF_POD}/etc-hosts")
    yield pb.Mount(
        container_path="/dev/termination-log",
        host_path=f"{OF_POD}/containers/{container.name}/00000000",
    )


def _inside(folder: str, sub_path: str, field: str) -> str:
    if sub_path.startswith("/") or ".." in sub_path.split("/"):
        raise ConfigError(f"{field}.subPath: must be a relative path without '..'")
    return normpath(join(folder, sub_path))


def _bind(source: str, point: str, number: int) -> str:
    return f"{number + 2} 1 8:1 {_written(source)} {point} rw,relatime shared:1 - ext4 /dev/sda1 rw"


def _tmpfs(volumes: list[Volume], where: str) -> Iterator[str]:
    """Yield the lines of the volumes in memory, with their size."""
    for number, volume in enumerate(volumes):
        if volume.empty_dir is None or volume.empty_dir.medium != "Memory":
            continue
        size = ""
        if volume.empty_dir.size_limit is not None:
            try:
                size = f",size={-(-size_bytes(volume.empty_dir.size_limit) // 1024)}k"
            except ValueError as error:
                pod = where.partition(": spec")[0]
                raise ConfigError(
                    f"{pod}: spec.volumes[{number}].emptyDir.sizeLimit: {error}"
                ) from error
        yield f"{number + 100} 1 0:{number + 100} / {source_of(volume)} rw shared:2 - tmpfs tmpfs rw{size}"


def _written(path: str) -> str:
    return re.sub(r"[ \t\n\\]", lambda match: f"\\{ord(match[0]):03o}", path)
