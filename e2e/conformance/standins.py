"""Stand-ins for the images that critest 1.37 asks for, made of Debian's static busybox.

What a spec looks at in an image is made so: its user, its accounts, a tag, a process called nginx.
The registry's part of a name is left out: the runtime has our registry as the mirror of each.
"""

from __future__ import annotations

import subprocess
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Final

from e2e.cluster import debian
from e2e.cluster.image import oci
from e2e.cluster.image.layer import Layer, write_layer
from e2e.cluster.image.push import push
from e2e.cluster.layout import Layout

REGISTRIES: Final = ("registry.k8s.io", "gcr.io", "k8s.gcr.io")  # that the suite's images name
SUITE: Final = "e2e-test-images"
CRI: Final = "k8s-staging-cri-tools"
PATH: Final = "PATH=/usr/sbin:/usr/bin:/sbin:/bin"
PASSWD: Final = (
    "root:x:0:0:root:/root:/bin/sh\n"
    "www-data:x:33:33:www-data:/var/www:/bin/false\n"
    "nobody:x:65534:65534:nobody:/home:/bin/false\n"
)
GROUP: Final = "root:x:0:\nwww-data:x:33:\nnobody:x:65534:\n"
# Debian's busybox has neither `ipcs` nor `pgrep`; the suite runs `ipcs -m` and `pgrep NAME`.
_SCRIPTS: Final = {
    "ipcs": "#!/bin/sh\ncat /proc/sysvipc/shm\n",
    "pgrep": (
        "#!/bin/sh\n"
        "found=1\n"
        "for folder in /proc/[0-9]*; do\n"
        '  read -r name 2>/dev/null <"$folder/comm" || continue\n'
        '  [ "$name" = "$1" ] && echo "${folder#/proc/}" && found=0\n'
        "done\n"
        "exit $found\n"
    ),
}
# The suite looks for a process of this name, for its pid file and "master process" behind it.
_SERVER: Final = """\
#!/bin/sh
echo "{name} serves on port {port}"
echo $$ >/var/run/{name}.pid
httpd -f -v -p {port} -h /var/www &
trap 'kill $!; exit 0' TERM QUIT
wait $!
"""


@dataclass(frozen=True, slots=True)
class Image:
    """An image: its name and tag, the layers, how it starts."""

    name: str
    tag: str
    layers: Sequence[Layer]
    config: oci.Config = field(default_factory=lambda: _config("sh"))


def push_all(layout: Layout, scratch: Path, registry: str) -> None:
    """Make every image below `scratch` and push it to a registry that speaks plain HTTP."""
    for number, image in enumerate(_images(layout, scratch)):
        folder = scratch / str(number)
        oci.write_layout(folder, image.tag, image.layers, image.config)
        push(folder, registry, image.name, image.tag, tls=None)


def _images(layout: Layout, scratch: Path) -> Iterator[Image]:
    base = write_layer(_busybox(layout, scratch), scratch / "busybox.tar.gz")

    def upon(name: str, files: dict[str, tuple[int, bytes]]) -> tuple[Layer, Layer]:
        return base, _layer(scratch, name, files)

    def server(name: str, port: int) -> tuple[Layer, Layer]:
        script = _SERVER.format(name=name, port=port).encode()
        page = b"<html><body>It works!</body></html>\n"
        files = {f"usr/sbin/{name}": (0o755, script), "var/www/index.html": (0o644, page)}
        return upon(f"{name}-{port}", files)

    nginx, httpd = (_config(f"/usr/sbin/{x}", "master process") for x in ("nginx", "httpd-server"))
    yield Image(f"{SUITE}/busybox", "1.29-2", (base,))
    yield Image(f"{SUITE}/nginx", "1.14-2", server("nginx", 80), nginx)
    yield Image(f"{SUITE}/httpd", "2.4.39-4", server("httpd-server", 80), httpd)
    yield Image(f"{CRI}/hostnet-nginx-amd64", "latest", server("nginx", 12003), nginx)
    program = {"nnp": (0o4755, Path(layout.binary("nnp")).read_bytes())}
    yield Image(f"{SUITE}/nonewprivs", "1.3", upon("nnp", program), _config("/nnp"))
    yield from _users(base, upon("accounts", _accounts()))
    # Images that are pulled, listed and removed, not run: each with an ID of its own, but for the
    # three tags of one image.
    for number in ("1", "2", "3", "latest", "digest"):
        name = f"test-image-{number}"
        yield Image(f"{CRI}/{name}", "latest", upon(name, {name: (0o644, b"")}))
    for tag in ("test", "all"):
        yield Image(f"{CRI}/test-image-tag", tag, upon(f"tag-{tag}", {tag: (0o644, b"")}))
    same = upon("tags", {"same": (0o644, b"")})
    for tag in ("1", "2", "3"):
        yield Image(f"{CRI}/test-image-tags", tag, same)
    yield Image("pause", "3.9", upon("pause", {"pause": (0o644, b"")}), _config("sleep", "600"))


def _users(base: Layer, accounts: Sequence[Layer]) -> Iterator[Image]:
    for suffix, user in {
        "uid": "1002",
        "username": "www-data",
        "uid-group": "1003:1004",
        "username-group": "www-data:1004",
    }.items():
        config = oci.Config(user=user, command=("sh",), environment=(PATH,))
        yield Image(f"{CRI}/test-image-user-{suffix}", "latest", (base,), config)
    config = oci.Config(user="1000", command=("sh",), environment=(PATH,))
    yield Image(f"{CRI}/test-image-predefined-group", "latest", accounts, config)


def _accounts() -> dict[str, tuple[int, bytes]]:
    users = f"{PASSWD}default-user:x:1000:1000::/home/default-user:/bin/sh\n"
    groups = f"{GROUP}default-user:x:1000:\ngroup-defined-in-image:x:50000:default-user\n"
    return {"etc/passwd": (0o644, users.encode()), "etc/group": (0o644, groups.encode())}


def _config(*command: str) -> oci.Config:
    return oci.Config(command=command, environment=(PATH,))


def _layer(scratch: Path, name: str, files: dict[str, tuple[int, bytes]]) -> Layer:
    root = scratch / f"{name}.root"
    for path, (mode, content) in files.items():
        _write(root / path, content, mode)
    return write_layer(root, scratch / f"{name}.tar.gz")


def _busybox(layout: Layout, scratch: Path) -> Path:
    """A root with busybox's applets as hard links, as the real image has them.

    Through a symlink, masking ``/bin/ls`` as the suite does would mask busybox and the shell.
    """
    root, apart = scratch / "busybox.root", scratch / "busybox.deb"
    debian.unpack(layout, debian.fetch(layout, ("busybox-static",))[0], apart)
    found = next(apart.glob("**/bin/busybox"))
    for name in ("bin", "etc", "mnt", "root", "tmp", "usr/sbin", "var/run"):
        (root / name).mkdir(parents=True)
    (root / "tmp").chmod(0o1777)
    program = found.read_bytes()
    _write(root / "bin/busybox", program, 0o755)
    listed = subprocess.run([found, "--list"], capture_output=True, text=True, check=True)
    for applet in set(listed.stdout.split()) - {"busybox", "sh", *_SCRIPTS}:
        (root / "bin" / applet).hardlink_to(root / "bin/busybox")
    # Debian's shell runs its own `ls` without a look at /bin/ls, which the suite masks and expects
    # to be refused: this copy of the shell has that applet under a name that nobody calls.
    _write(root / "bin/sh", program.replace(b"\0ls\0", b"\0lr\0", 1), 0o755)
    for name, text in _SCRIPTS.items():
        _write(root / "bin" / name, text.encode(), 0o755)
    _write(root / "etc/passwd", PASSWD.encode(), 0o644)
    _write(root / "etc/group", GROUP.encode(), 0o644)
    return root


def _write(path: Path, content: bytes, mode: int) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(content)
    path.chmod(mode)
