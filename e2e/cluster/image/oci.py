"""An OCI image layout (image-spec 1.0): blobs by digest, one index that names the image."""

from __future__ import annotations

import hashlib
import json
import shutil
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Final

from e2e.cluster.image.layer import Layer

MANIFEST: Final = "application/vnd.oci.image.manifest.v1+json"
CONFIG: Final = "application/vnd.oci.image.config.v1+json"
LAYER: Final = "application/vnd.oci.image.layer.v1.tar+gzip"
CREATED: Final = "1970-01-01T00:00:00Z"


@dataclass(frozen=True, slots=True)
class Config:
    """How a container of the image starts."""

    user: str = ""
    entrypoint: tuple[str, ...] = ()
    command: tuple[str, ...] = ()
    environment: tuple[str, ...] = ()
    folder: str = "/"
    labels: Mapping[str, str] = field(default_factory=dict[str, str])


@dataclass(frozen=True, slots=True)
class Blob:
    """Content by its digest."""

    media_type: str
    digest: str
    size_bytes: int

    def descriptor(self) -> dict[str, object]:
        return {"mediaType": self.media_type, "digest": self.digest, "size": self.size_bytes}


def write_layout(folder: Path, tag: str, layers: Sequence[Layer], config: Config) -> str:
    """Write the layout anew and return the manifest's digest; the layers' files are linked in."""
    scratch = folder.with_name(f".{folder.name}.new")
    shutil.rmtree(scratch, ignore_errors=True)
    blobs = scratch / "blobs" / "sha256"
    blobs.mkdir(parents=True)
    for layer in layers:
        (blobs / layer.digest.partition(":")[2]).hardlink_to(layer.path)
    packed = [Blob(LAYER, layer.digest, layer.size_bytes).descriptor() for layer in layers]
    described = _put(blobs, CONFIG, _config(layers, config))
    manifest = _put(
        blobs,
        MANIFEST,
        {
            "schemaVersion": 2,
            "mediaType": MANIFEST,
            "config": described.descriptor(),
            "layers": packed,
        },
    )
    named = manifest.descriptor() | {"annotations": {"org.opencontainers.image.ref.name": tag}}
    _write(scratch / "index.json", {"schemaVersion": 2, "manifests": [named]})
    _write(scratch / "oci-layout", {"imageLayoutVersion": "1.0.0"})
    shutil.rmtree(folder, ignore_errors=True)
    scratch.replace(folder)
    return manifest.digest


def read_manifest(folder: Path) -> tuple[str, dict[str, Any]]:
    """The digest and the content of a layout's only manifest."""
    index = json.loads((folder / "index.json").read_bytes())
    digest: str = index["manifests"][0]["digest"]
    content: dict[str, Any] = json.loads(blob_path(folder, digest).read_bytes())
    return digest, content


def blob_path(folder: Path, digest: str) -> Path:
    """Where a layout has a blob."""
    return folder / "blobs" / digest.replace(":", "/", 1)


def _config(layers: Sequence[Layer], config: Config) -> dict[str, object]:
    process: dict[str, object] = {"WorkingDir": config.folder}
    if config.user:
        process["User"] = config.user
    if config.entrypoint:
        process["Entrypoint"] = list(config.entrypoint)
    if config.command:
        process["Cmd"] = list(config.command)
    if config.environment:
        process["Env"] = list(config.environment)
    if config.labels:
        process["Labels"] = dict(sorted(config.labels.items()))
    return {
        "created": CREATED,
        "architecture": "amd64",
        "os": "linux",
        "config": process,
        "rootfs": {"type": "layers", "diff_ids": [layer.diff_id for layer in layers]},
        "history": [{"created": CREATED, "created_by": "noderuntime"} for _ in layers],
    }


def _put(blobs: Path, media_type: str, content: object) -> Blob:
    data = json.dumps(content, sort_keys=True, separators=(",", ":")).encode()
    digest = hashlib.sha256(data).hexdigest()
    (blobs / digest).write_bytes(data)
    return Blob(media_type, f"sha256:{digest}", len(data))


def _write(path: Path, content: object) -> None:
    path.write_text(json.dumps(content, sort_keys=True, separators=(",", ":")))
