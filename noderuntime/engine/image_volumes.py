"""Image volumes: an image mounted read-only into a container (KEP-4639), below its bundle.

Each has a snapshot of its own, named after the container, which keeps the layers while it is there.
It is writable only to the node: the container gets a read-only bind, and no two share one. A sub
path is resolved within the image (openat2), as the image's links are not to be trusted.
"""

from __future__ import annotations

import os
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING

from noderuntime.engine import admission
from noderuntime.engine.decisions import asking_to_create
from noderuntime.engine.user_namespace import owners_of
from noderuntime.errors import (
    FailedPreconditionError,
    HostError,
    ImageError,
    ImageVolumeError,
    NotFoundError,
)
from noderuntime.host.syscalls import open_in_root

if TYPE_CHECKING:
    from noderuntime.engine.node import Node
    from noderuntime.engine.work import ContainerWork
    from noderuntime.images.ports import Snapshot
    from noderuntime.policy.model import Mount


def source_key(index: int) -> str:
    """Return what stands for the path of mount ``index`` among paths of the node."""
    return f"image:{index}"


async def mount_image_volumes(work: ContainerWork) -> None:
    """Mount every image that the container asks for. Raises DeniedError, ImageVolumeError."""
    record = work.record
    mounts: list[Mount] = []
    for index, mount in enumerate(record.config.mounts):
        mounts.append(await _mount(work, index, mount) if mount.image else mount)
    work.record = replace(record, config=replace(record.config, mounts=tuple(mounts)))


async def _mount(work: ContainerWork, index: int, mount: Mount) -> Mount:
    node, container_id = work.node, work.record.id
    image = node.parts.images.find(mount.image)
    if image is None:
        raise _failed(mount, NotFoundError("it is not on this node; pull it first"))
    if work.handler is None:
        raise FailedPreconditionError(f"container {container_id} has no handler")
    admission.admit_image_volume(asking_to_create(work), work.handler, mount, image)
    target = node.paths.image_volumes(container_id) / str(index)
    try:
        snapshot = await node.parts.images.prepare(f"{container_id}-{index}", image)
        await node.disk.run(target.parent.mkdir, 0o711, exist_ok=True)
        await mount_snapshot(work, snapshot, target)
        work.image_volumes[source_key(index)] = await node.disk.run(
            folder_within, target, mount.image_sub_path
        )
    except (HostError, ImageError, NotFoundError) as error:
        raise _failed(mount, error) from error
    return replace(mount, image_ref=image.id)


async def mount_snapshot(work: ContainerWork, snapshot: Snapshot, target: Path) -> None:
    """Mount an image of the container's, its root or a volume: with its users and its label.

    Without a label ("") files keep their own. Raises HostError.
    """
    await work.node.parts.mounts.overlay(
        snapshot.lowers,
        snapshot.upper,
        snapshot.work,
        target,
        owners_of(work),
        context="" if work.labels is None else work.labels.mount,
    )


def folder_within(root: Path, sub_path: str) -> str:
    """Return the folder's real path, which has no links any more. Blocking. Raises HostError."""
    if not sub_path:
        return str(root)
    descriptor = open_in_root(root, sub_path, os.O_PATH | os.O_DIRECTORY)
    try:
        return str(Path(f"/proc/self/fd/{descriptor}").readlink())
    finally:
        os.close(descriptor)


async def remove_image_volumes(work: ContainerWork) -> None:
    """Unmount the container's image volumes and let their layers go."""
    await work.node.parts.mounts.unmount(work.node.paths.image_volumes(work.record.id))
    for snapshot in snapshots_of(work.node, work.record.id):
        await work.node.parts.images.discard(snapshot)


def snapshots_of(node: Node, container_id: str) -> tuple[str, ...]:
    """Return the names of the snapshots that stand for a container's image volumes."""
    return tuple(s for s in node.parts.images.containers() if s.startswith(f"{container_id}-"))


def owner_of(snapshot: str) -> str:
    """Return the container that a snapshot, of its root or of a volume of its, belongs to."""
    return snapshot.partition("-")[0]


def _failed(mount: Mount, error: Exception) -> ImageVolumeError:
    image = mount.image_reference or mount.image
    where = f", sub path {mount.image_sub_path}," if mount.image_sub_path else ""
    return ImageVolumeError(
        f"image {image}{where} cannot be mounted at {mount.container_path}: {error}"
    )
