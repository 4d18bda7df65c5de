"""What a registry may say of a seccomp artifact, and the file that is kept of it."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from noderuntime.errors import ImageError
from noderuntime.images.artifact import MAX_BYTES, Artifacts, layer_of
from tests.fakes.registry import MANIFEST, build_artifact


@pytest.mark.parametrize(
    ("changes", "text"),
    [
        ({"manifests": [], "mediaType": "application/vnd.oci.image.index.v1+json"}, "is an index"),
        ({"layers": "x"}, "has 0 layers"),
        ({"layers": [3]}, "does not have the form"),
        ({"config": [], "artifactType": 7}, "is not a seccomp profile"),
        (
            {"layers": [{"digest": "sha256:" + "0" * 64, "size": MAX_BYTES + 1}]},
            "at most 1048576",
        ),
    ],
)
def test_a_hostile_manifest_is_refused(changes: dict[str, object], text: str) -> None:
    manifest: dict[str, Any] = {**json.loads(build_artifact((b"{}",)).manifest), **changes}
    with pytest.raises(ImageError, match=text):
        layer_of(manifest, MANIFEST, "it")


def test_a_file_that_was_changed_on_disk_is_not_read(tmp_path: Path) -> None:
    files = Artifacts(tmp_path)
    digest = "sha256:" + "a" * 64
    assert files.read(digest) is None
    files.write(digest, "{}")
    assert files.read(digest) == "{}"
    path = tmp_path / "artifacts" / ("a" * 64)
    path.write_bytes(path.read_bytes() + b" ")
    assert files.read(digest) is None
