from __future__ import annotations

import json

import pytest

from noderuntime.errors import ImageError
from noderuntime.images.manifest import (
    MAX_DOCUMENT,
    choose,
    is_index,
    parse_config,
    parse_document,
    parse_manifest,
)

DIGEST = "sha256:" + "a" * 64
CONFIG = {"mediaType": "application/vnd.oci.image.config.v1+json", "digest": DIGEST, "size": 2}
LAYER = {"mediaType": "application/vnd.oci.image.layer.v1.tar", "digest": DIGEST, "size": 3}


def entry(system: str, machine: str, digest: str) -> dict[str, object]:
    platform = {"os": system, "architecture": machine}
    return {"digest": digest, "size": 1, "platform": platform}


def test_a_manifest_gives_config_and_layers() -> None:
    manifest = parse_manifest({"schemaVersion": 2, "config": CONFIG, "layers": [LAYER]}, "x")
    assert manifest.config.digest == DIGEST
    assert [layer.size_bytes for layer in manifest.layers] == [3]


@pytest.mark.parametrize(
    ("document", "message"),
    [
        ({"schemaVersion": 1}, "of an old form (schema 1): push the image again"),
        ({"schemaVersion": 2}, "does not have the form"),
        ({"schemaVersion": 2, "config": {**CONFIG, "mediaType": "a/b"}, "layers": []}, "artifact"),
        ({"schemaVersion": 2, "config": {**CONFIG, "digest": "md5:x"}}, "no sha256"),
        ({"schemaVersion": 2, "config": {**CONFIG, "size": -1}}, "names no size"),
        ({"schemaVersion": 2, "config": {**CONFIG, "size": True}}, "names no size"),
        ({"schemaVersion": 2, "config": {**CONFIG, "size": MAX_DOCUMENT + 1}}, "config of more"),
        ({"schemaVersion": 2, "config": CONFIG, "layers": {}}, "layers is not a list"),
        ({"schemaVersion": 2, "config": CONFIG, "layers": [3]}, "does not have the form"),
        ({"schemaVersion": 2, "config": CONFIG, "layers": [LAYER] * 128}, "128 layers: at most"),
        (
            {"schemaVersion": 2, "config": CONFIG, "layers": [{**LAYER, "size": 1 << 50}]},
            "too large",
        ),
    ],
)
def test_what_is_no_images_manifest_is_refused(document: dict[str, object], message: str) -> None:
    with pytest.raises(ImageError) as caught:
        parse_manifest(document, "the manifest")
    assert message in str(caught.value)


def test_an_index_is_told_by_type_or_shape() -> None:
    assert is_index({"mediaType": "application/vnd.oci.image.index.v1+json"}, "")
    assert is_index({"manifests": []}, "")
    assert is_index({}, "application/vnd.docker.distribution.manifest.list.v2+json")
    assert not is_index({"config": {}}, "")
    # A document that says it is a manifest is one, whatever else it holds.
    manifest = "application/vnd.oci.image.manifest.v1+json"
    assert not is_index({"mediaType": manifest, "manifests": []}, "")


def test_the_index_entry_of_this_machine_is_chosen() -> None:
    other = "sha256:" + "b" * 64
    index = {"manifests": [entry("windows", "amd64", other), entry("linux", "amd64", DIGEST)]}
    assert choose(index, "x", "amd64").digest == DIGEST
    with pytest.raises(ImageError, match=r"has no image for linux/arm64: it has windows/amd64, l"):
        choose(index, "x", "arm64")


def test_a_config_gives_what_a_container_gets() -> None:
    config = parse_config(
        {
            "rootfs": {"diff_ids": [DIGEST]},
            "config": {
                "User": "1000:1000",
                "Env": ["A=b"],
                "Cmd": None,
                "Entrypoint": ["/x"],
                "Volumes": {"/v": {}, "/a": {}},
                "Labels": {"k": "v"},
            },
        },
        "x",
    )
    assert (config.user, config.env, config.cmd) == ("1000:1000", ("A=b",), ())
    assert (config.entrypoint, config.volumes, config.labels) == (
        ("/x",),
        ("/a", "/v"),
        {"k": "v"},
    )


@pytest.mark.parametrize(
    ("document", "message"),
    [
        ({"os": "windows"}, "this node runs linux"),
        ({}, "rootfs"),
        ({"rootfs": {"diff_ids": ["x"]}}, "no sha256"),
        ({"rootfs": {"diff_ids": []}, "config": {"Env": "A=b"}}, "Env is not a list of texts"),
        ({"rootfs": {"diff_ids": []}, "config": {"Env": ["a\0b"]}}, "Env is not a list of texts"),
        ({"rootfs": {"diff_ids": []}, "config": {"User": 3}}, "User is not a text"),
    ],
)
def test_a_wrong_config_is_refused_by_its_field(document: dict[str, object], message: str) -> None:
    with pytest.raises(ImageError) as caught:
        parse_config(document, "the config")
    assert message in str(caught.value)


@pytest.mark.parametrize("data", [b"", b"[1]", b"{", b"\xff", b"[" * 100_000])
def test_what_is_no_json_object_is_refused(data: bytes) -> None:
    with pytest.raises(ImageError, match="JSON"):
        parse_document(data, "x")


def test_a_large_document_is_not_parsed() -> None:
    with pytest.raises(ImageError, match="more than"):
        parse_document(json.dumps({"a": "x" * MAX_DOCUMENT}).encode(), "x")
