"""The whole store, with its worker and jail, against a scripted registry."""

from __future__ import annotations

import asyncio
import stat
import subprocess
from pathlib import Path

import pytest

from noderuntime.errors import ImageError, NotFoundError
from noderuntime.images.ports import Credentials, Images
from noderuntime.images.store import ImageStore
from tests.fakes.registry import (
    Answer,
    FakeRegistry,
    File,
    build_image,
    digest_of,
    folder,
)
from tests.root.images.trees import census, overlay

BASE = [
    folder("etc", mode=0o750, uid=7),
    File("etc/a", b"1"),
    File("etc/b", b"2"),
    folder("old"),
    File("old/x"),
]
TOP = [
    File("etc/c", b"3"),  # without an entry for etc
    File("etc/.wh.a"),
    folder("old"),
    File("old/.wh..wh..opq"),
    File("old/y"),
]
IMAGE = build_image(BASE, TOP, config={"Env": ["A=b"], "User": "web", "Cmd": ["run"]})


def blobs(registry: FakeRegistry) -> list[str]:
    return [r.path for r in registry.requests if "/blobs/" in r.path]


async def test_an_image_is_there_after_its_pull(
    store: ImageStore, registry: FakeRegistry, tmp_path: Path
) -> None:
    reference = registry.add("team/app", "v1", IMAGE)
    images: Images = store

    image = await images.pull(reference)

    assert image.id == IMAGE.id
    assert image.repo_tags == (reference,)
    assert image.repo_digests == (f"{registry.host}/team/app@{IMAGE.digest}",)
    assert (image.config.env, image.config.user, image.config.cmd) == (("A=b",), "web", ("run",))
    for name in (image.id, image.id[7:20], reference, image.repo_digests[0]):
        assert store.find(name) == image
    with overlay(image.layers[::-1], tmp_path / "merged") as merged:
        assert sorted(str(p.relative_to(merged)) for p in merged.rglob("*")) == [
            "etc", "etc/b", "etc/c", "old", "old/y",
        ]  # fmt: skip
        etc = (merged / "etc").stat()
        assert (stat.S_IMODE(etc.st_mode), etc.st_uid, etc.st_mtime) == (0o750, 7, 1_600_000_000)
    again = ImageStore(tmp_path / "state", tmp_path / "certs.d")
    await again.recover()
    assert again.list() == (image,)


async def test_users_reach_an_image_in_their_container_and_not_on_the_host(
    store: ImageStore, registry: FakeRegistry, tmp_path: Path
) -> None:
    """CVE-2024-25621: an image's setuid programs are not for the host's users."""
    files = [folder("./"), File("f", b"1")]
    image = await store.pull(registry.add("a", "1", build_image(files, [folder("./")])))
    snapshot = await store.prepare("c1", image)
    for path in (tmp_path, tmp_path.parent, tmp_path.parent.parent):
        path.chmod(0o755)

    def read(path: Path) -> int:
        return subprocess.run(
            ["cat", str(path)], user=1000, group=1000, capture_output=True
        ).returncode

    with overlay(snapshot.lowers, tmp_path / "merged") as merged:
        assert await asyncio.to_thread(read, merged / "f") == 0
    assert await asyncio.to_thread(read, snapshot.lowers[1] / "f") != 0


async def test_a_digest_of_another_repository_is_not_known(
    store: ImageStore, registry: FakeRegistry
) -> None:
    """Who only knows the digest of a private image must not get it by naming it."""
    await store.pull(registry.add("private/a", "1", IMAGE))
    stolen = Answer(200, b"{}", {"Docker-Content-Digest": IMAGE.digest})
    registry.script = lambda r: stolen if "/evil/" in r.path else None
    with pytest.raises(ImageError, match="is damaged"):
        await store.pull(f"{registry.host}/evil/a:1")


async def test_a_layer_that_a_killed_worker_did_not_tell_of_is_replaced(
    store: ImageStore, registry: FakeRegistry, tmp_path: Path
) -> None:
    reference = registry.add("a", "1", IMAGE)
    image = await store.pull(reference)
    await store.remove(reference)
    (image.layers[0] / "junk").mkdir(parents=True)
    again = await store.pull(reference)
    assert sorted(p.name for p in again.layers[0].iterdir()) == ["etc", "old"]


async def test_an_image_without_layers_is_kept_and_not_run(
    store: ImageStore, registry: FakeRegistry
) -> None:
    image = await store.pull(registry.add("a", "1", build_image()))
    with pytest.raises(ImageError, match="has no layers"):
        await store.prepare("c1", image)


async def test_a_second_pull_costs_one_head(store: ImageStore, registry: FakeRegistry) -> None:
    reference = registry.add("a", "1", IMAGE)
    image = await store.pull(reference)
    registry.requests.clear()
    assert await store.pull(reference) == image
    assert [r.method for r in registry.requests] == ["HEAD"]
    assert await store.pull(image.repo_digests[0]) == image


async def test_a_moved_tag_goes_to_the_new_image(store: ImageStore, registry: FakeRegistry) -> None:
    reference = registry.add("a", "1", IMAGE)
    old = await store.pull(reference)
    new = await store.pull(registry.add("a", "1", build_image(BASE)))
    assert new.repo_tags == (reference,)
    assert store.find(reference) == new
    left = store.find(old.id)
    assert left is not None
    assert left.repo_tags == ()
    assert left.repo_digests == old.repo_digests


async def test_pulls_of_one_reference_are_one(store: ImageStore, registry: FakeRegistry) -> None:
    reference = registry.add("a", "1", IMAGE)
    images = await asyncio.gather(*(store.pull(reference) for _ in range(5)))
    assert len(set(map(id, images))) == 1
    assert len([r for r in registry.requests if r.path.endswith("/1")]) == 1


async def test_a_layer_of_two_images_is_fetched_once(
    store: ImageStore, registry: FakeRegistry
) -> None:
    other = build_image(BASE, [File("other")])
    one, two = await asyncio.gather(
        store.pull(registry.add("a", "1", IMAGE)), store.pull(registry.add("b", "1", other))
    )
    assert one.layers[0] == two.layers[0]
    assert len([p for p in blobs(registry) if p.endswith(digest_of(IMAGE.layers[0]))]) == 1


async def test_other_credentials_are_another_pull(
    store: ImageStore, registry: FakeRegistry
) -> None:
    """Who may not read the image does not get it by asking while someone who may is pulling."""
    reference = registry.add("a", "1", IMAGE)
    ask = Answer(401, headers={"WWW-Authenticate": "Basic realm=x"})
    registry.script = lambda r: None if "Authorization" in r.headers else ask
    allowed, refused = await asyncio.gather(
        store.pull(reference, Credentials(username="a", password="b")),
        store.pull(reference),
        return_exceptions=True,
    )
    assert not isinstance(allowed, BaseException)
    assert isinstance(refused, ImageError)
    assert "add an imagePullSecret" in str(refused)


async def test_a_layer_stays_while_image_or_container_needs_it(
    store: ImageStore, registry: FakeRegistry, tmp_path: Path
) -> None:
    empty = census(tmp_path / "state")
    reference = registry.add("a", "1", IMAGE)
    one = await store.pull(reference)
    await store.pull(registry.add("b", "1", build_image(BASE, [File("other")])))
    snapshot = await store.prepare("c1", one)
    assert await store.prepare("c1", one) == snapshot
    assert snapshot.lowers == one.layers[::-1]

    await store.remove(one.id)
    assert store.find(reference) is None
    assert all(layer.exists() for layer in one.layers)

    await store.discard("c1")
    await store.discard("c1")
    assert [layer.exists() for layer in one.layers] == [True, False]

    await store.remove(f"{registry.host}/b:1")
    await store.remove(f"{registry.host}/b:1")
    assert census(tmp_path / "state") == empty
    with pytest.raises(NotFoundError, match="pull it again"):
        await store.prepare("c2", one)


async def test_containers_survive_a_restart_with_their_layers(
    store: ImageStore, registry: FakeRegistry, tmp_path: Path
) -> None:
    image = await store.pull(registry.add("a", "1", IMAGE))
    snapshot = await store.prepare("c1", image)
    (snapshot.upper / "written").write_bytes(b"x" * 10_000)
    await store.remove(image.id)
    (tmp_path / "state/snapshots/half").mkdir()

    again = ImageStore(tmp_path / "state", tmp_path / "certs.d")
    await again.recover()

    # Half made or damaged: only the engine can tell, so until it has said so nothing goes.
    assert set(again.containers()) == {"c1", "half"}
    await again.discard("half")
    assert again.containers() == ("c1",)
    assert all(layer.exists() for layer in image.layers)
    usage = await again.usage("c1")
    assert (usage.used_bytes, usage.inodes_used) == (12288, 1)
    assert (await again.fs_usage()).used_bytes > usage.used_bytes
    await again.discard("c1")
    assert not any(layer.exists() for layer in image.layers)
    with pytest.raises(NotFoundError):
        await again.usage("c1")


async def test_an_upper_layer_begins_as_the_images_root(
    store: ImageStore, registry: FakeRegistry
) -> None:
    image = await store.pull(registry.add("a", "1", build_image([folder("./", 0o1777, uid=5)])))
    upper = (await store.prepare("c1", image)).upper.stat()
    assert (stat.S_IMODE(upper.st_mode), upper.st_uid) == (0o1777, 5)
