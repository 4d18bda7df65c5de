"""Which numbers a container's process runs as, from the passwd and group files of its image.

Those files are the image's, so hostile: they are opened without leaving the root (openat2(2) with
RESOLVE_IN_ROOT), only as regular files, only up to 1 MiB, and a line that is not well formed does
not exist. A number in the specification is a number, whatever user of that name the image declares.
Sources: passwd(5), group(5); image-spec config.md "User"; CVE-2016-3697 (a numeric user name),
CVE-2023-25173 (the primary group belongs to the supplementary ones).
"""

from __future__ import annotations

import os
import re
import stat
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Final

from noderuntime.errors import HostError, InvalidArgumentError
from noderuntime.host.syscalls import host_error, open_in_root
from noderuntime.policy.model import ResolvedUser

FILE_LIMIT_BYTES: Final = 1024 * 1024
MAX_ID: Final = 2**32 - 2  # 2^32-1 is "leave it as it is" to the kernel: root would stay root
_NUMBER: Final = re.compile(r"[0-9]{1,10}", re.ASCII)


def resolve_user(
    rootfs: Path,
    spec: str,
    *,
    group: int | None = None,
    supplemental: Sequence[int] = (),
    strict: bool = False,
) -> ResolvedUser:
    """Resolve ``user[:group]`` (names or numbers; "" is root) in ``rootfs``.

    ``group`` (runAsGroup) wins over the specification's. The groups that list the user's name are
    added to ``supplemental``, unless ``strict`` (supplementalGroupsPolicy). Raises
    InvalidArgumentError for a user or group that is not there or out of range, HostError when the
    image's file is not one that can be read.
    """
    user, _, group_spec = spec.partition(":")
    if ":" in group_spec:
        raise InvalidArgumentError(f"user {spec!r} is not of the form user[:group]")
    uid, name, gid = _user(rootfs, user)
    if group is not None:
        gid = _in_range(group, "group")
    elif group_spec:
        gid = _group(rootfs, group_spec)
    groups = [gid, *(_in_range(g, "supplemental group") for g in supplemental)]
    if name and not strict:
        groups += [g for _, g, members in _groups(rootfs) if name in members]
    return ResolvedUser(uid=uid, gid=gid, additional_gids=tuple(dict.fromkeys(groups)))


def _user(rootfs: Path, user: str) -> tuple[int, str, int]:
    """Return (uid, name or "", primary gid)."""
    if not user or _NUMBER.fullmatch(user):
        uid = _in_range(int(user or "0"), "user")
        found = next((entry for entry in _passwd(rootfs) if entry[1] == uid), None)
        return (uid, found[0], found[2]) if found else (uid, "", 0)
    for name, uid, gid in _passwd(rootfs):
        if name == user:
            return uid, name, gid
    raise InvalidArgumentError(
        f"user {user!r} is not in the image's /etc/passwd; name one that is, or set runAsUser"
    )


def _group(rootfs: Path, group: str) -> int:
    if _NUMBER.fullmatch(group):
        return _in_range(int(group), "group")
    for name, gid, _ in _groups(rootfs):
        if name == group:
            return gid
    raise InvalidArgumentError(
        f"group {group!r} is not in the image's /etc/group; name one that is, or set runAsGroup"
    )


def _in_range(number: int, what: str) -> int:
    if not 0 <= number <= MAX_ID:
        raise InvalidArgumentError(
            f"{what} {number} is out of range: 0 to {MAX_ID} are numbers of one"
        )
    return number


def _id(text: str) -> int | None:
    if not _NUMBER.fullmatch(text):
        return None
    number = int(text)
    return number if number <= MAX_ID else None


def _passwd(rootfs: Path) -> Iterator[tuple[str, int, int]]:
    for line in _lines(rootfs, "/etc/passwd"):
        fields = line.split(":")
        if len(fields) != 7 or not fields[0]:
            continue
        uid, gid = _id(fields[2]), _id(fields[3])
        if uid is not None and gid is not None:
            yield fields[0], uid, gid


def _groups(rootfs: Path) -> Iterator[tuple[str, int, frozenset[str]]]:
    for line in _lines(rootfs, "/etc/group"):
        fields = line.split(":")
        gid = _id(fields[2]) if len(fields) == 4 else None
        if fields[0] and gid is not None:
            yield fields[0], gid, frozenset(filter(None, fields[3].split(",")))


def _lines(rootfs: Path, path: str) -> Iterator[str]:
    yield from _read(rootfs, path).decode(errors="surrogateescape").split("\n")


def _read(rootfs: Path, path: str) -> bytes:
    try:
        # O_NONBLOCK: a FIFO in its place must not hang us; a device is refused below.
        descriptor = open_in_root(rootfs, path, os.O_RDONLY | os.O_NONBLOCK | os.O_NOCTTY)
    except FileNotFoundError as error:
        raise host_error(f"open of {rootfs}", error.errno or 0) from error
    except HostError as error:
        if error.errno in _ABSENT:
            return b""
        raise
    try:
        if not stat.S_ISREG(os.fstat(descriptor).st_mode):
            raise HostError(f"{path} of the image is not a regular file")
        with os.fdopen(descriptor, "rb", closefd=False) as file:
            data = file.read(FILE_LIMIT_BYTES + 1)
    finally:
        os.close(descriptor)
    if len(data) > FILE_LIMIT_BYTES:
        raise HostError(f"{path} of the image is larger than {FILE_LIMIT_BYTES} bytes")
    return data


_ABSENT: Final = frozenset({2, 20, 40})  # ENOENT, ENOTDIR, ELOOP
