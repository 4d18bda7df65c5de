"""A seccomp artifact from a registry, by the real worker: by digest, bounded, kept on disk."""

from __future__ import annotations

from collections.abc import AsyncIterator
from pathlib import Path

import pytest

from noderuntime.errors import ImageError
from noderuntime.images.store import ImageStore
from tests.fakes.registry import BuiltImage, FakeRegistry, build_artifact

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
    assert await store.artifact(reference) == PROFILE.decode()
    asked = len(registry.requests)
    again = ImageStore(tmp_path / "state", tmp_path / "certs.d")
    await again.recover()
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
