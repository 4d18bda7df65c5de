"""Debian's docker-registry (a real one), skopeo as the pusher, umoci as the other unpacker."""

from __future__ import annotations

import contextlib
import shutil
import socket
import struct
import subprocess
import tarfile
import time
from collections.abc import Callable, Generator
from pathlib import Path

import pytest

from noderuntime.errors import ImageError, RegistryUnavailableError
from noderuntime.images.ports import Credentials
from noderuntime.images.store import ImageStore
from tests.fakes.registry import BuiltImage, File, build_image, folder
from tests.root.images.trees import listing, overlay


@pytest.fixture(autouse=True, scope="module")
def programs() -> None:
    """A missing program fails these tests by name; `make root` installs all of them."""
    wanted = ("docker-registry", "skopeo", "umoci")
    missing = [program for program in wanted if shutil.which(program) is None]
    assert not missing, f"install {', '.join(missing)}, or run `make root`"


HTPASSWD = "me:$2b$04$7llL9bb7hh4NzbNECA3NKerKd85yHUb9SrtbzSkGhi0c18IATEAMS\n"
USER = Credentials(username="me", password="hunter2")
CAPABILITY = struct.pack("<IIIII", 0x02000001, 1 << 10, 0, 0, 0).decode("utf-8", "surrogateescape")
CAPABLE = {"SCHILY.xattr.security.capability": CAPABILITY}
IMAGE = build_image(
    [
        folder("./"),
        folder("etc"),
        File("etc/passwd", b"root:x:0:0::/:/bin/sh\n"),
        File("etc/gone", b"x"),
        folder("usr"),
        folder("usr/bin", mode=0o2755, gid=50),
        File("usr/bin/ping", b"\x7fELF" * 5000, mode=0o755, pax=CAPABLE),
        File("usr/bin/su", b"su", mode=0o4755, uid=0, gid=8),
        File("usr/bin/ping6", kind=tarfile.LNKTYPE, link="usr/bin/ping"),
        File("bin", kind=tarfile.SYMTYPE, link="usr/bin"),
        folder("var"),
        folder("var/old"),
        File("var/old/a"),
        folder("tmp", mode=0o1777),
        File("big", bytes(range(256)) * 20_000, uid=1000, gid=1000),
    ],
    [folder("etc"), File("etc/.wh.gone"), File("etc/new", b"y", mtime=1_600_000_001.5)],
    [folder("var"), folder("var/old"), File("var/old/.wh..wh..opq"), File("var/old/b")],
    config={"Env": ["PATH=/usr/bin"], "Entrypoint": ["/usr/bin/ping"]},
)  # fmt: skip

Push = Callable[[BuiltImage, str], str]


@contextlib.contextmanager
def running(folder: Path, port: int, extra: str = "") -> Generator[None, None, None]:
    config = folder / "config.yml"
    config.write_text(
        "version: 0.1\nlog: {level: error}\n"
        f"storage: {{filesystem: {{rootdirectory: {folder}/data}}}}\n" + extra
    )
    with (folder / "log").open("wb") as log:
        process = subprocess.Popen(
            ["docker-registry", "serve", str(config)], stdout=log, stderr=log, cwd=folder
        )
    try:
        deadline = time.monotonic() + 60
        while True:
            with contextlib.suppress(OSError), socket.create_connection(("127.0.0.1", port), 1):
                break
            assert process.poll() is None, (folder / "log").read_text()
            assert time.monotonic() < deadline
            time.sleep(0.02)
        yield
    finally:
        process.terminate()
        process.wait(10)


def free_port() -> int:
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        port: int = listener.getsockname()[1]
        return port


def push(layout: Path, reference: str, *options: str) -> None:
    source, target = f"oci:{layout}:v1", f"docker://{reference}"
    command("skopeo", "--insecure-policy", "copy", "--quiet", *options, source, target)


def command(*words: str) -> None:
    """Run a program to its end."""
    subprocess.run(words, check=True, capture_output=True)


@pytest.fixture
def layout(tmp_path: Path) -> Path:
    return IMAGE.write_layout(tmp_path / "layout", name="v1")


@pytest.fixture
def plain(tmp_path: Path, layout: Path) -> Generator[str, None, None]:
    """A registry over plain HTTP that has the image; its reference."""
    port = free_port()
    home = tmp_path / "registry"
    home.mkdir()
    with running(home, port, f"http: {{addr: 127.0.0.1:{port}}}\n"):
        push(layout, f"127.0.0.1:{port}/team/app:v1", "--dest-tls-verify=false")
        yield f"127.0.0.1:{port}/team/app:v1"


@pytest.fixture
def secured(tmp_path: Path, layout: Path) -> Generator[str, None, None]:
    """A registry with TLS and htpasswd; its CA is at ``registry/ca.crt``."""
    port = free_port()
    home = tmp_path / "registry"
    home.mkdir()
    (home / "htpasswd").write_text(HTPASSWD)
    subprocess.run(
        ["openssl", "req", "-x509", "-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:P-256",
         "-nodes", "-keyout", "key.pem", "-out", "ca.crt", "-days", "2", "-subj", "/CN=registry",
         "-addext", "subjectAltName=IP:127.0.0.1"],
        cwd=home, check=True, capture_output=True,
    )  # fmt: skip
    extra = (
        f"http: {{addr: 127.0.0.1:{port},"
        f" tls: {{certificate: {home}/ca.crt, key: {home}/key.pem}}}}\n"
        f"auth: {{htpasswd: {{realm: test, path: {home}/htpasswd}}}}\n"
    )
    with running(home, port, extra):
        push(
            layout,
            f"127.0.0.1:{port}/team/app:v1",
            "--dest-tls-verify=false",
            "--dest-creds=me:hunter2",
        )
        yield f"127.0.0.1:{port}/team/app:v1"


async def test_an_image_from_a_real_registry_is_the_tree_that_umoci_makes(
    store: ImageStore, plain: str, layout: Path, tmp_path: Path
) -> None:
    image = await store.pull(plain)

    command("umoci", "unpack", "--image", f"{layout}:v1", str(tmp_path / "bundle"))
    expected = listing(tmp_path / "bundle/rootfs")
    with overlay(image.layers[::-1], tmp_path / "merged") as merged:
        found = listing(merged)
    assert set(found) == set(expected)
    assert "var/old/b" in found
    for name, values in expected.items():
        assert found[name] == values, name


async def test_pulls_by_tag_and_digest_and_again(store: ImageStore, plain: str) -> None:
    image = await store.pull(plain)
    assert image.id == IMAGE.id
    assert await store.pull(plain) == image
    assert await store.pull(image.repo_digests[0]) == image
    await store.remove(image.id)
    again = await store.pull(image.repo_digests[0])
    assert (again.id, again.repo_tags) == (image.id, ())


async def test_what_is_not_there_is_told(store: ImageStore, plain: str) -> None:
    with pytest.raises(ImageError, match=r"has no image .*:v2: check name and tag"):
        await store.pull(plain.replace(":v1", ":v2"))
    with pytest.raises(ImageError, match="has no image"):
        await store.pull(plain.replace("team/app", "team/none"))


async def test_a_registry_with_tls_and_passwords(
    store: ImageStore, secured: str, tmp_path: Path
) -> None:
    host = secured.partition("/")[0]
    certs = tmp_path / "certs.d" / host
    certs.mkdir(parents=True)
    hosts = certs / "hosts.toml"

    hosts.write_text(f'server = "https://{host}"\n')
    with pytest.raises(RegistryUnavailableError, match=r"(?i)certificate"):
        await store.pull(secured, USER)

    hosts.write_text(f'server = "https://{host}"\nca = "{tmp_path}/registry/ca.crt"\n')
    with pytest.raises(ImageError, match="wants credentials for team/app"):
        await store.pull(secured)
    wrong = Credentials(username="me", password="wrong")
    with pytest.raises(ImageError, match="does not accept the credentials"):
        await store.pull(secured, wrong)
    assert (await store.pull(secured, USER)).id == IMAGE.id

    await store.remove(secured)
    hosts.write_text(f'server = "https://{host}"\nskip_verify = true\n')
    assert (await store.pull(secured, USER)).id == IMAGE.id


async def test_a_registry_is_reached_by_its_mirror(
    store: ImageStore, plain: str, tmp_path: Path
) -> None:
    certs = tmp_path / "certs.d" / "_default"
    certs.mkdir(parents=True)
    (certs / "hosts.toml").write_text(
        '[host."http://127.0.0.1:1"]\n' + f'[host."http://{plain.partition("/")[0]}"]\n'
    )
    image = await store.pull("registry.invalid/team/app:v1")
    assert image.id == IMAGE.id
    assert image.repo_tags == ("registry.invalid/team/app:v1",)


async def test_docker_manifests_and_indexes_are_taken(
    store: ImageStore, plain: str, layout: Path
) -> None:
    docker = plain.replace(":v1", ":docker")
    push(layout, docker, "--dest-tls-verify=false", "--format=v2s2")
    image = await store.pull(docker)
    assert image.layers == (await store.pull(plain)).layers
    assert image.config.entrypoint == ("/usr/bin/ping",)


async def test_a_layout_that_skopeo_wrote_is_loaded(
    store: ImageStore, layout: Path, tmp_path: Path
) -> None:
    archive = tmp_path / "image.tar"
    source, target = f"oci:{layout}:v1", f"oci-archive:{archive}:v1"
    command("skopeo", "--insecure-policy", "copy", "--quiet", source, target)
    assert (await store.load(archive, "example.com/app:v1")).config.env == ("PATH=/usr/bin",)


async def test_zstd_layers_from_a_real_pusher(store: ImageStore, plain: str, layout: Path) -> None:
    zstd = plain.replace(":v1", ":zstd")
    push(
        layout,
        zstd,
        "--dest-tls-verify=false",
        "--dest-compress-format=zstd",
        "--dest-compress",
        "--format=oci",
    )
    image = await store.pull(zstd)
    assert image.layers == (await store.pull(plain)).layers
