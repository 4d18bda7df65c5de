"""The system calls that Python 3.11 does not have, through libc. Each raises HostError with errno.

The texts name the call and its object; callers add what they were doing. The numbers of openat2 and
pidfd_getfd are the same on every architecture (they are newer than the unified table).
"""

from __future__ import annotations

import ctypes
import errno
import os
import struct
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Final

from noderuntime.errors import HostError

CLONE_NEWNS: Final = 0x00020000
CLONE_NEWUTS: Final = 0x04000000
CLONE_NEWIPC: Final = 0x08000000
CLONE_NEWNET: Final = 0x40000000
CLONE_FS: Final = 0x00000200

MS_RDONLY: Final = 1
MS_NOSUID: Final = 2
MS_NODEV: Final = 4
MS_NOEXEC: Final = 8
MS_REMOUNT: Final = 32
MS_BIND: Final = 4096
MS_REC: Final = 16384
MS_UNBINDABLE: Final = 1 << 17
MS_PRIVATE: Final = 1 << 18
MS_SLAVE: Final = 1 << 19

MNT_DETACH: Final = 2
UMOUNT_NOFOLLOW: Final = 8

RESOLVE_NO_MAGICLINKS: Final = 0x02
RESOLVE_IN_ROOT: Final = 0x10

_NR_OPENAT2: Final = 437
_NR_SETRESUID: Final = {"x86_64": 117}.get(os.uname().machine, 147)
_NR_OPEN_TREE: Final = 428
_NR_MOVE_MOUNT: Final = 429
_NR_MOUNT_SETATTR: Final = 442
_AT_FDCWD: Final = -100
_AT_EMPTY_PATH: Final = 0x1000
_AT_RECURSIVE: Final = 0x8000
_OPEN_TREE_CLONE: Final = 1
_MOVE_MOUNT_F_EMPTY_PATH: Final = 4
_MOUNT_ATTR_IDMAP: Final = 0x00100000

_libc = ctypes.CDLL(None, use_errno=True)


class _OpenHow(ctypes.Structure):
    _fields_ = (
        ("flags", ctypes.c_uint64),
        ("mode", ctypes.c_uint64),
        ("resolve", ctypes.c_uint64),
    )


def host_error(what: str, number: int) -> HostError:
    """Return the error for a call that failed: ``what``, then the kernel's own words."""
    return HostError(f"{what}: {os.strerror(number).lower()}", errno=number)


def _check(result: int, what: str) -> None:
    if result < 0:
        raise host_error(what, ctypes.get_errno())


def unshare(flags: int) -> None:
    """Give the calling thread namespaces of its own; see its man page (2)."""
    _check(_libc.unshare(flags), f"unshare of namespaces {flags:#x}")


def setns(path: Path, kind: int) -> None:
    """Move the calling thread into the namespace at ``path``; see its man page (2)."""
    try:
        descriptor = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
    except OSError as error:
        raise host_error(f"open of namespace {path}", error.errno or 0) from error
    try:
        _check(_libc.setns(descriptor, kind), f"entering namespace {path}")
    finally:
        os.close(descriptor)


@contextmanager
def effective_user(uid: int) -> Iterator[None]:
    """Let the calling thread, and no other, be ``uid`` for a moment. setresuid(2).

    The C library would change every thread of the process.
    """
    unchanged = ctypes.c_uint(2**32 - 1)

    def become(user: int) -> None:
        number = ctypes.c_long(_NR_SETRESUID)
        result = _libc.syscall(number, unchanged, ctypes.c_uint(user), unchanged)
        _check(result, f"becoming user {user}")

    before = os.geteuid()
    become(uid)
    try:
        yield
    finally:
        become(before)


def mount(source: str, target: Path, kind: str = "", flags: int = 0, options: str = "") -> None:
    """Mount ``source`` on ``target``; see its man page (2)."""
    result = _libc.mount(
        os.fsencode(source),
        os.fsencode(target),
        os.fsencode(kind) if kind else None,
        ctypes.c_ulong(flags),
        os.fsencode(options) if options else None,
    )
    _check(result, f"mount of {kind or source} on {target}")


def clone_mount(source: Path, target: Path, userns: Path | None, *, recursive: bool) -> None:
    """Mount ``source`` on ``target`` as well, its owners mapped by the user namespace ``userns``.

    The copy is a slave: to unmount what is below it must never unmount the same below ``source``.
    open_tree(2), mount_setattr(2) "MOUNT_ATTR_IDMAP", move_mount(2).
    """
    flags = _OPEN_TREE_CLONE | os.O_CLOEXEC | (_AT_RECURSIVE if recursive else 0)
    tree = int(
        _libc.syscall(
            ctypes.c_long(_NR_OPEN_TREE),
            ctypes.c_int(_AT_FDCWD),
            os.fsencode(source),
            ctypes.c_uint(flags),
        )
    )
    _check(tree, f"open of the mount {source}")
    try:
        _set_attributes(tree, source, userns, recursive=recursive)
        moved = _libc.syscall(
            ctypes.c_long(_NR_MOVE_MOUNT),
            ctypes.c_int(tree),
            b"",
            ctypes.c_int(_AT_FDCWD),
            os.fsencode(target),
            ctypes.c_uint(_MOVE_MOUNT_F_EMPTY_PATH),
        )
        _check(moved, f"mount of {source} on {target}")
    finally:
        os.close(tree)


def _set_attributes(tree: int, source: Path, userns: Path | None, *, recursive: bool) -> None:
    namespace = -1 if userns is None else os.open(userns, os.O_RDONLY | os.O_CLOEXEC)
    mapped = 0 if userns is None else _MOUNT_ATTR_IDMAP
    try:
        attributes = struct.pack("<4Q", mapped, 0, MS_SLAVE, max(namespace, 0))
        result = _libc.syscall(
            ctypes.c_long(_NR_MOUNT_SETATTR),
            ctypes.c_int(tree),
            b"",
            ctypes.c_uint(_AT_EMPTY_PATH | (_AT_RECURSIVE if recursive else 0)),
            ctypes.create_string_buffer(attributes, len(attributes)),
            ctypes.c_size_t(len(attributes)),
        )
        what = "mapping the owners of" if mapped else "setting the attributes of"
        _check(result, f"{what} {source} (can its file system be mapped?)")
    finally:
        if namespace >= 0:
            os.close(namespace)


def can_set_mount_attributes() -> bool:
    """Tell whether the kernel has mount_setattr(2) (5.12), by a call that it must refuse."""
    none = ctypes.c_void_p(None)
    _libc.syscall(
        ctypes.c_long(_NR_MOUNT_SETATTR), ctypes.c_int(-1), b"", ctypes.c_uint(0), none, none
    )
    return ctypes.get_errno() != errno.ENOSYS


def umount(target: Path, flags: int = 0) -> None:
    """Unmount; a symbolic link in the last component is never followed. umount2(2)."""
    result = _libc.umount2(os.fsencode(target), flags | UMOUNT_NOFOLLOW)
    _check(result, f"unmount of {target}")


def open_in_root(root: Path, path: str, flags: int) -> int:
    """Open ``path`` as if ``root`` were "/": links and ".." cannot leave it. openat2(2)."""
    how = _OpenHow(flags | os.O_CLOEXEC, 0, RESOLVE_IN_ROOT | RESOLVE_NO_MAGICLINKS)
    directory = os.open(root, os.O_PATH | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        descriptor = int(
            _libc.syscall(
                ctypes.c_long(_NR_OPENAT2),
                ctypes.c_int(directory),
                os.fsencode(path),
                ctypes.byref(how),
                ctypes.c_size_t(ctypes.sizeof(how)),
            )
        )
        _check(descriptor, f"open of {path} in {root}")
    finally:
        os.close(directory)
    return descriptor
