"""A layer's tar stream becomes a folder that overlay takes as a lower layer.

Runs in a process of its own whose root is that folder (see ``jail``), so the kernel confines every
name; the checks here are there to say what is wrong and to keep overlay's own marks out of an
image's hands. What always holds: no name goes through a symbolic link, nothing is followed, a
folder's mode, owner and time are set last, and the layer's own whiteouts never hide the layer's
own entries.

Leading slashes are taken as "from the layer's root", as every runtime does: kaniko writes them.
Sources: image-spec layer.md (whiteouts), overlayfs.rst (0:0 devices, ``trusted.overlay.opaque``).
"""

# Names are bytes here, which pathlib does not take, and modes are the image's.
# ruff: noqa: PTH101, PTH102, PTH108, PTH211, S103

from __future__ import annotations

import errno
import os
import re
import stat
from dataclasses import dataclass, field
from typing import Final

from noderuntime.errors import ImageError
from noderuntime.images.tarstream import MAX_PATH, Entry, TarReader, refuse, shown

MAX_DEPTH: Final = 256
_ODD = re.compile(rb"(?:^|/)\.{0,2}(?:/|$)")
_WHITEOUT: Final = b".wh."
_OPAQUE: Final = b".wh..wh..opq"
_AUFS: Final = b".wh..wh."
_CREATE: Final = os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW | os.O_CLOEXEC
_OVERLAY_XATTR: Final = ("trusted.overlay.", "user.overlay.")
_XATTRS: Final = ("user.", "security.capability", "system.posix_acl_")
_LINK, _SYMLINK, _CHAR, _BLOCK, _FOLDER, _FIFO, _FILE = b"1234560"
_NODES: Final = {_CHAR: stat.S_IFCHR, _BLOCK: stat.S_IFBLK, _FIFO: stat.S_IFIFO}


@dataclass(slots=True)
class Unpacked:
    """What came out. ``implied`` are folders that the archive needs but does not describe."""

    size_bytes: int = 0
    inodes: int = 0
    implied: list[bytes] = field(default_factory=list[bytes])


class Unpacker:
    """Unpacks one archive into the current folder, which is empty and the process's root."""

    def __init__(self, reader: TarReader, *, is_base: bool, max_entries: int) -> None:
        """``is_base``: nothing lies below, so whiteouts hide nothing and are left out."""
        self._reader = reader
        self._is_base = is_base
        self._max_entries = max_entries
        self._folders: dict[bytes, Entry | None] = {b"": None}
        self._whiteouts: dict[bytes, list[bytes]] = {}
        self._opaque: set[bytes] = set()
        self._result = Unpacked(inodes=1, size_bytes=4096)

    def run(self) -> Unpacked:
        """Unpack everything; raises ImageError that names the entry."""
        os.umask(0)
        count = 0
        while (entry := self._reader.entry()) is not None:
            count += 1
            if count > self._max_entries:
                raise ImageError(f"the layer has more than {self._max_entries} entries")
            try:
                self._add(entry)
            except OSError as error:
                _explain(entry.name, error)
        self._reader.drain()
        self._finish()
        return self._result

    def _add(self, entry: Entry) -> None:
        name = clean(entry.name, entry.name)
        if not name:
            if entry.kind != _FOLDER:
                refuse(entry.name, "takes the place of the root folder")
            self._folders[b""] = entry
            return
        parent, _, base = name.rpartition(b"/")
        if parent not in self._folders:
            self._make_parents(parent, entry)
        if base.startswith(_WHITEOUT):
            self._add_whiteout(parent, base, entry)
        elif entry.kind == _FILE:
            self._add_file(name, entry)
        elif entry.kind == _FOLDER:
            self._add_folder(name, entry)
        elif entry.kind == _SYMLINK:
            self._add_symlink(name, entry)
        elif entry.kind == _LINK:
            self._add_link(name, entry)
        elif entry.kind in _NODES:
            self._add_node(name, entry)
        else:
            refuse(entry.name, f"is of a kind that no layer has: {shown(bytes((entry.kind,)))}")

    def _add_file(self, name: bytes, entry: Entry) -> None:
        mode = entry.mode & 0o7777
        is_root = entry.uid == 0 and entry.gid == 0
        try:
            fd = os.open(name, _CREATE, mode)
        except FileExistsError:
            self._make_room(name, entry)
            fd = os.open(name, _CREATE, mode)
        try:
            if entry.size:
                self._reader.copy_to(fd)
            if not is_root:
                os.fchown(fd, entry.uid, entry.gid)
                if mode & 0o6000:  # chown takes these bits away, root's too
                    os.fchmod(fd, mode)
            if entry.xattrs:
                _set_xattrs(fd, entry)
            os.utime(fd, ns=(entry.mtime_ns, entry.mtime_ns))
        finally:
            os.close(fd)
        self._result.inodes += 1
        self._result.size_bytes += entry.size + 4095 & ~4095

    def _add_folder(self, name: bytes, entry: Entry) -> None:
        if name not in self._folders:
            try:
                os.mkdir(name, 0o700)
            except FileExistsError:
                was_whiteout = self._make_room(name, entry)
                os.mkdir(name, 0o700)
                if was_whiteout:
                    self._opaque.add(name)
            self._result.inodes += 1
            self._result.size_bytes += 4096
        self._folders[name] = entry

    def _add_symlink(self, name: bytes, entry: Entry) -> None:
        if not 0 < len(entry.link) <= MAX_PATH or b"\0" in entry.link:
            refuse(entry.name, "is a symbolic link to nothing or to too long a name")
        try:
            os.symlink(entry.link, name)
        except FileExistsError:
            self._make_room(name, entry)
            os.symlink(entry.link, name)
        self._describe(name, entry, chmod=False)

    def _add_link(self, name: bytes, entry: Entry) -> None:
        target = clean(entry.link, entry.name)
        if target.rpartition(b"/")[0] not in self._folders or not target:
            refuse(entry.name, f"is a hard link to {shown(entry.link)}, which is not in the layer")
        try:
            found = os.lstat(target)
        except FileNotFoundError:
            refuse(entry.name, f"is a hard link to {shown(entry.link)}, which is not in the layer")
        if stat.S_ISDIR(found.st_mode) or _is_whiteout(found):
            refuse(entry.name, f"is a hard link to {shown(entry.link)}, which is no file")
        if target == name:
            return
        try:
            os.link(target, name, follow_symlinks=False)
        except FileExistsError:
            self._make_room(name, entry)
            os.link(target, name, follow_symlinks=False)

    def _add_node(self, name: bytes, entry: Entry) -> None:
        kind = _NODES[entry.kind]
        if not (0 <= entry.major < 1 << 12 and 0 <= entry.minor < 1 << 20):
            refuse(entry.name, f"is a device {entry.major}:{entry.minor}, which no kernel has")
        if entry.kind == _CHAR and entry.major == entry.minor == 0:
            refuse(entry.name, "is the device 0:0, which overlay takes as a whiteout")
        device = 0 if entry.kind == _FIFO else os.makedev(entry.major, entry.minor)
        mode = kind | (entry.mode & 0o7777)
        try:
            os.mknod(name, mode, device)
        except FileExistsError:
            self._make_room(name, entry)
            os.mknod(name, mode, device)
        self._describe(name, entry, chmod=True)

    def _describe(self, name: bytes, entry: Entry, *, chmod: bool) -> None:
        """Set owner, mode, attributes and time of what is neither file nor folder."""
        os.chown(name, entry.uid, entry.gid, follow_symlinks=False)
        if chmod:
            os.chmod(name, entry.mode & 0o7777)
        _set_xattrs(name, entry)
        os.utime(name, ns=(entry.mtime_ns, entry.mtime_ns), follow_symlinks=False)
        self._result.inodes += 1

    def _add_whiteout(self, folder: bytes, base: bytes, entry: Entry) -> None:
        if base == _OPAQUE:
            self._opaque.add(folder)
            return
        if base.startswith(_AUFS):
            return  # aufs' own bookkeeping
        hidden = base.removeprefix(_WHITEOUT)
        if hidden in {b"", b".", b".."}:
            refuse(entry.name, "is a whiteout that hides nothing")
        name = folder + b"/" + hidden if folder else hidden
        if name in self._folders:
            self._opaque.add(name)  # the layer's own folder stays, what is below it goes
        elif not self._is_base:
            try:
                os.mknod(name, stat.S_IFCHR, 0)
            except FileExistsError:
                return  # the layer's own entry hides the one below
            self._whiteouts.setdefault(folder, []).append(name)
            self._result.inodes += 1

    def _make_parents(self, path: bytes, entry: Entry) -> None:
        """Make the folders that no entry has described, and see that none is a symbolic link."""
        parts = path.split(b"/")
        if len(parts) > MAX_DEPTH:
            refuse(entry.name, f"is more than {MAX_DEPTH} folders deep")
        for depth in range(1, len(parts) + 1):
            folder = b"/".join(parts[:depth])
            if folder in self._folders:
                continue
            try:
                os.mkdir(folder, 0o700)
            except FileExistsError:
                if not _is_whiteout(os.lstat(folder)):
                    refuse(entry.name, f"goes through {shown(folder)}, which is no folder")
                os.unlink(folder)
                os.mkdir(folder, 0o700)
                self._opaque.add(folder)
            self._folders[folder] = None
            self._result.inodes += 1
            self._result.size_bytes += 4096

    def _make_room(self, name: bytes, entry: Entry) -> bool:
        """Remove what an earlier entry of the same name made; tell whether it was a whiteout."""
        if name in self._folders:
            refuse(entry.name, "takes the place of a folder of the same layer")
        was_whiteout = _is_whiteout(os.lstat(name))
        os.unlink(name)
        self._result.inodes -= 1
        return was_whiteout

    def _finish(self) -> None:
        """Mark opaque folders, then give every folder its attributes."""
        for folder in self._opaque:
            for name in self._whiteouts.get(folder, ()):
                # In an opaque folder nothing is left to hide, and overlay would list the device.
                if _is_whiteout_at(name):
                    os.unlink(name)
                    self._result.inodes -= 1
            if not self._is_base:
                os.setxattr(folder or b".", "trusted.overlay.opaque", b"y")
        for name, entry in self._folders.items():
            path = name or b"."
            if entry is None:
                os.chmod(path, 0o755)
                os.utime(path, ns=(0, 0))  # the same image is the same tree on every node
                self._result.implied.append(path)
                continue
            try:
                os.chown(path, entry.uid, entry.gid)
                os.chmod(path, entry.mode & 0o7777)
                _set_xattrs(path, entry)
                os.utime(path, ns=(entry.mtime_ns, entry.mtime_ns))
            except OSError as error:
                _explain(entry.name, error)


def clean(name: bytes, shown_as: bytes) -> bytes:
    """Return ``name`` relative to the layer's root, b"" for the root; refuses ``..``."""
    if name.startswith(b"./"):
        name = name[2:]
    name = name.strip(b"/")
    if len(name) > MAX_PATH:
        refuse(shown_as, f"has a name of more than {MAX_PATH} bytes")
    if _ODD.search(name):
        parts = [part for part in name.split(b"/") if part not in {b"", b"."}]
        if b".." in parts:
            refuse(shown_as, "leaves the layer with ..")
        name = b"/".join(parts)
    return name


def _is_whiteout(found: os.stat_result) -> bool:
    return stat.S_ISCHR(found.st_mode) and found.st_rdev == 0


def _is_whiteout_at(name: bytes) -> bool:
    try:
        return _is_whiteout(os.lstat(name))
    except FileNotFoundError:
        return False


def _set_xattrs(target: int | bytes, entry: Entry) -> None:
    """Set what belongs to the file: not another host's labels, and never overlay's marks."""
    for key, value in entry.xattrs.items():
        if key.startswith(_OVERLAY_XATTR):
            refuse(entry.name, f"has the attribute {shown(key.encode())}, which is overlay's own")
        if not key.startswith(_XATTRS) or "\0" in key:
            continue
        if key.startswith("user.") and entry.kind not in {_FILE, _FOLDER}:
            continue  # the kernel keeps these for files and folders only
        if isinstance(target, int):
            os.setxattr(target, key, value)
        else:
            os.setxattr(target, key, value, follow_symlinks=False)


def _explain(name: bytes, error: OSError) -> None:
    if error.errno in {errno.ENOSPC, errno.EDQUOT}:
        raise ImageError(
            "no space left on the node's disk for the image: free some, or give images a larger one"
        ) from error
    raise ImageError(f"entry {shown(name)} of the layer: {error.strerror or error}") from error
