"""The Pod's volumes on this machine: folders and files where a kubelet would have them.

A volume that only a cluster has is refused by its name. Nothing is written where a container could
have put a link: the folders are made before the first container, a subPath is opened within its
volume and bound by descriptor.
Source: kubelet ``pkg/volume`` (emptydir, configmap, secret, projected, downwardapi, util/subpath).
"""

from __future__ import annotations

import errno
import os
import stat
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from posixpath import normpath
from typing import Any, Final

from noderuntime.api.quantity import size_bytes
from noderuntime.cli.manifest.model import Container, Volume
from noderuntime.cli.manifest.volumes import OF_POD, source_of
from noderuntime.cli.manifest.workloads import parsed
from noderuntime.cli.running import environment
from noderuntime.cli.running.here import Here
from noderuntime.cli.running.sources import Files, Kind, Projected, Told
from noderuntime.errors import ConfigError, FailedPreconditionError, HostError
from noderuntime.host import syscalls

_MODE: Final = 0o644
_KEPT: Final = ("emptyDir", "hostPath", "image")
_FILES: Final[Mapping[str, Kind]] = {"configMap": "ConfigMap", "secret": "Secret"}


@dataclass(frozen=True, slots=True)
class File:
    """A file of a volume, by its path there."""

    path: str
    data: bytes
    mode: int


def on_this_machine(here: Here, path: str) -> str:
    """Return where a path of the kubelet's folder of the Pod is here; others stay as they are."""
    rest = path.removeprefix(f"{OF_POD}/")
    return path if rest == path else str(here.folder / rest)


def require_possible(here: Here) -> None:
    """Refuse volumes that need a cluster. Raises ConfigError that names the volume."""
    for index, volume in enumerate(here.workload.pod.spec.volumes):
        list(_files(here, volume, f"{here.workload.name}: spec.volumes[{index}]", "127.0.0.1"))
        if volume.empty_dir is not None and volume.empty_dir.medium.startswith("HugePages"):
            raise ConfigError(
                f"{here.workload.name}: spec.volumes[{index}].emptyDir.medium: {volume.name} cannot be "
                "in huge pages here; use Memory"
            )
    for place, each in (
        *(("initContainers", c) for c in here.workload.pod.spec.init_containers),
        *(("containers", c) for c in here.workload.pod.spec.containers),
    ):
        if each.volume_devices:
            raise ConfigError(
                f"{here.workload.name}: spec.{place}: {each.name}: volumeDevices: block volumes are in a "
                "cluster alone"
            )


def make(here: Here) -> None:
    """Make all volumes but those that tell the Pod's address (``tell``). Blocking. Raises HostError."""
    # Secrets are among them: no user of the machine gets in.
    here.place.pods.mkdir(mode=0o700, parents=True, exist_ok=True)
    here.folder.mkdir(mode=0o711)
    (here.folder / "volumes").mkdir(mode=0o711)
    here.logs.mkdir(mode=0o700)
    for volume in here.workload.pod.spec.volumes:
        if volume.source in ("hostPath", "image"):
            continue
        folder = Path(on_this_machine(here, source_of(volume)))
        folder.mkdir(parents=True)
        if volume.empty_dir is not None and volume.empty_dir.medium == "Memory":
            limit = volume.empty_dir.size_limit
            size = f",size={size_bytes(limit)}" if limit else ""
            syscalls.mount(
                "tmpfs", folder, "tmpfs", syscalls.MS_NOSUID | syscalls.MS_NODEV, f"mode=777{size}"
            )
        folder.chmod(0o777 if volume.source == "emptyDir" else 0o755)


def tell(here: Here, ip: str) -> None:
    """Write the files of volumes, /etc/hosts, and give all to the Pod's group. Blocking."""
    spec = here.workload.pod.spec
    for index, volume in enumerate(spec.volumes):
        if volume.source in _KEPT:
            continue
        folder = Path(on_this_machine(here, source_of(volume)))
        for file in _files(here, volume, f"spec.volumes[{index}]", ip):
            path = folder / file.path
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_bytes(file.data)
            path.chmod(file.mode)
    if spec.security_context.fs_group is not None:
        _give(here, spec.security_context.fs_group)
    if not spec.host_network:
        path = here.folder / "etc-hosts"
        path.write_text(_hosts(here, ip))
        path.chmod(0o644)


def prepare(here: Here, container: Container) -> None:
    """Make what one container mounts besides: subPaths, and the file of its last words. Blocking.

    Raises FailedPreconditionError for a subPath that is in no folder.
    """
    (here.folder / "containers" / container.name).mkdir(parents=True)
    last_words = here.folder / "containers" / container.name / "00000000"
    last_words.touch()
    last_words.chmod(0o666)
    volumes = {volume.name: volume for volume in here.workload.pod.spec.volumes}
    for index, mount in enumerate(container.volume_mounts):
        sub_path = mount.sub_path or mount.sub_path_expr
        volume = volumes[mount.name]
        if not sub_path or volume.image is not None:
            continue
        root = Path(on_this_machine(here, source_of(volume)))
        target = here.folder / "volume-subpaths" / mount.name / container.name / str(index)
        target.parent.mkdir(parents=True, exist_ok=True)
        try:
            _bind_inside(root, normpath(sub_path), target)
        except (OSError, HostError) as error:
            raise FailedPreconditionError(
                f"container {container.name}: volumeMounts[{index}].subPath: {sub_path}: {error}"
            ) from error


def _bind_inside(root: Path, path: str, target: Path) -> None:
    descriptor = _open_or_make(root, path)
    try:
        if stat.S_ISDIR(os.fstat(descriptor).st_mode):
            target.mkdir()
        else:
            target.touch()
        syscalls.mount(
            f"/proc/self/fd/{descriptor}", target, flags=syscalls.MS_BIND | syscalls.MS_REC
        )
    finally:
        os.close(descriptor)


def _open_or_make(root: Path, path: str) -> int:
    """Open what is there as if ``root`` were "/"; what is missing is made as folders."""
    try:
        return syscalls.open_in_root(root, path, os.O_PATH)
    except HostError as error:
        if error.errno != errno.ENOENT or path in (".", "/", ""):
            raise
    above, _, name = path.rstrip("/").rpartition("/")
    parent = _open_or_make(root, above or ".")
    try:
        os.mkdir(name, 0o755, dir_fd=parent)
    finally:
        os.close(parent)
    return syscalls.open_in_root(root, path, os.O_PATH | os.O_DIRECTORY)


def _files(here: Here, volume: Volume, where: str, ip: str) -> Iterator[File]:
    """Yield the files of a volume that has some. Raises ConfigError for one of a cluster's."""
    source = volume.source
    raw: Any = (volume.model_extra or {}).get(source) or {}
    field = f"{where} ({volume.name}): {source}"
    if source in _FILES:
        found = parsed(Files, raw, field, "")
        yield from _data(here, _FILES[source], found, field, found.default_mode)
    elif source == "downwardAPI":
        told = parsed(Told, raw, field, "")
        yield from _told(here, told, told.default_mode, ip, field)
    elif source == "projected":
        for projection in (projected := parsed(Projected, raw, field, "")).sources:
            mode = projected.default_mode
            if projection.config_map is not None:
                yield from _data(here, "ConfigMap", projection.config_map, field, mode)
            elif projection.secret is not None:
                yield from _data(here, "Secret", projection.secret, field, mode)
            elif projection.downward_api is not None:
                yield from _told(here, projection.downward_api, mode, ip, field)
            else:
                raise ConfigError(f"{field}: a token or bundle is given out by a cluster alone")
    elif source not in _KEPT:
        raise ConfigError(
            f"{field}: this kind of volume is there in a cluster alone; here are emptyDir, hostPath, image, "
            "configMap, secret, downwardAPI and projected of these"
        )


def _data(here: Here, kind: Kind, files: Files, where: str, mode: int | None) -> Iterator[File]:
    name = files.name or files.secret_name
    if name is None:
        raise ConfigError(f"{where}: names no {kind}")
    data = here.sources.data(kind, here.workload.namespace, name, where, optional=files.optional)
    if not files.items:
        for key, value in data.items():
            yield File(_checked(key, where), value, mode or _MODE)
    for item in files.items:
        if item.key in data:
            yield File(_checked(item.path, where), data[item.key], item.mode or mode or _MODE)
        elif not files.optional:
            raise ConfigError(f"{where}: the {kind} {name} has no key {item.key}")


def _told(here: Here, told: Told, mode: int | None, ip: str, where: str) -> Iterator[File]:
    containers = {c.name: c for c in here.workload.pod.spec.containers}
    for item in told.items:
        if item.field_ref is not None:
            text = environment.field_value(here, item.field_ref, ip, where)
        elif item.resource_field_ref is not None:
            container = containers.get(item.resource_field_ref.container_name or "")
            if container is None:
                raise ConfigError(
                    f"{where}: {item.path}: resourceFieldRef: containerName: is unknown"
                )
            text = environment.resource_value(container, item.resource_field_ref, where)
        else:
            raise ConfigError(f"{where}: {item.path}: names no field")
        yield File(_checked(item.path, where), text.encode(), item.mode or mode or _MODE)


def _checked(path: str, where: str) -> str:
    if path.startswith("/") or ".." in path.split("/"):
        raise ConfigError(f"{where}: {path} must be a relative path without '..'")
    return path


def _give(here: Here, group: int) -> None:
    """Give the volumes to ``fsGroup``: it may read all of them and write what can be written."""
    for volume in here.workload.pod.spec.volumes:
        if volume.source in ("hostPath", "image"):
            continue
        top = Path(on_this_machine(here, source_of(volume)))
        for path in (top, *top.rglob("*")):
            os.chown(path, -1, group, follow_symlinks=False)
            mode = stat.S_IMODE(path.lstat().st_mode)
            path.chmod(mode | (0o2070 if path.is_dir() else 0o040))


def _hosts(here: Here, ip: str) -> str:
    """Return /etc/hosts as the kubelet writes it."""
    spec = here.workload.pod.spec
    lines = [
        "# made for this Pod by noderuntime run",
        "127.0.0.1\tlocalhost",
        "::1\tlocalhost ip6-localhost ip6-loopback",
        f"{ip}\t{spec.hostname or here.workload.name}",
        *(f"{alias.ip}\t{' '.join(alias.hostnames)}" for alias in spec.host_aliases),
    ]
    return "\n".join(lines) + "\n"
