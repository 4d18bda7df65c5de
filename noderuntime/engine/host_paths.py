"""The node's paths that a container mounts, held open: what was judged is what is mounted.

A path that was judged by its name and is mounted by its name may be another one in between: who can
write to an allowed folder swaps a part of the path for a symbolic link. So it is opened once
(``O_PATH``); the policy judges the path that the descriptor has, and the mount is made from the
descriptor, in the container's bundle, from where the OCI runtime takes it. Nobody but root can
change that path.
Source: open(2) "O_PATH", proc_pid_fd(5); CVE-2021-30465.
"""

from __future__ import annotations

import os
from pathlib import Path
from typing import TYPE_CHECKING, Final

from noderuntime.errors import InvalidArgumentError
from noderuntime.policy.mounts import is_kubelets

if TYPE_CHECKING:
    from collections.abc import Mapping
    from types import TracebackType

    from noderuntime.policy.model import ContainerConfig, Mount

_OURS: Final = Path("/proc/self/fd")


class HostPaths:
    """Descriptors of the paths, until the end of the ``with``."""

    def __init__(self) -> None:
        """Hold nothing yet."""
        self._held: dict[str, int] = {}

    def __enter__(self) -> HostPaths:
        """Return itself."""
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        """Close them."""
        while self._held:
            os.close(self._held.popitem()[1])

    def pinned(self) -> Mapping[str, Path]:
        """Return what each held path is to be mounted from, by the path that was judged."""
        return {path: _OURS / str(descriptor) for path, descriptor in self._held.items()}

    def real_paths(self, container: ContainerConfig, pod_uid: str, *, hold: bool) -> dict[str, str]:
        """Return the real path of every mount's source and every device. Blocking.

        ``hold`` keeps paths of the node open; not the kubelet's own for this Pod, in whose folders
        nobody but the kubelet can change a name. Raises InvalidArgumentError for a missing source,
        with the mount's name: the kubelet makes folders of hostPath volumes itself, and an OCI
        runtime would say only that some bind failed.
        """
        real: dict[str, str] = {}
        for mount in container.mounts:
            if mount.image:
                continue
            if not mount.host_path:
                raise InvalidArgumentError(
                    f"container {container.name}: mount at {mount.container_path} has neither a host "
                    "path nor an image"
                )
            is_nodes = not is_kubelets(mount.host_path, pod_uid)
            try:
                real[mount.host_path] = self._open(mount, hold=hold and is_nodes)
            except (OSError, ValueError) as error:
                raise InvalidArgumentError(
                    f"container {container.name}: mount at {mount.container_path}: host path "
                    f"{mount.host_path} cannot be used: {error}"
                ) from error
        for device in container.devices:
            # One that is not there is told by who looks for the device, or is refused by its name.
            real.setdefault(device.host_path, os.path.realpath(device.host_path))
        return real

    def _open(self, mount: Mount, *, hold: bool) -> str:
        descriptor = os.open(mount.host_path, os.O_PATH | os.O_CLOEXEC)
        try:
            real = _path_of(descriptor)
        except BaseException:
            os.close(descriptor)
            raise
        if hold and real != "/" and real not in self._held:
            self._held[real] = descriptor
        else:
            os.close(descriptor)
        return real


def _path_of(descriptor: int) -> str:
    """Return the path that it has now. Raises OSError where another thing is there, or nothing."""
    real = os.fspath((_OURS / str(descriptor)).readlink())
    found, opened = Path(real).stat(), os.fstat(descriptor)
    if (found.st_dev, found.st_ino) != (opened.st_dev, opened.st_ino):
        raise OSError(f"it became another one while it was looked at ({real})")
    return real
