"""A seccomp profile as an OCI artifact: one layer, the JSON of the OCI runtime-spec, kept on disk.

An artifact is asked for by digest only, so a registry cannot choose what it says, and what is on
disk is good for ever. It is not unpacked: the layer is the file.
Source: KEP-6061 "OCI Artifact Format" (config and artifactType
``application/vnd.cncf.seccomp-profile.config.v1+json``, exactly one layer, 1 MiB); image-spec
manifest.md "Guidelines for Artifact Usage".
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Final, Protocol, cast

from noderuntime.errors import ImageError
from noderuntime.host import durable
from noderuntime.images.content import PRIVATE, digest_of
from noderuntime.images.manifest import Descriptor, descriptor_of, is_index, parse_document

SECCOMP_TYPE: Final = "application/vnd.cncf.seccomp-profile.config.v1+json"
MAX_BYTES: Final = 1 << 20


class Source(Protocol):
    """What of a registry is needed."""

    def resolve(self, known: frozenset[str]) -> tuple[str, bytes | None, str]:
        """Return digest, document and media type."""
        ...

    def small_blob(self, blob: Descriptor) -> bytes:
        """Return a blob, verified."""
        ...


def fetch(source: Source, what: str, emit: Callable[[Mapping[str, object]], None]) -> None:
    """Fetch an artifact and emit its ``text``. In the worker. Raises ImageError."""
    _, data, media_type = source.resolve(frozenset())
    manifest = parse_document(data or b"", f"the manifest of {what}")
    layer = layer_of(manifest, media_type, what)
    blob = source.small_blob(layer)
    try:
        emit({"event": "artifact", "text": blob.decode()})
    except UnicodeDecodeError as error:
        raise ImageError(f"{what}: its layer is not text in UTF-8") from error


def layer_of(manifest: Mapping[str, object], media_type: str, what: str) -> Descriptor:
    """Return the layer that is the profile; raises ImageError where it is none."""
    if is_index(manifest, media_type):
        raise ImageError(f"{what} is an index: name the artifact's own digest")
    config = manifest.get("config")
    kind = cast("Mapping[str, object]", config).get("mediaType") if isinstance(config, dict) else ""
    found = manifest.get("artifactType") or kind
    if SECCOMP_TYPE not in (found, kind):
        raise ImageError(
            f"{what} is not a seccomp profile ({SECCOMP_TYPE}) but {str(found)[:100]!a}"
        )
    layers = manifest.get("layers")
    count = len(cast("list[object]", layers)) if isinstance(layers, list) else 0
    if count != 1:
        raise ImageError(f"{what} has {count} layers: a seccomp profile is one")
    layer = descriptor_of(cast("list[object]", layers)[0], what)
    if layer.size_bytes > MAX_BYTES:
        raise ImageError(f"{what} has a layer of {layer.size_bytes} bytes: at most {MAX_BYTES}")
    return layer


class Artifacts:
    """The artifacts on disk: a file each, named by the manifest's digest, its own digest before it."""

    def __init__(self, root: Path) -> None:
        """``root`` is the store's folder; nothing is touched."""
        self._folder = root / "artifacts"

    def read(self, digest: str) -> str | None:
        """Return the text; None where it is not there, or not what was written."""
        try:
            head, _, data = self._path(digest).read_bytes().partition(b"\n")
        except FileNotFoundError:
            return None
        return data.decode() if digest_of(data).encode() == head else None

    def write(self, digest: str, text: str) -> None:
        """Keep the text."""
        self._folder.mkdir(mode=PRIVATE, exist_ok=True)
        data = text.encode()
        durable.write(self._path(digest), digest_of(data).encode() + b"\n" + data)

    def retain(self, digests: frozenset[str]) -> None:
        """Remove all others."""
        kept = {self._path(digest).name for digest in digests}
        for path in self._folder.glob("*") if self._folder.is_dir() else ():
            if path.name not in kept:
                path.unlink(missing_ok=True)

    def _path(self, digest: str) -> Path:
        return self._folder / digest.removeprefix("sha256:")
