"""A seccomp artifact from a registry, by the real worker: by digest, bounded, kept on disk."""

from __future__ import annotations

import base64
import json
from collections.abc import AsyncIterator
from pathlib import Path

import pytest

from noderuntime.errors import ImageError
from noderuntime.images.store import ImageStore
from tests.fakes.registry import Answer, BuiltImage, FakeRegistry, build_artifact

PROFILE = b'{"defaultAction": "SCMP_ACT_ERRNO"}'
OTHER = {"mediaType": "a/b", "digest": "sha256:" + "0" * 64, "size": 2}


@pytest.fixture
async def store(tmp_path: Path, registry: FakeRegistry) -> AsyncIterator[ImageStore]:
    hosts = tmp_path / "certs.d" / registry.host
    hosts.mkdir(parents=True)
    (hosts / "hosts.toml").write_text(f'server = "http://{registry.host}"\n')
    store = ImageStore(tmp_path / "state", tmp_path / "certs.d")
    await store.recover()
    yield store


async def test_an_artifact_is_fetched_once_and_kept(
    store: ImageStore, registry: FakeRegistry, tmp_path: Path
) -> None:
    built = build_artifact((PROFILE,))
    registry.add("profiles/web", "1", built)
    reference = f"{registry.host}/profiles/web@{built.digest}"
    assert await store.kept_artifact(reference) is None
    assert await store.artifact(reference) == PROFILE.decode()
    asked = len(registry.requests)
    again = ImageStore(tmp_path / "state", tmp_path / "certs.d")
    await again.recover()
    assert await again.kept_artifact(reference) == PROFILE.decode()
    assert await again.artifact(reference) == PROFILE.decode()
    assert len(registry.requests) == asked
    await again.retain_artifacts(())
    assert list((tmp_path / "state/images/artifacts").iterdir()) == []


@pytest.mark.parametrize(
    ("built", "text"),
    [
        pytest.param(build_artifact((PROFILE, PROFILE)), "has 2 layers", id="two layers"),
        pytest.param(build_artifact((b"\xff\xfe",)), "not text in UTF-8", id="binary"),
        pytest.param(
            build_artifact((PROFILE,), artifactType="a/b", config=OTHER),
            "is not a seccomp profile",
            id="another type",
        ),
    ],
)
async def test_what_is_no_profile_is_refused(
    store: ImageStore, registry: FakeRegistry, built: BuiltImage, text: str
) -> None:
    registry.add("profiles/web", "1", built)
    with pytest.raises(ImageError, match=text):
        await store.artifact(f"{registry.host}/profiles/web@{built.digest}")


async def test_a_tag_is_no_name_for_an_artifact(store: ImageStore) -> None:
    with pytest.raises(ImageError, match="named without a digest"):
        await store.artifact("registry.example.com/profiles/web:1")


async def test_a_private_artifact_is_fetched_with_the_nodes_credentials_and_images_are_not(
    tmp_path: Path, registry: FakeRegistry, caplog: pytest.LogCaptureFixture
) -> None:
    pair = base64.b64encode(b"robot:s3cr3t").decode()
    denied = Answer(401, b"{}", {"WWW-Authenticate": 'Basic realm="private"'})
    registry.script = lambda r: (
        None if r.headers.get("Authorization") == f"Basic {pair}" else denied
    )
    built = build_artifact((PROFILE,))
    registry.add("profiles/web", "1", built)
    reference = f"{registry.host}/profiles/web@{built.digest}"
    file = tmp_path / "config.json"
    file.write_text(json.dumps({"auths": {registry.host: {"auth": "eDp5"}}}))
    file.chmod(0o600)
    store = ImageStore(tmp_path / "state", tmp_path / "certs.d", file)
    await store.recover()
    with pytest.raises(ImageError, match="does not accept the credentials") as caught:
        await store.artifact(reference)
    assert "eDp5" not in str(caught.value)
    file.write_text(json.dumps({"auths": {registry.host: {"auth": pair}}}))
    assert await store.artifact(reference) == PROFILE.decode()
    with pytest.raises(ImageError, match="wants credentials"):
        await store.pull(f"{registry.host}/profiles/web:1", None)
    assert not any(word in caplog.text for word in (pair, "s3cr3t"))
