"""An OCI image layout, as a folder or as a tar file: where images come from without a registry.

The same questions as to a registry, the same verification. Used in the worker only.
Source: image-spec image-layout.md.
"""

from __future__ import annotations

import os
import stat
import tarfile
from dataclasses import dataclass
from pathlib import Path
from typing import Final, cast

from noderuntime.errors import ImageError
from noderuntime.images.content import Ingest, digest_of
from noderuntime.images.manifest import (
    INDEXES,
    MANIFESTS,
    MAX_DOCUMENT,
    Descriptor,
    parse_document,
)
from noderuntime.images.reference import Reference, is_digest

CHUNK: Final = 1 << 20
_REF_NAME: Final = "org.opencontainers.image.ref.name"


@dataclass(frozen=True, slots=True)
class _Piece:
    path: Path
    offset: int
    size_bytes: int


class Layout:
    """One layout; ``reference`` says what its image is called and, by the tag, which it is."""

    def __init__(self, path: Path, reference: Reference) -> None:
        """Find the files; raises ImageError where ``path`` is no layout."""
        self._path = path
        self._reference = reference
        try:
            self._pieces = _members(path) if path.is_file() else None
        except (OSError, tarfile.TarError) as error:
            raise ImageError(f"{path} is neither a folder nor a tar file: {error}") from error
        self._index = parse_document(self._read("index.json", MAX_DOCUMENT), f"{path}: index.json")

    def resolve(self, known: frozenset[str]) -> tuple[str, bytes | None, str]:
        """Return digest, document and media type of the one image that is meant."""
        manifests = self._index.get("manifests")
        entries = cast("list[object]", manifests) if isinstance(manifests, list) else []
        images = [cast("dict[str, object]", e) for e in entries if isinstance(e, dict)]
        digest = self._choose(images)
        if digest in known:
            return digest, None, ""
        data, media_type = self.manifest(digest)
        return digest, data, media_type

    def _choose(self, images: list[dict[str, object]]) -> str:
        names = {self._reference.tag, str(self._reference)} - {""}
        wanted = [image for image in images if image.get("digest") == self._reference.digest]
        if not wanted and not self._reference.digest:
            wanted = [image for image in images if _name_of(image) in names] or images
        if len(wanted) != 1:
            there = ", ".join(sorted(_name_of(image) for image in images)) or "none"
            raise ImageError(
                f"{self._path} has {len(images)} images (names: {there[:200]}) and not exactly one"
                f" for {self._reference}"
            )
        digest = wanted[0].get("digest")
        if not isinstance(digest, str) or not is_digest(digest):
            raise ImageError(f"{self._path}: index.json names a digest that is no sha256")
        return digest

    def manifest(self, digest: str) -> tuple[bytes, str]:
        """Return a manifest by digest; the media type is the one that it says itself."""
        data = self._read(_name(digest), MAX_DOCUMENT)
        if digest_of(data) != digest:
            raise ImageError(f"{self._path}: blob {digest} is damaged")
        declared = parse_document(data, f"{self._path}: manifest {digest}").get("mediaType", "")
        return data, str(declared) if declared in (*MANIFESTS, *INDEXES) else ""

    def small_blob(self, blob: Descriptor) -> bytes:
        """Return a config."""
        data = self._read(_name(blob.digest), blob.size_bytes)
        if digest_of(data) != blob.digest:
            raise ImageError(f"{self._path}: blob {blob.digest} is damaged")
        return data

    def blob(self, blob: Descriptor, ingest: Ingest) -> None:
        """Copy a layer, verified."""
        fd, left = self._open(_name(blob.digest))
        try:
            while left and (chunk := os.read(fd, min(CHUNK, left))):
                left -= len(chunk)
                ingest.write(chunk)
        finally:
            os.close(fd)
        ingest.verify()

    def _open(self, name: str) -> tuple[int, int]:
        """Return a descriptor that stands at the file's beginning, and its size in bytes."""
        if self._pieces is None:
            piece = _Piece(self._path / name, 0, -1)
        elif name in self._pieces:
            piece = self._pieces[name]
        else:
            raise ImageError(f"{self._path} has no {name}: it is not a whole OCI image layout")
        try:
            fd = os.open(piece.path, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC)
        except OSError as error:
            raise ImageError(
                f"{self._path}: {name} cannot be read ({error.strerror}): it is not a whole OCI"
                " image layout"
            ) from error
        found = os.fstat(fd)
        if not stat.S_ISREG(found.st_mode):
            os.close(fd)
            raise ImageError(f"{self._path}: {name} is not a file")
        os.lseek(fd, piece.offset, os.SEEK_SET)
        return fd, found.st_size if piece.size_bytes < 0 else piece.size_bytes

    def _read(self, name: str, limit: int) -> bytes:
        fd, size_bytes = self._open(name)
        try:
            if size_bytes > limit:
                raise ImageError(f"{self._path}: {name} has more than {limit} bytes")
            with open(fd, "rb", closefd=False) as file:
                return file.read(size_bytes)
        finally:
            os.close(fd)


def _members(path: Path) -> dict[str, _Piece]:
    with tarfile.open(path, "r:") as archive:
        return {
            member.name.removeprefix("./"): _Piece(path, member.offset_data, member.size)
            for member in archive
            if member.isreg() and not member.issparse()
        }


def _name(digest: str) -> str:
    return f"blobs/sha256/{digest.removeprefix('sha256:')}"


def _name_of(image: dict[str, object]) -> str:
    annotations = image.get("annotations")
    if not isinstance(annotations, dict):
        return ""
    return str(cast("dict[str, object]", annotations).get(_REF_NAME, ""))
