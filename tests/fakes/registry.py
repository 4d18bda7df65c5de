"""A registry in a thread that answers what a test scripts, and images made of a few lines.

Not a model of a good registry (tests/root runs a real one): for what a hostile or broken one says.
"""

from __future__ import annotations

import gzip
import hashlib
import io
import json
import tarfile
import threading
import time
from collections.abc import Callable, Generator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

from noderuntime.images.artifact import SECCOMP_TYPE

MANIFEST = "application/vnd.oci.image.manifest.v1+json"
INDEX = "application/vnd.oci.image.index.v1+json"
CONFIG = "application/vnd.oci.image.config.v1+json"
LAYER = "application/vnd.oci.image.layer.v1.tar+gzip"


def digest_of(data: bytes) -> str:
    return f"sha256:{hashlib.sha256(data).hexdigest()}"


@dataclass(frozen=True)
class File:
    """One entry of a layer; ``kind`` is tarfile's type."""

    name: str
    data: bytes = b""
    kind: bytes = tarfile.REGTYPE
    link: str = ""
    mode: int = 0o644
    uid: int = 0
    gid: int = 0
    device: tuple[int, int] = (0, 0)
    mtime: float = 1_600_000_000
    pax: dict[str, str] = field(default_factory=dict[str, str])


def folder(name: str, mode: int = 0o755, **values: object) -> File:
    return File(name, kind=tarfile.DIRTYPE, mode=mode, **values)  # type: ignore[arg-type]


def make_tar(files: Sequence[File]) -> bytes:
    """Return a pax archive of ``files``, with just these entries."""
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode="w", format=tarfile.PAX_FORMAT) as archive:
        for file in files:
            info = tarfile.TarInfo(file.name)
            info.type, info.linkname, info.mode = file.kind, file.link, file.mode
            info.uid, info.gid, info.mtime = file.uid, file.gid, file.mtime
            info.devmajor, info.devminor = file.device
            info.size = len(file.data)
            info.pax_headers = dict(file.pax)
            archive.addfile(info, io.BytesIO(file.data))
    return buffer.getvalue()


@dataclass(kw_only=True)
class BuiltImage:
    """An image's blobs by digest, and its manifest."""

    manifest: bytes
    config: bytes
    blobs: dict[str, bytes]
    layers: tuple[bytes, ...]

    @property
    def digest(self) -> str:
        return digest_of(self.manifest)

    @property
    def id(self) -> str:
        return digest_of(self.config)

    def write_layout(self, path: Path, *, name: str = "") -> Path:
        """Write an OCI layout folder."""
        blobs = path / "blobs" / "sha256"
        blobs.mkdir(parents=True)
        for digest, data in {**self.blobs, self.digest: self.manifest}.items():
            (blobs / digest.removeprefix("sha256:")).write_bytes(data)
        entry: dict[str, object] = {
            "mediaType": MANIFEST,
            "digest": self.digest,
            "size": len(self.manifest),
        }
        if name:
            entry["annotations"] = {"org.opencontainers.image.ref.name": name}
        (path / "oci-layout").write_text('{"imageLayoutVersion": "1.0.0"}')
        (path / "index.json").write_text(json.dumps({"schemaVersion": 2, "manifests": [entry]}))
        return path


def build_image(
    *layers: Sequence[File] | bytes,
    config: dict[str, object] | None = None,
    compress: Callable[[bytes], bytes] = lambda data: gzip.compress(data, 1, mtime=0),
    diff_ids: Sequence[str] | None = None,
) -> BuiltImage:
    """Make an image of layers given as entries or as plain tar bytes."""
    tars = [layer if isinstance(layer, bytes) else make_tar(layer) for layer in layers]
    packed = [compress(tar) for tar in tars]
    document = {
        "architecture": "amd64",
        "os": "linux",
        "config": config or {},
        "rootfs": {"type": "layers", "diff_ids": list(diff_ids or map(digest_of, tars))},
    }
    config_data = json.dumps(document).encode()
    blobs = {digest_of(data): data for data in (config_data, *packed)}
    manifest = {
        "schemaVersion": 2,
        "mediaType": MANIFEST,
        "config": _descriptor(CONFIG, config_data),
        "layers": [_descriptor(LAYER, data) for data in packed],
    }
    return BuiltImage(
        manifest=json.dumps(manifest).encode(),
        config=config_data,
        blobs=blobs,
        layers=tuple(packed),
    )


def build_artifact(layers: tuple[bytes, ...], **changes: object) -> BuiltImage:
    """Return a seccomp profile as KEP-6061 has it; ``changes`` are of its manifest."""
    config = b"{}"
    described = [_descriptor("application/json", layer) for layer in layers]
    manifest = {
        "schemaVersion": 2,
        "mediaType": MANIFEST,
        "artifactType": SECCOMP_TYPE,
        "config": _descriptor(SECCOMP_TYPE, config),
        "layers": described,
        **changes,
    }
    data = json.dumps(manifest).encode()
    blobs = {digest_of(each): each for each in (config, data, *layers)}
    return BuiltImage(manifest=data, config=config, blobs=blobs, layers=layers)


def _descriptor(media_type: str, data: bytes) -> dict[str, object]:
    return {"mediaType": media_type, "digest": digest_of(data), "size": len(data)}


@dataclass
class Answer:
    """What the registry sends. ``cut``: only so many bytes of the body, then it hangs up."""

    status: int = 200
    body: bytes = b""
    headers: dict[str, str] = field(default_factory=dict[str, str])
    cut: int | None = None
    pace_s: float = 0  # sends a byte at a time, each after a pause


@dataclass(frozen=True)
class Request:
    """What it was asked."""

    method: str
    path: str
    headers: dict[str, str]
    body: bytes = b""


Script = Callable[[Request], Answer | None]


class FakeRegistry:
    """Serves images; ``script`` sees each request first and may answer in its own way."""

    def __init__(self) -> None:
        self.requests: list[Request] = []
        self.manifests: dict[str, tuple[bytes, str]] = {}
        self.blobs: dict[str, bytes] = {}
        self.script: Script = lambda request: None
        registry = self

        class Handler(BaseHTTPRequestHandler):
            protocol_version = "HTTP/1.1"

            def log_message(self, format: str, *args: object) -> None:
                pass

            def _serve(self) -> None:
                length = int(self.headers.get("Content-Length") or 0)
                sent = self.rfile.read(length)
                request = Request(self.command, self.path, dict(self.headers.items()), sent)
                registry.requests.append(request)
                answer = registry.script(request) or registry.answer(request)
                self.send_response(answer.status)
                headers = {"Content-Length": str(len(answer.body)), **answer.headers}
                for name, value in headers.items():
                    self.send_header(name, value)
                self.end_headers()
                body = b"" if self.command == "HEAD" else answer.body[: answer.cut]
                if answer.pace_s:
                    for byte in body:
                        time.sleep(answer.pace_s)
                        self.wfile.write(bytes((byte,)))
                else:
                    self.wfile.write(body)
                if answer.cut is not None:
                    self.close_connection = True

            do_GET = do_HEAD = do_POST = _serve  # noqa: N815

        class Server(ThreadingHTTPServer):
            daemon_threads = True

            def handle_error(self, request: object, client_address: object) -> None:
                pass  # clients are killed in tests

        self._server = Server(("127.0.0.1", 0), Handler)
        self._thread = threading.Thread(target=self._server.serve_forever, args=(0.01,))

    @property
    def host(self) -> str:
        return f"127.0.0.1:{self._server.server_address[1]}"

    def add(self, repository: str, tag: str, image: BuiltImage) -> str:
        """Serve an image; return its reference."""
        self.blobs |= image.blobs
        for target in (tag, image.digest):
            self.manifests[f"{repository}:{target}"] = (image.manifest, MANIFEST)
        return f"{self.host}/{repository}:{tag}"

    def answer(self, request: Request) -> Answer:
        """Answer as a registry does."""
        path = request.path.partition("?")[0].removeprefix("/v2/")
        if "/manifests/" in path:
            repository, _, target = path.rpartition("/manifests/")
            found = self.manifests.get(f"{repository}:{target}")
            if found is None:
                return Answer(404, b'{"errors":[{"code":"MANIFEST_UNKNOWN","message":"unknown"}]}')
            headers = {"Content-Type": found[1], "Docker-Content-Digest": digest_of(found[0])}
            return Answer(200, found[0], headers)
        data = self.blobs.get(path.rpartition("/")[2])
        if data is None:
            return Answer(404, b"{}")
        wanted = request.headers.get("Range", "")
        if wanted.startswith("bytes="):
            begin = int(wanted.removeprefix("bytes=").rstrip("-"))
            content_range = f"bytes {begin}-{len(data) - 1}/{len(data)}"
            return Answer(206, data[begin:], {"Content-Range": content_range})
        return Answer(200, data)

    @contextmanager
    def running(self) -> Generator[FakeRegistry, None, None]:
        """Serve until the end of the block."""
        self._thread.start()
        try:
            yield self
        finally:
            self._server.shutdown()
            self._server.server_close()
            self._thread.join()
