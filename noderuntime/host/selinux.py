"""SELinux by selinuxfs and extended attributes; no library.

Relabelling is a way to hand a file of the node to a container, so it goes by descriptors: a folder is
opened once, and what is in it by its name below that descriptor, never through a symbolic link. What
is swapped meanwhile is either labelled where it is, inside the volume, or not at all.
Source: selinux(8), ``Documentation/admin-guide/LSM/SELinux.rst``, xattr(7), open(2) "O_PATH".
"""

from __future__ import annotations

import errno
import os
import stat
from collections.abc import Callable
from pathlib import Path
from typing import Final

from noderuntime.errors import InvalidArgumentError
from noderuntime.host.syscalls import host_error
from noderuntime.host.threads import in_pool

_SELINUXFS: Final = Path("/sys/fs/selinux")
_CONFIG: Final = Path("/etc/selinux")
_ATTRIBUTE: Final = "security.selinux"
_NO_LABELS: Final = frozenset({errno.EOPNOTSUPP, errno.EROFS})
_FLAGS: Final = os.O_PATH | os.O_NOFOLLOW | os.O_CLOEXEC
_DEEPEST: Final = 512  # folders in one another; each is a descriptor
# A node whose /etc has a container's label does not boot.
_NEVER: Final = frozenset(
    "/ /bin /boot /dev /etc /etc/kubernetes /etc/pki /home /lib /lib64 /media /mnt /opt /proc /root /run /sbin "
    "/srv /sys /tmp /usr /usr/bin /usr/lib /usr/lib64 /usr/local /usr/sbin /usr/share /var /var/lib "
    "/var/lib/kubelet /var/log /var/run /var/tmp".split()
)


class KernelSelinux:
    """The ``Selinux`` of lsm.py. The folders are arguments for tests."""

    def __init__(self, selinuxfs: Path = _SELINUXFS, config: Path = _CONFIG) -> None:
        """Look at nothing yet."""
        self._selinuxfs = selinuxfs
        self._config = config

    def is_enabled(self) -> bool:
        """Tell whether a policy is loaded: only then selinuxfs has this file."""
        return (self._selinuxfs / "enforce").exists()

    def contexts(self) -> tuple[str, str]:
        """Read ``lxc_contexts`` of the policy, where container engines look (lxc_contexts(5))."""
        policy = _values(self._config / "config").get("SELINUXTYPE", "")
        if not policy or "/" in policy:
            return "", ""
        found = _values(self._config / policy / "contexts" / "lxc_contexts")
        return found.get("process", ""), found.get("file", "")

    def is_valid(self, context: str) -> bool:
        """Write it into selinuxfs, which checks it."""
        try:
            with os.fdopen(
                os.open(self._selinuxfs / "context", os.O_RDWR | os.O_CLOEXEC), "wb"
            ) as f:
                f.write(context.encode() + b"\0")
        except OSError:
            return False
        return True

    async def label(self, path: Path, context: str) -> None:
        """Label one. Raises HostError."""
        await in_pool(_told, _label_path, path, context)

    async def relabel(self, source: Path, context: str) -> None:
        """Label a tree. Raises InvalidArgumentError, HostError."""
        await in_pool(_told, _relabel, source, context)


def _told(what: Callable[[Path, str], None], path: Path, context: str) -> None:
    try:
        what(path, context)
    except OSError as error:
        where = error.filename or path
        raise host_error(f"cannot label {where}", error.errno or 0) from error


def _values(path: Path) -> dict[str, str]:
    """Read ``NAME = "VALUE"`` lines; no file has none."""
    try:
        lines = path.read_text(errors="replace").splitlines()
    except OSError:
        return {}
    pairs = (line.partition("=") for line in lines if not line.lstrip().startswith("#"))
    return {name.strip(): value.strip().strip('"') for name, equals, value in pairs if equals}


def _label_path(path: Path, context: str) -> None:
    descriptor = _open(path, None)
    try:
        _label(descriptor, context, path)
    finally:
        os.close(descriptor)


def _relabel(source: Path, context: str) -> None:
    descriptor = os.open(source, os.O_PATH | os.O_CLOEXEC)
    try:
        real = os.fspath(Path(f"/proc/self/fd/{descriptor}").readlink())
        if real in _NEVER:
            raise InvalidArgumentError(
                f"{real} cannot be relabelled for a container, as the node itself needs it; mount "
                "another folder, or without relabelling"
            )
        _tree(descriptor, context, Path(real), os.fstat(descriptor).st_dev, 0)
    finally:
        os.close(descriptor)


def _tree(descriptor: int, context: str, path: Path, device: int, depth: int) -> None:
    if not _label(descriptor, context, path):
        return  # nothing below it can be labelled either
    if not stat.S_ISDIR(os.fstat(descriptor).st_mode):
        return
    if depth > _DEEPEST:
        raise InvalidArgumentError(f"{path} is too deep to be relabelled")
    folder = os.open(f"/proc/self/fd/{descriptor}", os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        with os.scandir(folder) as entries:
            names = [entry.name for entry in entries]
        for name in names:
            try:
                entry = _open(Path(name), folder)
            except FileNotFoundError:
                continue  # it has gone meanwhile
            try:
                if os.fstat(entry).st_dev == device:  # what is mounted in it is not the volume's
                    _tree(entry, context, path / name, device, depth + 1)
            finally:
                os.close(entry)
    finally:
        os.close(folder)


def _open(path: Path, folder: int | None) -> int:
    return os.open(path, _FLAGS, dir_fd=folder)


def _label(descriptor: int, context: str, path: Path) -> bool:
    """Label what is open; False where the file system keeps no labels. Raises HostError."""
    try:
        # By the descriptor: fsetxattr(2) takes none of O_PATH, and no link is followed this way.
        os.setxattr(f"/proc/self/fd/{descriptor}", _ATTRIBUTE, context.encode() + b"\0")
    except OSError as error:
        if error.errno in _NO_LABELS:
            return False
        raise host_error(f"cannot label {path} {context}", error.errno or 0) from error
    return True
