"""The image of the benchmark, and a registry on loopback that serves it to both runtimes.

Two layers of nothing but what is measured: Debian's static busybox, and for containerd's pause
container a program of a few bytes that only waits, as the real pause image does.
"""

from __future__ import annotations

import json
import shutil
import struct
import threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Final

from e2e.cluster.image import oci
from e2e.cluster.image.layer import write_layer

BUSYBOX: Final = "bench/busybox"
PAUSE: Final = "bench/pause"
TAG: Final = "1"
_APPLETS: Final = ("sh", "sleep", "true")


def write_images(folder: Path, busybox: Path) -> dict[str, Path]:
    """Write both OCI layouts; returns name → layout."""
    root = folder / "busybox-root"
    (root / "bin").mkdir(parents=True)
    for name in ("etc", "proc", "sys", "dev", "tmp"):
        (root / name).mkdir()
    (root / "etc" / "passwd").write_text("root:x:0:0:root:/:/bin/sh\n")
    shutil.copyfile(busybox, root / "bin" / "busybox")
    (root / "bin" / "busybox").chmod(0o755)
    for applet in _APPLETS:
        (root / "bin" / applet).symlink_to("busybox")
    pause = folder / "pause-root"
    pause.mkdir()
    (pause / "pause").write_bytes(pause_program())
    (pause / "pause").chmod(0o755)
    environment = ("PATH=/bin",)
    made: dict[str, Path] = {}
    for name, top, config in (
        (BUSYBOX, root, oci.Config(command=("/bin/sh",), environment=environment)),
        (PAUSE, pause, oci.Config(entrypoint=("/pause",), environment=environment)),
    ):
        layer = write_layer(top, folder / f"{top.name}.tar.gz")
        made[name] = folder / "layouts" / name
        made[name].parent.mkdir(parents=True, exist_ok=True)
        oci.write_layout(made[name], TAG, [layer], config)
    return made


def pause_program() -> bytes:
    """An ELF file for x86-64 that calls pause(2) for ever; SIGTERM ends it. elf(5)."""
    base, header = 0x400000, 64 + 56
    code = bytes.fromhex("b8220000000f05ebf7")  # mov eax, 34; syscall; jmp to the start
    size = header + len(code)
    ident = b"\x7fELF\x02\x01\x01" + bytes(9)
    elf = struct.pack("<HHIQQQIHHHHHH", 2, 62, 1, base + header, 64, 0, 0, 64, 56, 1, 0, 0, 0)
    load = struct.pack("<IIQQQQQQ", 1, 5, 0, base, base, size, size, 0x1000)
    return ident + elf + load + code


class Registry:
    """Serves OCI layouts to read. Distribution spec: pulls only, no login, plain HTTP."""

    def __init__(self, layouts: dict[str, Path]) -> None:
        class Handler(BaseHTTPRequestHandler):
            protocol_version = "HTTP/1.1"

            def do_GET(self) -> None:
                _answer(self, layouts)

            def do_HEAD(self) -> None:
                _answer(self, layouts)

            def log_message(self, format: str, *args: object) -> None:
                pass

        self._server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self.address: Final = f"127.0.0.1:{self._server.server_address[1]}"
        threading.Thread(target=self._server.serve_forever, daemon=True).start()

    def close(self) -> None:
        self._server.shutdown()
        self._server.server_close()


def _answer(handler: BaseHTTPRequestHandler, layouts: dict[str, Path]) -> None:
    found = _find(handler.path.partition("?")[0], layouts)
    if found is None:
        handler.send_response(404)
        handler.send_header("Content-Length", "0")
        handler.end_headers()
        return
    media_type, digest, content = found
    handler.send_response(200)
    handler.send_header("Content-Type", media_type)
    handler.send_header("Content-Length", str(len(content)))
    if digest:
        handler.send_header("Docker-Content-Digest", digest)
    handler.end_headers()
    if handler.command == "GET":
        handler.wfile.write(content)


def _find(path: str, layouts: dict[str, Path]) -> tuple[str, str, bytes] | None:
    if path == "/v2/":
        return "application/json", "", b"{}"
    for name, layout in layouts.items():
        for kind in ("manifests", "blobs"):
            prefix = f"/v2/{name}/{kind}/"
            if not path.startswith(prefix):
                continue
            digest = path.removeprefix(prefix)
            named = json.loads((layout / "index.json").read_bytes())["manifests"][0]
            if digest == named["annotations"]["org.opencontainers.image.ref.name"]:
                digest = named["digest"]
            file = oci.blob_path(layout, digest)
            if file.is_file():
                media = oci.MANIFEST if kind == "manifests" else "application/octet-stream"
                return media, digest, file.read_bytes()
    return None
