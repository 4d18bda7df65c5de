"""What a container of a Pod with a user namespace gets through it: its root and its volumes.

Volumes are mounted a second time in the bundle, mapped where the kubelet asks for it: the container's
root has no right to walk through the kubelet's folders, but may walk through ours. So are paths of
the node that a profile has judged, whoever's the namespace is (``host_paths``).
"""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path, PurePosixPath
from typing import TYPE_CHECKING

from noderuntime.engine.jobs import to_the_end
from noderuntime.host.ports import Owners
from noderuntime.policy.model import Propagation

if TYPE_CHECKING:
    from collections.abc import Mapping

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


async def mounted_volumes(
    work: ContainerWork,
    mounts: tuple[Mount, ...],
    recursive: frozenset[str],
    pinned: Mapping[str, Path],
) -> tuple[Mount, ...]:
    """Mount in the bundle what the OCI runtime cannot take from where it is; return all mounts.

    ``pinned``: the paths of the node that were judged, and what to mount instead of their names.
    What is mounted below a volume is a mount of its own here: in a user namespace crun 1.8.1 binds
    no more than the top. ``recursive``: the container paths whose submounts are read-only too.
    """
    owners = owners_of(work)
    result: list[Mount] = []
    for number, mount in enumerate(mounts):
        source = pinned.get(mount.host_path) if not mount.image else None
        if owners is None and source is None:
            result.append(mount)
            continue
        target = work.node.paths.volume(work.record.id, number)
        # An image's owners are mapped below its overlay, which itself cannot be.
        is_mapped = owners is not None and mount.idmap is not None and not mount.image
        # To its end: a descriptor that is closed meanwhile may be another file's by then.
        below = await to_the_end(
            work.node.parts.mounts.clone(
                source or Path(mount.host_path),
                target,
                owners.userns if owners is not None and is_mapped else None,
                peer=mount.propagation is Propagation.BIDIRECTIONAL,
            )
        )
        result.append(replace(mount, host_path=str(target)))
        if owners is not None:
            whole = mount.recursive_readonly or mount.container_path in recursive
            result += [_below(mount, target, point, whole=whole) for point in below]
    return tuple(result)


def _below(mount: Mount, target: Path, point: Path, *, whole: bool) -> Mount:
    return replace(
        mount,
        host_path=str(point),
        container_path=str(PurePosixPath(mount.container_path, point.relative_to(target))),
        readonly=whole,
        recursive_readonly=whole,
    )
