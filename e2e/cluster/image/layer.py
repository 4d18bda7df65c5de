"""A folder as a layer: the same bytes from the same content.

Entries are sorted, have a fixed time and belong to root unless said; the gzip header holds no time
and no name. Files that are one file stay so (hard links). Devices and sockets are refused.
"""

from __future__ import annotations

import gzip
import hashlib
import os
import stat
import tarfile
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Final, cast

from e2e.cluster.state import ClusterError

EPOCH: Final = 0
_LEVEL: Final = 6


@dataclass(frozen=True, slots=True)
class Layer:
    """A gzip-compressed layer on disk."""

    path: Path
    digest: str
    diff_id: str
    size_bytes: int


class _Hashed:
    """A file that hashes what goes through it; `tarfile` and `gzip` only write."""

    def __init__(self, beneath: gzip.GzipFile | object) -> None:
        self._beneath = cast("gzip.GzipFile", beneath)
        self.sha256 = hashlib.sha256()
        self.size_bytes = 0

    def write(self, data: bytes) -> int:
        self.sha256.update(data)
        self.size_bytes += len(data)
        return self._beneath.write(data)

    def flush(self) -> None:
        self._beneath.flush()


def write_layer(folder: Path, out: Path, owners: Mapping[str, int] | None = None) -> Layer:
    """Tar and compress a folder. `owners`: path in the image → UID and GID of it and all below."""
    out.parent.mkdir(parents=True, exist_ok=True)
    with out.open("wb") as file:
        packed = _Hashed(file)
        with gzip.GzipFile("", "wb", _LEVEL, cast("gzip.GzipFile", packed), mtime=EPOCH) as zipped:
            plain = _Hashed(zipped)
            with tarfile.open(
                fileobj=cast("gzip.GzipFile", plain), mode="w|", format=tarfile.PAX_FORMAT
            ) as tar:
                first: dict[int, str] = {}
                for path in _entries(folder):
                    _add(tar, folder, path, owners or {}, first)
    return Layer(
        path=out,
        digest=f"sha256:{packed.sha256.hexdigest()}",
        diff_id=f"sha256:{plain.sha256.hexdigest()}",
        size_bytes=packed.size_bytes,
    )


def _entries(folder: Path) -> Iterator[Path]:
    paths = [
        Path(parent) / name
        for parent, folders, files in os.walk(folder)
        for name in (*folders, *files)
    ]
    return iter(sorted(paths, key=lambda path: path.relative_to(folder).parts))


def _add(
    tar: tarfile.TarFile,
    folder: Path,
    path: Path,
    owners: Mapping[str, int],
    first: dict[int, str],
) -> None:
    """Add one entry; `first`: inode → its first name, where a file has several in the layer."""
    info = path.lstat()
    name = str(path.relative_to(folder))
    entry = tarfile.TarInfo(name)
    entry.mtime = EPOCH
    entry.mode = stat.S_IMODE(info.st_mode)
    entry.uid = entry.gid = _owner(f"/{name}", owners)
    if stat.S_ISLNK(info.st_mode):
        entry.type, entry.linkname, entry.mode = tarfile.SYMTYPE, str(path.readlink()), 0o777
        tar.addfile(entry)
    elif stat.S_ISDIR(info.st_mode):
        entry.type = tarfile.DIRTYPE
        tar.addfile(entry)
    elif stat.S_ISREG(info.st_mode) and first.setdefault(info.st_ino, name) != name:
        entry.type, entry.linkname = tarfile.LNKTYPE, first[info.st_ino]
        tar.addfile(entry)
    elif stat.S_ISREG(info.st_mode):
        entry.size = info.st_size
        with path.open("rb") as content:
            tar.addfile(entry, content)
    else:
        raise ClusterError(f"{path} is neither a file, a folder nor a link: not for an image")


def _owner(name: str, owners: Mapping[str, int]) -> int:
    for place, owner in owners.items():
        if name == place or name.startswith(f"{place}/"):
            return owner
    return 0
