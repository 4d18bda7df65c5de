"""An OCI runtime's program on a read-only mount of our own, since crun and runc start twice on others.

A container's process could write to the program that starts it, through /proc/self/exe
(CVE-2019-5736). So crun looks where it was started from, and where that can be written it makes a
read-only mount of itself, takes that off again, and starts anew from it: half of the time of a
``start``, a ``delete`` or an ``exec``. From a mount that is read-only already it goes on at once.
The mount is in the node's mount namespace, which no container can reach. Source: crun
``src/libcrun/cloned_binary.c``, mount(2) "Remounting an existing mount".
"""

from __future__ import annotations

import hashlib
import logging
import os
from contextlib import suppress
from pathlib import Path
from typing import Final

from noderuntime.errors import HostError
from noderuntime.host import mountinfo, syscalls

_MODE: Final = 0o700

_log = logging.getLogger(__name__)


class ReadOnlyProgram:
    """One program below ``folder``, which is ours and private (see ``Namespaces.prepare``)."""

    def __init__(self, binary: Path, folder: Path) -> None:
        """Nothing is mounted before ``path`` is asked for."""
        self._binary = binary
        digest = hashlib.sha256(os.fsencode(binary)).hexdigest()
        self._folder = folder / f"{binary.name}-{digest[:12]}"
        self._file: tuple[int, ...] = ()
        self._path = binary

    def path(self) -> Path:
        """Return what to start: the mount of the program as it is now, else the program itself.

        An upgrade replaces the file: then the new one is mounted beside, as the old may be in use.
        """
        try:
            found = self._binary.stat()
        except OSError:
            return self._binary  # who starts it is told why it cannot
        file = (found.st_dev, found.st_ino, found.st_mtime_ns, found.st_size)
        if file != self._file:
            is_first = not self._file
            self._file = file
            self._path = self._mounted(found, "-".join(f"{part:x}" for part in file))
            if is_first:
                self._sweep()
        return self._path

    def _mounted(self, found: os.stat_result, name: str) -> Path:
        target = self._folder / name / self._binary.name
        try:
            target.parent.mkdir(mode=_MODE, parents=True, exist_ok=True)
            if not target.exists():
                target.touch(mode=_MODE)
            if not _is_mounted(target, found):
                _unmount(target)
                _mount(self._binary, target)
        except (OSError, HostError) as error:
            _log.warning(
                "the OCI runtime is started from where it is, which takes longer",
                extra={"program": str(self._binary), "error": str(error)},
            )
            return self._binary
        return target

    def _sweep(self) -> None:
        """Take away what an earlier run of ours mounted; what was started from it runs on."""
        for old in self._folder.glob(f"*/{self._binary.name}"):
            if old != self._path:
                with suppress(OSError, HostError):
                    _unmount(old)
                    old.unlink()
                    old.parent.rmdir()


def _is_mounted(target: Path, found: os.stat_result) -> bool:
    there = target.stat()
    is_same = (there.st_dev, there.st_ino) == (found.st_dev, found.st_ino)
    return is_same and bool(os.statvfs(target).f_flag & os.ST_RDONLY)


def _mount(binary: Path, target: Path) -> None:
    syscalls.mount(str(binary), target, flags=syscalls.MS_BIND)
    try:
        flags = syscalls.MS_BIND | syscalls.MS_REMOUNT | syscalls.MS_RDONLY
        syscalls.mount("none", target, flags=flags)
    except HostError:
        syscalls.umount(target, syscalls.MNT_DETACH)
        raise


def _unmount(target: Path) -> None:
    while mountinfo.is_mount_point(target):
        syscalls.umount(target, syscalls.MNT_DETACH)
