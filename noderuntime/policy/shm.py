"""The size of /dev/shm: of the Pod's own, and of a volume in memory that is mounted on it.

A Pod cannot ask CRI for a size. It can mount an ``emptyDir`` of medium Memory there, whose size the
mount table has: the kubelet makes it a tmpfs with ``size=`` of its sizeLimit, or without one with
that of the Pod's memory; without ``size=`` a tmpfs may have half of the node's memory.
Source: tmpfs(5), proc_pid_mountinfo(5); kubelet ``pkg/volume/emptydir``.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from posixpath import normpath
from typing import Final

from noderuntime.api.quantity import show_bytes
from noderuntime.policy.denial import Denial
from noderuntime.policy.facts import ContainerFacts
from noderuntime.policy.mounts import tmpfs_options

_SIZE: Final = re.compile(r"(?:^|,)size=([0-9]{1,15})([kmg]?)(?:,|$)", re.ASCII)
_UNITS: Final = {"": 0, "k": 10, "m": 20, "g": 30}


def is_bounded(facts: ContainerFacts) -> Iterator[Denial]:
    """Refuse a volume in memory on /dev/shm that is larger than the profile's most."""
    most = facts.rules.shm_limit_bytes
    if most is None:
        return
    for mount in facts.container.mounts:
        inside = "/" + normpath(mount.container_path).lstrip("/")
        if mount.image or inside != "/dev/shm":  # noqa: S108 - the container's
            continue
        real = facts.host.real_paths.get(mount.host_path, mount.host_path)
        options = tmpfs_options(real, facts.host.mountinfo)
        if options is None:
            continue  # no memory: a folder of the node's disk
        size = _size(options)
        if size is None or size > most:
            yield facts.deny(
                f"volumeMounts[{mount.container_path}]",
                "a volume in memory of any size" if size is None else show_bytes(size),
                f"resources.shm.max is {show_bytes(most)}",
                f"give the emptyDir a sizeLimit of {show_bytes(most)} or less",
            )


def _size(options: str) -> int | None:
    match = _SIZE.search(options)
    return None if match is None else int(match[1]) << _UNITS[match[2]]
