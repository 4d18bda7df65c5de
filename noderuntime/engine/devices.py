"""Devices of the node for a container: those it asks for, and all of them for a privileged one."""

from __future__ import annotations

import os
import stat
from collections.abc import Iterator, Mapping
from pathlib import Path

from noderuntime.errors import InvalidArgumentError
from noderuntime.policy.model import ContainerConfig
from noderuntime.policy.spec import DeviceNode

DEV = Path("/dev")
# Each container has its own of these: mounted by the OCI runtime, or its terminal.
OWN = frozenset({"console", "pts", "shm", "mqueue", "fd", "ptmx"})


def device_nodes(
    config: ContainerConfig, real_paths: Mapping[str, str], *, privileged: bool
) -> tuple[DeviceNode, ...]:
    """Return the devices by their path inside. Blocking. Raises InvalidArgumentError.

    ``real_paths`` are where they really are: those paths were judged.
    """
    found: dict[str, DeviceNode] = {}
    if privileged:
        found.update((node.path, node) for node in _all_below(DEV))
    for device in config.devices:
        where = Path(real_paths[device.host_path])
        node = _node(where, device.container_path, device.permissions or "rwm")
        if node is None:
            raise InvalidArgumentError(
                f"container {config.name}: {device.host_path} is not a device of this node"
            )
        found[node.path] = node
    return tuple(found.values())


def _all_below(directory: Path) -> Iterator[DeviceNode]:
    for entry in sorted(directory.iterdir()):
        if directory == DEV and entry.name in OWN:
            continue
        if entry.is_dir() and not entry.is_symlink():
            yield from _all_below(entry)
        elif not entry.is_symlink():
            node = _node(entry, str(entry), "rwm")
            if node is not None:
                yield node


def _node(path: Path, inside: str, access: str) -> DeviceNode | None:
    try:
        facts = path.stat()
    except OSError:
        return None
    if stat.S_ISCHR(facts.st_mode):
        kind = "c"
    elif stat.S_ISBLK(facts.st_mode):
        kind = "b"
    else:
        return None
    return DeviceNode(
        path=inside,
        kind=kind,
        major=os.major(facts.st_rdev),
        minor=os.minor(facts.st_rdev),
        access=access,
        mode=stat.S_IMODE(facts.st_mode),
        uid=facts.st_uid,
        gid=facts.st_gid,
    )
