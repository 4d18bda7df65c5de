import gzip
import hashlib
import http.client
import http.server
import json
import os
import ssl
import tarfile
import threading
import time
from pathlib import Path
from typing import ClassVar

import pytest

from e2e.cluster.image import oci, push, rootfs
from e2e.cluster.image.layer import write_layer
from e2e.cluster.state import ClusterError


def tree(folder: Path) -> Path:
    (folder / "usr/bin").mkdir(parents=True)
    (folder / "usr/bin/tool").write_text("#!/bin/sh\n")
    (folder / "usr/bin/tool").chmod(0o755)
    (folder / "bin").symlink_to("usr/bin")
    (folder / "data").mkdir()
    (folder / "data/file").write_text("x")
    return folder


def test_two_equal_trees_have_one_digest_whatever_their_times(tmp_path: Path) -> None:
    one, other = tree(tmp_path / "one"), tree(tmp_path / "other")
    os.utime(other / "usr/bin/tool", (1, time.time() - 1e6))

    first = write_layer(one, tmp_path / "1.tar.gz")
    second = write_layer(other, tmp_path / "2.tar.gz")

    assert first.digest == second.digest
    assert first.diff_id == second.diff_id
    assert first.size_bytes == (tmp_path / "1.tar.gz").stat().st_size


def test_a_layer_has_root_for_owner_but_where_it_is_said(tmp_path: Path) -> None:
    layer = write_layer(tree(tmp_path / "one"), tmp_path / "1.tar.gz", {"/data": 999})

    with tarfile.open(layer.path) as tar:
        owners = {entry.name: (entry.uid, entry.gid, entry.mtime) for entry in tar}
        assert tar.getmember("bin").linkname == "usr/bin"
        assert tar.getmember("usr/bin/tool").mode == 0o755
    assert owners["data"] == owners["data/file"] == (999, 999, 0)
    assert owners["usr/bin/tool"] == (0, 0, 0)


def test_the_digests_are_those_of_the_file_and_of_the_tar_in_it(tmp_path: Path) -> None:
    layer = write_layer(tree(tmp_path / "one"), tmp_path / "1.tar.gz")
    packed = layer.path.read_bytes()

    assert layer.digest == f"sha256:{hashlib.sha256(packed).hexdigest()}"
    assert layer.diff_id == f"sha256:{hashlib.sha256(gzip.decompress(packed)).hexdigest()}"


def test_a_file_with_two_names_is_one_in_the_layer(tmp_path: Path) -> None:
    folder = tree(tmp_path / "one")
    (folder / "usr/bin/also").hardlink_to(folder / "usr/bin/tool")

    layer = write_layer(folder, tmp_path / "1.tar.gz")

    with tarfile.open(layer.path) as tar:
        first, second = tar.getmember("usr/bin/also"), tar.getmember("usr/bin/tool")
    assert first.isreg()
    assert (second.type, second.linkname, second.mode) == (tarfile.LNKTYPE, first.name, 0o755)


def test_a_pipe_is_not_for_an_image(tmp_path: Path) -> None:
    os.mkfifo(tree(tmp_path / "one") / "pipe")

    with pytest.raises(ClusterError, match="not for an image"):
        write_layer(tmp_path / "one", tmp_path / "1.tar.gz")


def layout(folder: Path) -> tuple[Path, str]:
    layer = write_layer(tree(folder / "tree"), folder / "1.tar.gz")
    config = oci.Config(user="1:1", command=("tool",), environment=("PATH=/bin",))
    return folder / "image", oci.write_layout(folder / "image", "v1", [layer], config)


def test_a_layout_is_whole_and_names_its_image(tmp_path: Path) -> None:
    folder, digest = layout(tmp_path)

    found, manifest = oci.read_manifest(folder)

    assert found == digest
    for blob in (manifest["config"], *manifest["layers"]):
        content = oci.blob_path(folder, blob["digest"]).read_bytes()
        assert len(content) == blob["size"]
        assert blob["digest"] == f"sha256:{hashlib.sha256(content).hexdigest()}"
    config = json.loads(oci.blob_path(folder, manifest["config"]["digest"]).read_bytes())
    assert config["config"]["User"] == "1:1"
    assert len(config["rootfs"]["diff_ids"]) == 1


def test_a_lock_without_a_package_is_without_its_hashes() -> None:
    lock = "# note\na==1 \\\n    --hash=1\nbc==2 \\\n    --hash=2\nb==3\n"

    assert rootfs.without(lock, ("bc",)) == "# note\na==1 \\\n    --hash=1\nb==3\n"


class _Registry(http.server.BaseHTTPRequestHandler):
    """Just enough of the distribution-spec to be pushed to."""

    protocol_version = "HTTP/1.1"
    blobs: ClassVar[dict[str, bytes]]
    manifests: ClassVar[dict[str, bytes]]

    def do_HEAD(self) -> None:
        name = self.path.rpartition("/")[2]
        content = self.blobs.get(name) or self.manifests.get(name)
        self.answer(200 if content else 404, content or b"")

    def do_POST(self) -> None:
        self.answer(202, b"", Location=f"http://{self.headers['Host']}/v2/x/up?state=1")

    def do_PUT(self) -> None:
        content = self.rfile.read(int(self.headers["Content-Length"]))
        if "/manifests/" in self.path:
            self.manifests[self.path.rpartition("/")[2]] = content
        else:
            self.blobs[self.path.partition("digest=")[2]] = content
        self.answer(201, b"")

    def answer(self, status: int, content: bytes, **headers: str) -> None:
        self.send_response(status)
        self.send_header("Content-Length", "0")
        if content:
            digest = f"sha256:{hashlib.sha256(content).hexdigest()}"
            self.send_header("Docker-Content-Digest", digest)
        for name, value in headers.items():
            self.send_header(name, value)
        self.end_headers()

    def log_message(self, format: str, *args: object) -> None:
        return


def test_a_push_sends_what_is_missing_and_a_second_one_nothing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    class Handler(_Registry):
        blobs: ClassVar[dict[str, bytes]] = {}
        manifests: ClassVar[dict[str, bytes]] = {}

    class Plain(http.client.HTTPConnection):
        def __init__(self, host: str, *, timeout: float, context: object) -> None:
            super().__init__(host, timeout=timeout)

    monkeypatch.setattr(http.client, "HTTPSConnection", Plain)
    folder, digest = layout(tmp_path)
    with http.server.HTTPServer(("127.0.0.1", 0), Handler) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        registry = f"127.0.0.1:{server.server_port}"
        tls = ssl.create_default_context()
        first = push.push(folder, registry, "tool", "v1", tls)
        second = push.push(folder, registry, "tool", "v1", tls)
        server.shutdown()

    assert (first, second) == (True, False)
    assert hashlib.sha256(Handler.manifests["v1"]).hexdigest() == digest.partition(":")[2]
    assert len(Handler.blobs) == 2


def test_a_record_has_only_what_is_in_the_image(tmp_path: Path) -> None:
    folder = tmp_path / "httpx-1.dist-info"
    folder.mkdir()
    (tmp_path / "httpx.py").touch()
    record = folder / "RECORD"
    kept = "httpx.py,sha256=a,1\nhttpx-1.dist-info/RECORD,,\n"
    record.write_text(f"../../bin/httpx,sha256=of-a-path,9\n{kept}tests/test_it.py,sha256=b,2\n")
    rootfs.record_what_is_there(tmp_path)
    assert record.read_text() == kept
