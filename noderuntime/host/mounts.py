"""Mounts that outlive a call: tmpfs, overlay, unmount. mount(2), umount2(2), overlayfs.rst.

An overlay's options must fit in one page (4096 bytes). Long lists name their layers by descriptor
(``/proc/self/fd/N``), which also takes every character that overlayfs would read as its own.
"""

from __future__ import annotations

import errno
import os
import re
import shutil
from collections.abc import Iterable, Sequence
from contextlib import ExitStack
from pathlib import Path
from typing import Final

from noderuntime.errors import FailedPreconditionError, HostError, InvalidArgumentError
from noderuntime.host import mountinfo, syscalls
from noderuntime.host.own_mounts import misplaced
from noderuntime.host.ports import MountFeatures, Owners
from noderuntime.host.threads import in_own_thread, in_pool

MAX_LOWERS: Final = 127
_OPTIONS_LIMIT_BYTES: Final = 4000  # the page, less room for what the kernel adds
_SPECIAL: Final = frozenset(":,\\")
_IDMAPPED_LOWERS: Final = (5, 19)  # the kernel whose overlay takes them
_MAX_USERNS: Final = Path("/proc/sys/user/max_user_namespaces")
_INDEX_PARAMETER: Final = Path("/sys/module/overlay/parameters/index")


class KernelMounts:
    """The ``Mounts`` of ports.py."""

    def features(self) -> MountFeatures:
        """Ask the kernel; cheap."""
        return MountFeatures(
            recursive_readonly=syscalls.can_set_mount_attributes(), idmapped=_can_idmap()
        )

    async def tmpfs(self, target: Path, *, size_bytes: int, mode: int) -> None:
        """Mount a tmpfs, once: where one is mounted already it stays. Raises HostError."""
        await in_pool(_tmpfs, target, size_bytes, mode)

    async def overlay(
        self,
        lowers: Sequence[Path],
        upper: Path,
        work: Path,
        target: Path,
        owners: Owners | None = None,
        *,
        context: str = "",
    ) -> None:
        """Mount an overlay on ``target``, which is made if missing. Raises HostError.

        It is ``volatile`` where the kernel can (5.10): what a container writes into its own root
        lives no longer than the container, and an unmount would else flush the node's whole disk.
        """
        if owners is None:
            await in_pool(_overlay, tuple(lowers), upper, work, target, context)
        else:
            await in_pool(_mapped_overlay, tuple(lowers), upper, work, target, owners, context)

    async def clone(
        self, source: Path, target: Path, userns: Path | None, *, peer: bool = False
    ) -> tuple[Path, ...]:
        """Mount a tree a second time. Raises HostError."""
        return await in_pool(_clone, source, target, userns, peer=peer)

    async def set_bindable(self, targets: Sequence[Path], *, bindable: bool) -> None:
        """Let mounts be copied with what they are below of, or not. Raises HostError.

        mount_namespaces(7) "MS_UNBINDABLE mounts".
        """
        await in_pool(
            _set_bindable, targets, syscalls.MS_PRIVATE if bindable else syscalls.MS_UNBINDABLE
        )

    async def require_own(self, pid: int, declared: Iterable[str]) -> None:
        """Refuse what is not the OCI runtime's on /dev or below /proc (own_mounts.py)."""
        table = await in_pool(Path(f"/proc/{pid}/mountinfo").read_bytes)
        if path := misplaced(table, declared):
            raise FailedPreconditionError(
                f"a volume is mounted on {path}, where the container has what confines it; a link "
                "of the image or of a volume leads there"
            )

    async def leave_out(self, pid: int, folders: Sequence[Path]) -> None:
        """Unmount what is below folders in a process' mount namespace. Raises HostError."""
        await in_own_thread(_leave_out, pid, folders)

    async def unmount(self, target: Path) -> None:
        """Unmount at and below; lazily where something is busy. Raises HostError."""
        await in_pool(_unmount, target)


def _tmpfs(target: Path, size_bytes: int, mode: int) -> None:
    target.mkdir(parents=True, exist_ok=True)
    if mountinfo.is_mount_point(target):
        return
    flags = syscalls.MS_NOSUID | syscalls.MS_NODEV | syscalls.MS_NOEXEC
    syscalls.mount("tmpfs", target, "tmpfs", flags, f"mode={mode:o},size={size_bytes}")


def _overlay(lowers: tuple[Path, ...], upper: Path, work: Path, target: Path, context: str) -> None:
    if not 1 <= len(lowers) <= MAX_LOWERS:
        raise InvalidArgumentError(
            f"an overlay takes 1 to {MAX_LOWERS} layers and was given {len(lowers)}"
        )
    for directory in (upper, work, target):
        directory.mkdir(parents=True, exist_ok=True)
    # A volatile overlay leaves a mark here, and the kernel refuses the folder while it is there.
    shutil.rmtree(work / "work" / "incompat", ignore_errors=True)
    extra = "index=off," if _INDEX_PARAMETER.exists() else ""
    if context:
        extra += f'context="{context}",'  # quoted, as a level may hold commas
    with ExitStack() as stack:
        layers = _layer_options(lowers, upper, work, stack)
        try:
            syscalls.mount("overlay", target, "overlay", options=f"{extra}volatile,{layers}")
        except HostError as error:
            if error.errno != errno.EINVAL:
                raise
            syscalls.mount("overlay", target, "overlay", options=f"{extra}{layers}")


def _mapped_overlay(
    lowers: tuple[Path, ...],
    upper: Path,
    work: Path,
    target: Path,
    owners: Owners,
    context: str,
) -> None:
    """Mount an overlay on lowers whose owners are mapped; these mounts go again, it keeps its own.

    They are attached for that moment, as kernels before 6.15 take no others. Beside ``target``.
    """
    folder = target.with_name(target.name + ".lowers")
    mapped = tuple(folder / str(number) for number in range(len(lowers)))
    try:
        for source, point in zip(lowers, mapped, strict=True):
            point.mkdir(parents=True, exist_ok=True)
            syscalls.clone_mount(source, point, owners.userns, recursive=False)
        _give(upper, owners)
        _overlay(mapped, upper, work, target, context)
    finally:
        _unmount(folder)
    shutil.rmtree(folder)


def _give(upper: Path, owners: Owners) -> None:
    """Map the owner of the folder, unless that was done: it is the container's "/"."""
    found = upper.stat()
    uid, gid = found.st_uid, found.st_gid
    if uid < owners.uid and gid < owners.gid:
        os.chown(upper, owners.uid + uid, owners.gid + gid)


def _clone(source: Path, target: Path, userns: Path | None, *, peer: bool) -> tuple[Path, ...]:
    if source.is_dir():
        target.mkdir(mode=0o711, parents=True, exist_ok=True)
    else:
        target.parent.mkdir(mode=0o711, parents=True, exist_ok=True)
        target.touch(mode=0o600)
    if userns is None:
        _bind(source, target, peer=peer)
    else:
        syscalls.clone_mount(source, target, userns, recursive=True)
    where = target.resolve()
    found = {e.target for e in mountinfo.mounts() if where in e.target.parents}
    below = sorted(found, key=lambda path: len(path.parts))
    return tuple(target / path.relative_to(where) for path in below)


def _bind(source: Path, target: Path, *, peer: bool) -> None:
    """Bind a tree, as kernels before 5.12 can too. A slave: what becomes of it is no business of ``source``."""
    syscalls.mount(str(source), target, flags=syscalls.MS_BIND | syscalls.MS_REC)
    if not peer:
        syscalls.mount("none", target, flags=syscalls.MS_SLAVE | syscalls.MS_REC)


def _can_idmap() -> bool:
    release = re.match(r"(\d+)\.(\d+)", os.uname().release)
    is_new = release is not None and (int(release[1]), int(release[2])) >= _IDMAPPED_LOWERS
    try:
        return is_new and int(_MAX_USERNS.read_text()) > 0
    except (OSError, ValueError):
        return False  # a kernel without user namespaces


def _layer_options(lowers: Sequence[Path], upper: Path, work: Path, stack: ExitStack) -> str:
    names = [*map(str, lowers), str(upper), str(work)]
    total = sum(len(os.fsencode(name)) + 1 for name in names)
    if total > _OPTIONS_LIMIT_BYTES or any(_SPECIAL & set(name) for name in names):
        names = [_by_descriptor(Path(name), stack) for name in names]
    return f"lowerdir={':'.join(names[:-2])},upperdir={names[-2]},workdir={names[-1]}"


def _by_descriptor(path: Path, stack: ExitStack) -> str:
    try:
        descriptor = os.open(path, os.O_PATH | os.O_DIRECTORY | os.O_CLOEXEC)
    except OSError as error:
        raise syscalls.host_error(f"open of the layer {path}", error.errno or 0) from error
    stack.callback(os.close, descriptor)
    return f"/proc/self/fd/{descriptor}"


def _part(target: Path) -> None:
    try:
        syscalls.mount("none", target, flags=syscalls.MS_SLAVE)
    except HostError as error:
        if error.errno not in {errno.EINVAL, errno.ENOENT}:  # hidden below another, or gone
            raise


def _set_bindable(targets: Sequence[Path], flags: int) -> None:
    for target in targets:
        try:
            syscalls.mount("none", target, flags=flags)
        except HostError as error:
            if error.errno not in {errno.EINVAL, errno.ENOENT}:  # it is no mount, or not there
                raise


def _leave_out(pid: int, folders: Sequence[Path]) -> None:
    """Act on the paths that the kernel lists, which have no links in them."""
    entries = mountinfo.parse(Path(f"/proc/{pid}/mountinfo").read_bytes())
    below = [e.target for e in entries if any(f in e.target.parents for f in folders)]
    if not below:
        return
    syscalls.unshare(syscalls.CLONE_FS)
    syscalls.setns(Path(f"/proc/{pid}/ns/mnt"), syscalls.CLONE_NEWNS)
    for path in sorted(below, key=lambda path: len(path.parts), reverse=True):
        try:
            syscalls.umount(path, syscalls.MNT_DETACH)
        except HostError as error:
            if error.errno not in {errno.EINVAL, errno.ENOENT}:  # gone with what was above it
                raise


def _unmount(target: Path) -> None:
    # Only the parent is resolved: the last component may be a link that a container left here.
    where = target.parent.resolve() / target.name
    if not os.path.lexists(where):
        return  # with a folder that goes, the kernel takes off what was mounted at and below it
    found = mountinfo.mounts_at(where)
    for entry in found:
        if entry.shared:  # or the node would lose what is mounted below a volume that is its peer
            _part(entry.target)
    here = [entry.target for entry in found]
    for path in sorted(here, key=lambda path: len(path.parts), reverse=True):
        try:
            syscalls.umount(path)
        except HostError as error:
            if error.errno in {errno.EINVAL, errno.ENOENT}:
                continue  # gone together with what was above it
            if error.errno != errno.EBUSY:
                raise
            syscalls.umount(path, syscalls.MNT_DETACH)
