"""Layer folders: ``layers/CHAIN/{diff,done}``, whole or not there.

A layer is made beside its place as ``.making-*``, with its marker; everything is synced (one
syncfs for all layers of a pull), then renamed. So a folder under its name is complete, after a
power cut too. CHAIN is the first 32 digits of the chain ID (128 bits: short, for overlay's mount
options are); the marker holds the whole one and is compared. Source: image-spec config.md, "Layer
ChainID".
"""

from __future__ import annotations

import ctypes
import hashlib
import json
import os
import shutil
import stat
import subprocess
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Final

from noderuntime.errors import HostError, StateError
from noderuntime.images.content import PRIVATE, sync_folder

MARKER_MODE: Final = 0o600
_NAME: Final = 32
_OPEN: Final = os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC


@dataclass(frozen=True, slots=True, kw_only=True)
class LayerInfo:
    """One layer that is there. ``size_bytes`` is what it takes on disk."""

    chain: str
    size_bytes: int
    inodes: int


def chain_ids(diff_ids: Sequence[str]) -> tuple[str, ...]:
    """Return the chain ID at each layer, base first."""
    chains: list[str] = []
    for diff_id in diff_ids:
        text = f"{chains[-1]} {diff_id}" if chains else diff_id
        chains.append(f"sha256:{hashlib.sha256(text.encode()).hexdigest()}" if chains else text)
    return tuple(chains)


class Layers:
    """The layers folder of one store."""

    def __init__(self, root: Path) -> None:
        """Take ``root`` (the store's folder); nothing is made until ``create``."""
        self.root = root / "layers"

    def create(self) -> None:
        """Make the folder. Overlay goes to layers as the mounter: no host's user passes here."""
        self.root.mkdir(mode=PRIVATE, exist_ok=True)

    def folder(self, chain: str) -> Path:
        """Return the folder of a layer, there or not."""
        return self.root / chain.removeprefix("sha256:")[:_NAME]

    def diff(self, chain: str) -> Path:
        """Return the folder that overlay takes."""
        return self.folder(chain) / "diff"

    def recover(self, needed: frozenset[str] | None = frozenset()) -> dict[str, LayerInfo]:
        """Remove what was cut off half-way; return what is whole.

        A layer in its place whose marker is damaged stays where it is in ``needed``, the chains that
        containers stand on; None is that nobody knows which.
        """
        found: dict[str, LayerInfo] = {}
        kept = {self.folder(chain) for chain in needed or ()}
        for path in self.root.iterdir():
            is_placed = not path.name.startswith(".")
            info = _read_marker(path) if is_placed else None
            if info is not None and self.folder(info.chain) == path:
                found[info.chain] = info
            elif not is_placed or (needed is not None and path not in kept):
                remove_tree(path)
        return found

    def begin(self, chain: str, run: str) -> Path:
        """Make the empty folder in which the worker ``run`` unpacks the layer; return it."""
        path = self.root / f".making-{self.folder(chain).name}-{run}"
        path.mkdir(mode=PRIVATE)
        (path / "diff").mkdir(mode=0o755)
        return path

    def drop_making(self, run: str) -> None:
        """Remove what the ended worker ``run`` was making."""
        for path in self.root.glob(f".making-*-{run}"):
            remove_tree(path)

    def complete(self, path: Path, info: LayerInfo) -> None:
        """Write the marker of an unpacked layer; ``publish`` comes after."""
        (path / "done").write_text(json.dumps(asdict(info)))
        (path / "done").chmod(MARKER_MODE)

    def publish(self, made: Sequence[tuple[Path, LayerInfo]]) -> None:
        """Make complete layers durable, and then put them at their places."""
        sync_file_system(self.root)
        for path, info in made:
            # There is one that the store does not know of when an earlier worker was killed between
            # its renaming and its telling.
            unknown = self.put_aside(info.chain)
            path.rename(self.folder(info.chain))
            if unknown is not None:
                remove_tree(unknown)
        sync_folder(self.root)

    def put_aside(self, chain: str) -> Path | None:
        """Take a layer away as one step; ``remove_tree`` what is returned."""
        aside = self.root / f".gone-{self.folder(chain).name}-{os.urandom(4).hex()}"
        try:
            self.folder(chain).rename(aside)
        except FileNotFoundError:
            return None
        return aside


def describe_implied(diff: Path, names: Sequence[bytes], lowers: Sequence[Path]) -> None:
    """Give the folders that no entry described the attributes of the same folder below.

    Overlay shows the topmost layer's attributes of a merged folder, so a made-up one would change
    what lies below. ``lowers`` are topmost first. Where the name is no folder below (a symbolic
    link, say) the default stays and hides it, as with CRI-O; containerd would follow the link.
    """
    for name in sorted(names):
        for lower in lowers:
            source = _open_below(lower, name)
            if source is None:
                continue
            target = _open_below(diff, name)
            if source >= 0 and target is not None and target >= 0:
                _copy_attributes(source, target)
            for fd in (source, target):
                if fd is not None and fd >= 0:
                    os.close(fd)
            break


def _open_below(root: Path, name: bytes) -> int | None:
    """Open a folder below ``root`` following no link; None if missing, -1 if it is none."""
    fd = os.open(root, _OPEN)
    for part in name.split(b"/"):
        if part in {b"", b"."}:
            continue
        try:
            if part == b"..":  # no layer's folder is called so: the names come out of the jail
                return -1
            below = os.open(part, _OPEN, dir_fd=fd)
        except FileNotFoundError:
            return None
        except OSError:
            return -1
        finally:
            os.close(fd)
        fd = below
    return fd


def _copy_attributes(source: int, target: int) -> None:
    found = os.fstat(source)
    os.fchown(target, found.st_uid, found.st_gid)
    os.fchmod(target, stat.S_IMODE(found.st_mode))
    for key in os.listxattr(source):
        if not key.startswith("trusted.overlay."):
            os.setxattr(target, key, os.getxattr(source, key))
    os.utime(target, ns=(found.st_mtime_ns, found.st_mtime_ns))


def sync_file_system(path: Path) -> None:
    """Write everything of the file system at ``path`` to disk: syncfs(2)."""
    fd = os.open(path, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        if ctypes.CDLL(None, use_errno=True).syncfs(fd):
            code = ctypes.get_errno()
            raise HostError(f"cannot sync {path}: {os.strerror(code)}", errno=code)
    finally:
        os.close(fd)


def remove_tree(path: Path) -> None:
    """Remove a folder of any depth, following nothing; nothing there is success."""
    try:
        shutil.rmtree(path)
    except FileNotFoundError:
        if not path.is_symlink() and not path.exists():
            return
        remove_tree(path)
    except NotADirectoryError:
        path.unlink(missing_ok=True)
    except (OSError, RecursionError):
        # A container can nest folders deeper than Python can follow; rm can.
        result = subprocess.run(
            ["rm", "-rf", "--one-file-system", "--", str(path)],
            capture_output=True,
            text=True,
            check=False,
        )
        if result.returncode:
            raise HostError(f"cannot remove {path}: {result.stderr.strip()[:500]}") from None


def _read_marker(path: Path) -> LayerInfo | None:
    try:
        return marker_of(path)
    except StateError:
        return None


def marker_of(path: Path) -> LayerInfo:
    """Read a layer's marker; raises StateError where there is none that is whole."""
    try:
        document = json.loads((path / "done").read_text())
        return LayerInfo(
            chain=str(document["chain"]),
            size_bytes=int(document["size_bytes"]),
            inodes=int(document["inodes"]),
        )
    except (OSError, ValueError, LookupError, TypeError) as error:
        raise StateError(f"layer {path} has no whole marker: {error}") from error
