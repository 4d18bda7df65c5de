"""Pulls and loads that fail, are cancelled, meet each other or the wrong hands."""

from __future__ import annotations

import asyncio
import gzip
import json
import os
import subprocess
import sys
import tarfile
import threading
from pathlib import Path

import pytest

from noderuntime.errors import ImageError, RegistryUnavailableError
from noderuntime.images.manifest import architecture
from noderuntime.images.ports import Credentials
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
from tests.root.images.trees import census

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


async def test_a_wrong_hosts_toml_is_told_by_its_name(store: ImageStore, tmp_path: Path) -> None:
    (tmp_path / "certs.d/_default").mkdir(parents=True)
    (tmp_path / "certs.d/_default/hosts.toml").write_text("colour = 1")
    with pytest.raises(ImageError, match=r"_default/hosts.toml: unknown key colour"):
        await store.pull("quay.io/a")


async def test_a_full_disk_is_told_and_leaves_nothing(
    registry: FakeRegistry, tmp_path: Path
) -> None:
    large = build_image([File("zeros", bytes(8 << 20))])
    small = build_image([File("f", b"x")])
    disk = tmp_path / "disk"
    disk.mkdir()
    subprocess.run(["mount", "-t", "tmpfs", "-o", "size=2m", "nr-images", str(disk)], check=True)
    try:
        store = ImageStore(disk / "state", tmp_path)
        await store.recover()
        empty = census(disk)
        with pytest.raises(ImageError, match="no space left on the node's disk"):
            await store.pull(registry.add("a", "1", large))
        assert census(disk) == empty
        assert (await store.pull(registry.add("b", "1", small))).id == small.id
    finally:
        subprocess.run(["umount", str(disk)], check=True)


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
    credentials = Credentials(username="me", password="hunter2")
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
    with pytest.raises(ImageError, match=r"the copy that came is damaged|bytes its manifest says"):
        await store.load(path, "a")
    blob.unlink()
    blob.symlink_to("/etc/passwd")
    with pytest.raises(ImageError, match="not a whole OCI image layout"):
        await store.load(path, "a")
    with pytest.raises(ImageError, match="not a whole OCI image layout"):
        await store.load(tmp_path / "none", "a")


async def test_names_that_are_no_ids_are_refused(store: ImageStore, registry: FakeRegistry) -> None:
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
