"""What a container of a Pod with a user namespace gets through it: its root and its volumes.

Volumes are mounted a second time in the bundle, mapped where the kubelet asks for it: the container's
root has no right to walk through the kubelet's folders, but may walk through ours.
"""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path, PurePosixPath
from typing import TYPE_CHECKING

from noderuntime.host.ports import Owners

if TYPE_CHECKING:
    from noderuntime.engine.work import ContainerWork
    from noderuntime.policy.model import Mount


def owners_of(work: ContainerWork) -> Owners | None:
    """Return the Pod's user namespace; None where it has the node's."""
    users = None if work.sandbox is None else work.sandbox.config.namespaces.user
    if work.sandbox is None or users is None:
        return None
    return Owners(
        userns=work.node.paths.namespaces(work.sandbox.id) / "user",
        uid=users.uids.host_id,
        gid=users.gids.host_id,
    )


async def mapped_volumes(
    work: ContainerWork, mounts: tuple[Mount, ...], recursive: frozenset[str]
) -> tuple[Mount, ...]:
    """Mount each volume in the bundle; return the mounts with those as their sources.

    What is mounted below a volume is a mount of its own here: in a user namespace crun 1.8.1 binds
    no more than the top. ``recursive``: the container paths whose submounts are read-only too.
    """
    owners = owners_of(work)
    if owners is None:
        return mounts
    result: list[Mount] = []
    for number, mount in enumerate(mounts):
        target = work.node.paths.volume(work.record.id, number)
        # An image's owners are mapped below its overlay, which itself cannot be.
        is_mapped = mount.idmap is not None and not mount.image
        userns = owners.userns if is_mapped else None
        below = await work.node.parts.mounts.clone(Path(mount.host_path), target, userns)
        result.append(replace(mount, host_path=str(target)))
        whole = mount.recursive_readonly or mount.container_path in recursive
        result += [
            replace(
                mount,
                host_path=str(point),
                container_path=str(PurePosixPath(mount.container_path, point.relative_to(target))),
                readonly=whole,
                recursive_readonly=whole,
            )
            for point in below
        ]
    return tuple(result)
