"""One suite for the fake and the real ``Images``: what engine tests rely on holds for both."""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from pathlib import Path

import pytest

from noderuntime.errors import ImageError, NotFoundError
from noderuntime.images.ports import Images
from noderuntime.images.store import ImageStore
from noderuntime.policy.model import ImageConfig
from tests.fakes.images import FakeImages
from tests.fakes.registry import FakeRegistry, File, build_image


@dataclass
class Subject:
    """Images, and a way to put one into the registry: (path:tag, salt) -> reference."""

    images: Images
    offer: Callable[[str, str], str]
    reopen: Callable[[], Awaitable[Images]]


@pytest.fixture(params=["fake", "real"])
async def subject(
    request: pytest.FixtureRequest, tmp_path: Path, registry: FakeRegistry
) -> Subject:
    if request.param == "fake":
        fake = FakeImages(tmp_path)
        await fake.recover()

        def offer(name: str, salt: str) -> str:
            fake.add(f"127.0.0.1:5/{name}", ImageConfig(env=("A=b",)), salt=salt)
            return f"127.0.0.1:5/{name}"

        async def same() -> Images:
            await fake.recover()
            return fake

        return Subject(fake, offer, same)
    store = ImageStore(tmp_path / "state", tmp_path / "certs.d")
    await store.recover()

    def push(name: str, salt: str) -> str:
        image = build_image([File("salt", f"{name}{salt}".encode())], config={"Env": ["A=b"]})
        return registry.add(name.partition(":")[0], name.partition(":")[2], image)

    async def again() -> Images:
        new = ImageStore(tmp_path / "state", tmp_path / "certs.d")
        await new.recover()
        return new

    return Subject(store, push, again)


async def test_a_pulled_image_is_found_by_all_its_names(subject: Subject) -> None:
    images = subject.images
    reference = subject.offer("team/app:v1", "")
    assert images.find(reference) is None

    image = await images.pull(reference)

    assert image.id.startswith("sha256:")
    assert image.repo_tags == (reference,)
    assert image.config.env == ("A=b",)
    assert image.size_bytes > 0
    for name in (image.id, image.id.removeprefix("sha256:")[:12], reference, *image.repo_digests):
        assert images.find(name) == image
    assert images.list() == (image,)
    assert await images.pull(reference) == image
    assert all(layer.is_dir() for layer in image.layers)


async def test_a_moved_tag_leaves_the_old_image_without_it(subject: Subject) -> None:
    old = await subject.images.pull(subject.offer("app:v1", "old"))
    new = await subject.images.pull(subject.offer("app:v1", "new"))
    assert new.id != old.id
    left = subject.images.find(old.id)
    assert left is not None
    assert left.repo_tags == ()
    assert len(subject.images.list()) == 2


async def test_what_the_registry_has_not_is_an_image_error(subject: Subject) -> None:
    reference = subject.offer("app:v1", "")
    with pytest.raises(ImageError, match="has no image"):
        await subject.images.pull(reference.replace("v1", "v2"))
    with pytest.raises(ImageError):
        await subject.images.pull("Not A Name")


async def test_removing_is_idempotent_and_takes_all_names(subject: Subject) -> None:
    reference = subject.offer("app:v1", "")
    image = await subject.images.pull(reference)
    await subject.images.remove(reference)
    await subject.images.remove(reference)
    await subject.images.remove(image.id)
    assert subject.images.list() == ()
    assert not any(layer.exists() for layer in image.layers)
    with pytest.raises(NotFoundError):
        await subject.images.prepare("c1", image)


async def test_a_containers_layers_outlive_the_image(subject: Subject) -> None:
    image = await subject.images.pull(subject.offer("app:v1", ""))
    snapshot = await subject.images.prepare("c1", image)
    assert await subject.images.prepare("c1", image) == snapshot
    assert snapshot.lowers == image.layers[::-1]
    assert snapshot.upper.is_dir()
    assert snapshot.work.is_dir()
    assert subject.images.containers() == ("c1",)
    assert (await subject.images.usage("c1")).used_bytes == 0
    await subject.images.remove(image.id)
    assert all(layer.exists() for layer in image.layers)
    await subject.images.discard("c1")
    await subject.images.discard("c1")
    assert subject.images.containers() == ()
    assert not snapshot.upper.exists()
    assert not any(layer.exists() for layer in image.layers)
    with pytest.raises(NotFoundError):
        await subject.images.usage("c1")


async def test_all_of_it_is_there_after_a_restart(subject: Subject) -> None:
    image = await subject.images.pull(subject.offer("app:v1", ""))
    await subject.images.prepare("c1", image)
    again = await subject.reopen()
    assert again.list() == (image,)
    assert again.containers() == ("c1",)
    assert (await again.fs_usage()).mountpoint.is_dir()
