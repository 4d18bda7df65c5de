"""Manifests, indexes and configs: registry answers read strictly, bounded, into frozen values.

Docker schema 2 and OCI are one thing here. Sources: image-spec manifest.md, image-index.md,
config.md.
"""

from __future__ import annotations

import json
import os
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Final, cast

from noderuntime.errors import ImageError
from noderuntime.images.reference import is_digest

MAX_DOCUMENT: Final = 4 << 20
MAX_LAYERS: Final = 127  # what one overlay mount takes beside its upper layer
MAX_LAYER_BYTES: Final = 64 << 30
MANIFESTS: Final = (
    "application/vnd.oci.image.manifest.v1+json",
    "application/vnd.docker.distribution.manifest.v2+json",
)
INDEXES: Final = (
    "application/vnd.oci.image.index.v1+json",
    "application/vnd.docker.distribution.manifest.list.v2+json",
)
CONFIGS: Final = (
    "application/vnd.oci.image.config.v1+json",
    "application/vnd.docker.container.image.v1+json",
)
_ARCHITECTURES: Final = {"x86_64": "amd64", "aarch64": "arm64", "armv7l": "arm", "i686": "386"}


@dataclass(frozen=True, slots=True, kw_only=True)
class Descriptor:
    """Something by its digest."""

    digest: str
    size_bytes: int
    media_type: str = ""


@dataclass(frozen=True, slots=True, kw_only=True)
class Manifest:
    """One image's manifest."""

    config: Descriptor
    layers: tuple[Descriptor, ...]


@dataclass(frozen=True, slots=True, kw_only=True)
class Config:
    """One image's config: what a container gets from it, and the digests of its plain layers."""

    diff_ids: tuple[str, ...]
    user: str
    env: tuple[str, ...]
    entrypoint: tuple[str, ...]
    cmd: tuple[str, ...]
    working_dir: str
    stop_signal: str
    volumes: tuple[str, ...]
    labels: Mapping[str, str]


def architecture() -> str:
    """Return this machine's architecture in Go's words."""
    machine = os.uname().machine
    return _ARCHITECTURES.get(machine, machine)


def parse_document(data: bytes, what: str) -> dict[str, object]:
    """Parse a JSON object; raises ImageError that names ``what``."""
    if len(data) > MAX_DOCUMENT:
        raise ImageError(f"{what} has more than {MAX_DOCUMENT} bytes")
    try:
        document: object = json.loads(data)
    except (ValueError, RecursionError) as error:
        raise ImageError(f"{what} is not JSON") from error
    if not isinstance(document, dict):
        raise ImageError(f"{what} is not a JSON object")
    return cast("dict[str, object]", document)


def is_index(document: Mapping[str, object], media_type: str) -> bool:
    """Tell an index from a manifest, by the media type or, where that is missing, by its shape."""
    declared = document.get("mediaType") or media_type
    return declared in INDEXES or (declared not in MANIFESTS and "manifests" in document)


def choose(index: Mapping[str, object], what: str, arch: str) -> Descriptor:
    """Choose this machine's manifest from an index; raises ImageError that lists what there is."""
    found: list[str] = []
    for item in _list(index, "manifests", what):
        entry = _object(item, what)
        platform = _object(entry.get("platform") or {}, what)
        system, machine = str(platform.get("os", "linux")), str(platform.get("architecture", arch))
        if system == "linux" and machine == arch:
            return _descriptor(entry, what)
        if system != "unknown":
            found.append(f"{system}/{machine}"[:40])
    there = ", ".join(dict.fromkeys(found[:20])) or "nothing"
    raise ImageError(f"{what} has no image for linux/{arch}: it has {there}")


def parse_manifest(document: Mapping[str, object], what: str) -> Manifest:
    """Read a manifest; raises ImageError where it is none of a container image."""
    if document.get("schemaVersion") != 2:
        raise ImageError(f"{what} is of an old form (schema 1): push the image again")
    config = _descriptor(_object(document.get("config"), what), what)
    if config.media_type not in CONFIGS:
        raise ImageError(
            f"{what} is not a container image but an artifact of type {config.media_type!a}"
        )
    if config.size_bytes > MAX_DOCUMENT:
        raise ImageError(f"{what} has a config of more than {MAX_DOCUMENT} bytes")
    layers = tuple(
        _descriptor(_object(item, what), what) for item in _list(document, "layers", what)
    )
    if len(layers) > MAX_LAYERS:
        raise ImageError(f"{what} has {len(layers)} layers: at most {MAX_LAYERS} can be mounted")
    for layer in layers:
        if layer.size_bytes > MAX_LAYER_BYTES:
            raise ImageError(f"{what} has a layer of {layer.size_bytes} bytes: that is too large")
    return Manifest(config=config, layers=layers)


def parse_config(document: Mapping[str, object], what: str) -> Config:
    """Read a config; raises ImageError that names the field."""
    if document.get("os", "linux") not in {"linux", ""}:
        raise ImageError(f"{what} is for {document.get('os')!a}, this node runs linux")
    rootfs = _object(document.get("rootfs"), f"{what}: rootfs")
    diff_ids = _strings(rootfs.get("diff_ids"), f"{what}: rootfs.diff_ids")
    if not all(is_digest(diff_id) for diff_id in diff_ids):
        raise ImageError(f"{what}: rootfs.diff_ids holds what is no sha256 digest")
    config = _object(document.get("config") or {}, f"{what}: config")
    labels = _object(config.get("Labels") or {}, f"{what}: Labels")
    return Config(
        diff_ids=diff_ids,
        user=_string(config, "User", what),
        env=_strings(config.get("Env"), f"{what}: Env"),
        entrypoint=_strings(config.get("Entrypoint"), f"{what}: Entrypoint"),
        cmd=_strings(config.get("Cmd"), f"{what}: Cmd"),
        working_dir=_string(config, "WorkingDir", what),
        stop_signal=_string(config, "StopSignal", what),
        volumes=tuple(sorted(_object(config.get("Volumes") or {}, f"{what}: Volumes"))),
        labels={key: str(value) for key, value in labels.items()},
    )


def _object(value: object, what: str) -> dict[str, object]:
    if not isinstance(value, dict):
        raise ImageError(f"{what} does not have the form that image-spec gives it")
    return cast("dict[str, object]", value)


def _list(document: Mapping[str, object], key: str, what: str) -> list[object]:
    value = document.get(key)
    if not isinstance(value, list):
        raise ImageError(f"{what}: {key} is not a list")
    return cast("list[object]", value)


def descriptor_of(value: object, what: str) -> Descriptor:
    """Read a descriptor; raises ImageError where it is none."""
    return _descriptor(_object(value, what), what)


def _descriptor(value: Mapping[str, object], what: str) -> Descriptor:
    digest, size = value.get("digest"), value.get("size")
    if not isinstance(digest, str) or not is_digest(digest):
        raise ImageError(f"{what} names a digest that is no sha256: {ascii(digest)[:100]}")
    if not isinstance(size, int) or isinstance(size, bool) or size < 0:
        raise ImageError(f"{what} names no size for {digest}")
    return Descriptor(digest=digest, size_bytes=size, media_type=str(value.get("mediaType", "")))


def _string(document: Mapping[str, object], key: str, what: str) -> str:
    value = document.get(key) or ""
    if not isinstance(value, str) or "\0" in value:
        raise ImageError(f"{what}: {key} is not a text")
    return value


def _strings(value: object, what: str) -> tuple[str, ...]:
    if value is None:
        return ()
    values = cast("list[object]", value) if isinstance(value, list) else [None]
    if not all(isinstance(v, str) and "\0" not in v for v in values):
        raise ImageError(f"{what} is not a list of texts")
    return tuple(cast("list[str]", values))
