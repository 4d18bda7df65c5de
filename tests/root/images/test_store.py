"""The whole store, with its worker and jail, against a scripted registry."""

from __future__ import annotations

import asyncio
import gzip
import json
import os
import stat
import subprocess
import sys
import tarfile
import threading
from pathlib import Path

import pytest

from noderuntime.errors import ImageError, NotFoundError, RegistryUnavailableError
from noderuntime.images.manifest import architecture
from noderuntime.images.ports import Credentials, Images
from noderuntime.images.store import ImageStore
from tests.fakes.registry import (
    INDEX,
    MANIFEST,
    Answer,
    FakeRegistry,
    File,
    Request,
    build_image,
    digest_of,
    folder,
)
from tests.root.images.trees import census, overlay

BASE = [folder("etc", mode=0o750, uid=7), File("etc/a", b"1"), File("etc/b", b"2"), folder("old"), File("old/x")]
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


async def test_folders_above_a_root_let_users_pass_and_not_look(
    store: ImageStore, registry: FakeRegistry, tmp_path: Path
) -> None:
    image = await store.pull(registry.add("a", "1", IMAGE))
    snapshot = await store.prepare("c1", image)
    for path in (*snapshot.lowers, snapshot.upper):
        for parent in path.parents:
            if parent == tmp_path:
                break
            assert stat.S_IMODE(parent.stat().st_mode) == 0o711, parent


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
        store.pull(reference, Credentials(username="a", password="b")),  # noqa: S106
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


BROKEN = {
    "another diff ID": (build_image(BASE, diff_ids=["sha256:" + "0" * 64]), "its config says"),
    "more layers than diff IDs": (
        build_image(BASE, TOP, diff_ids=["sha256:" + "0" * 64]),
        "its config has 1 layers, its manifest 2",
    ),
    "a hostile entry in the second layer": (
        build_image(BASE, [File("../x")]),
        r"layer sha256:\w+: entry '\.\./x' of the layer leaves",
    ),
    "no tar": (build_image(b"no" * 5000), "no tar archive"),
}


@pytest.mark.parametrize("name", BROKEN)
async def test_a_broken_image_is_refused_and_leaves_no_image(
    store: ImageStore, registry: FakeRegistry, tmp_path: Path, name: str
) -> None:
    empty = census(tmp_path / "state")
    image, message = BROKEN[name]
    with pytest.raises(ImageError, match=message):
        await store.pull(registry.add("a", "1", image))
    assert store.list() == ()
    again = ImageStore(tmp_path / "state", tmp_path / "certs.d")
    await again.recover()
    assert census(tmp_path / "state") == empty


async def test_layers_below_the_failed_one_need_not_be_fetched_again(
    store: ImageStore, registry: FakeRegistry
) -> None:
    reference = registry.add("a", "1", IMAGE)
    bad = digest_of(IMAGE.layers[1])
    registry.script = lambda r: Answer(404) if r.path.endswith(bad) else None
    with pytest.raises(ImageError, match="has lost blob"):
        await store.pull(reference)
    registry.script = lambda r: None
    registry.requests.clear()
    await store.pull(reference)
    assert not [p for p in blobs(registry) if p.endswith(digest_of(IMAGE.layers[0]))]


async def test_an_index_gives_this_machines_image(
    store: ImageStore, registry: FakeRegistry
) -> None:
    registry.add("a", "1", IMAGE)

    def entry(arch: str, digest: str) -> dict[str, object]:
        platform = {"os": "linux", "architecture": arch}
        return {"mediaType": MANIFEST, "digest": digest, "size": 10, "platform": platform}

    index = json.dumps(
        {
            "schemaVersion": 2,
            "manifests": [
                entry("riscv64", "sha256:" + "0" * 64),
                entry(architecture(), IMAGE.digest),
            ],
        }
    ).encode()
    registry.manifests["a:1"] = (index, INDEX)
    image = await store.pull(f"{registry.host}/a:1")
    assert image.id == IMAGE.id
    assert image.repo_digests == (f"{registry.host}/a@{digest_of(index)}",)

    registry.manifests["a:2"] = (index.replace(architecture().encode(), b"s390x"), INDEX)
    with pytest.raises(ImageError, match="it has linux/riscv64, linux/s390x"):
        await store.pull(f"{registry.host}/a:2")


async def test_an_unreachable_registry_has_the_kubelets_error(store: ImageStore) -> None:
    with pytest.raises(RegistryUnavailableError) as caught:
        await store.pull("127.0.0.1:1/a")
    assert caught.value.for_kubelet().startswith("RegistryUnavailable: ")


async def test_a_cancelled_pull_ends_its_processes_and_leaves_nothing(
    store: ImageStore, registry: FakeRegistry, tmp_path: Path
) -> None:
    empty = census(tmp_path / "state")
    reached, release = threading.Event(), threading.Event()

    def script(request: Request) -> Answer | None:
        if request.path.endswith(digest_of(IMAGE.layers[1])):
            reached.set()
            release.wait(10)
        return None

    registry.script = script
    pull = asyncio.get_running_loop().create_task(store.pull(registry.add("a", "1", IMAGE)))
    assert await asyncio.to_thread(reached.wait, 10)
    pull.cancel()
    with pytest.raises(asyncio.CancelledError):
        await pull
    release.set()
    again = ImageStore(tmp_path / "state", tmp_path / "certs.d")
    await again.recover()
    assert census(tmp_path / "state") == empty
    registry.script = lambda r: None
    assert (await store.pull(f"{registry.host}/a:1")).id == IMAGE.id


async def test_no_secret_is_in_the_workers_arguments_or_environment(
    store: ImageStore, registry: FakeRegistry
) -> None:
    seen: list[bytes] = []

    def script(request: Request) -> Answer | None:
        for process in Path("/proc").glob("[0-9]*"):
            try:
                words = (process / "cmdline").read_bytes()
                if b"noderuntime.images.worker" in words:
                    seen.append(words + (process / "environ").read_bytes())
            except OSError:
                continue
        return None

    registry.script = script
    credentials = Credentials(username="me", password="hunter2")  # noqa: S106
    await store.pull(registry.add("a", "1", IMAGE), credentials)
    assert len(seen) >= 2
    assert not [text for text in seen if b"hunter2" in text]
    assert "hunter2" not in repr(credentials)


async def test_removing_an_image_while_it_is_pulled_keeps_the_pull(
    store: ImageStore, registry: FakeRegistry
) -> None:
    """The layers that the pull found must not be collected under it."""
    one = await store.pull(registry.add("a", "1", IMAGE))
    reached, release = threading.Event(), threading.Event()
    other = build_image(BASE, [File("other")])

    def script(request: Request) -> Answer | None:
        if request.path.endswith(digest_of(other.layers[1])):
            reached.set()
            release.wait(10)
        return None

    registry.script = script
    pull = asyncio.get_running_loop().create_task(store.pull(registry.add("b", "1", other)))
    assert await asyncio.to_thread(reached.wait, 10)
    await store.remove(one.id)
    release.set()
    two = await pull
    assert [layer.exists() for layer in (*two.layers, one.layers[1])] == [True, True, False]


@pytest.mark.parametrize("form", ["folder", "tar"])
async def test_a_layout_is_loaded_without_a_registry(
    store: ImageStore, tmp_path: Path, form: str
) -> None:
    path = IMAGE.write_layout(tmp_path / "layout", name="v1")
    if form == "tar":
        with tarfile.open(tmp_path / "layout.tar", "w") as archive:
            archive.add(path, ".")
        path = tmp_path / "layout.tar"

    image = await store.load(path, "example.com/app:v1")

    assert image.id == IMAGE.id
    assert image.repo_tags == ("example.com/app:v1",)
    assert store.find("example.com/app:v1") == image
    assert await store.load(path, "example.com/app:v1") == image


async def test_a_damaged_layout_is_refused(store: ImageStore, tmp_path: Path) -> None:
    path = IMAGE.write_layout(tmp_path / "layout")
    blob = path / "blobs/sha256" / digest_of(IMAGE.layers[0])[7:]
    blob.write_bytes(gzip.compress(b"x"))
    with pytest.raises(ImageError, match="the copy that came is damaged|bytes its manifest says"):
        await store.load(path, "a")
    blob.unlink()
    blob.symlink_to("/etc/passwd")
    with pytest.raises(ImageError, match="not a whole OCI image layout"):
        await store.load(path, "a")
    with pytest.raises(ImageError, match="not a whole OCI image layout"):
        await store.load(tmp_path / "none", "a")


async def test_names_that_are_no_ids_are_refused(
    store: ImageStore, registry: FakeRegistry
) -> None:
    image = await store.pull(registry.add("a", "1", IMAGE))
    for name in ("", "..", "a/b", "a" * 200, "ü"):
        with pytest.raises(Exception, match="is not a container's ID"):
            await store.prepare(name, image)


def test_the_runtime_imports_neither_http_nor_tar() -> None:
    code = (
        "import sys, noderuntime.images.store;"
        "print([m for m in ('urllib3', 'tarfile', 'isal', 'zstandard') if m in sys.modules])"
    )
    result = subprocess.run(
        [sys.executable, "-c", code],
        capture_output=True,
        text=True,
        check=True,
        env={**os.environ, "PYTHONPATH": str(Path(__file__).parents[3])},
    )
    assert result.stdout.strip() == "[]"
