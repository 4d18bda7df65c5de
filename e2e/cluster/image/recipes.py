"""The images: the operator's and agent's own, and those that the end-to-end tests run."""

from __future__ import annotations

import hashlib
import shutil
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from e2e.cluster import debian
from e2e.cluster.image import oci, rootfs
from e2e.cluster.image.layer import Layer, write_layer
from e2e.cluster.layout import KUBERNETES_VERSION, Layout

PYTHON: Final = "3.11"
_PYTHON_PACKAGES: Final = (
    "libc6",
    "libgcc-s1",
    "libstdc++6",
    "zlib1g",
    "libexpat1",
    "libssl3",
    "libffi8",
    "libbz2-1.0",
    "liblzma5",
    "libuuid1",
    "media-types",
    "ca-certificates",
    f"libpython{PYTHON}-minimal",
    f"libpython{PYTHON}-stdlib",
    f"python{PYTHON}-minimal",
)
_REDIS_PACKAGES: Final = (
    "libc6",
    "libgcc-s1",
    "libstdc++6",
    "libssl3",
    "libsystemd0",
    "libcap2",
    "libgcrypt20",
    "libgpg-error0",
    "liblz4-1",
    "liblzma5",
    "libzstd1",
    "libjemalloc2",
    "liblzf1",
    "libatomic1",
    "redis-tools",
    "redis-server",
)
_SCRIPTS: Final = {
    "noderuntime": "noderuntime.cli.main",
    "noderuntime-operator": "noderuntime_operator.main",
}
_SITE: Final = f"usr/local/lib/python{PYTHON}/dist-packages"
# What only `noderuntime serve` imports, which runs on the host and not from this image.
_RUNTIME_ONLY: Final = ("isal", "pyseccomp", "zstandard")
REDIS_USER: Final = 999
_APPLETS: Final = (
    "ash awk base64 basename cat chmod chown chroot cp cut date dd df dirname dmesg du echo env "
    "expr false find free grep gunzip gzip head hostname id ifconfig ip kill killall less ln ls "
    "md5sum mkdir mkfifo mknod mktemp more mount mv nc netstat nice od pidof ping printf ps pwd "
    "readlink realpath reset rm rmdir sed seq sh sha256sum sleep sort stat stty sync sysctl tail "
    "tar tee test time timeout top touch tr true truncate tty umount uname uniq unshare uptime vi "
    "watch wc wget which whoami xargs yes zcat"
)


@dataclass(frozen=True, slots=True)
class Recipe:
    """An image: its name in the registry, what decides about it, and how it is made."""

    name: str
    tag: str
    inputs: Callable[[Layout], list[Path]]  # files whose content decides
    make: Callable[[Layout, Path], tuple[list[Layer], oci.Config]]  # in a scratch folder


def build(layout: Layout, recipe: Recipe, into: Path | None = None) -> tuple[Path, bool]:
    """The image's OCI layout, and whether it was made anew."""
    folder = into or layout.images / recipe.name
    stamp = folder / "inputs"
    wanted = _digest(layout, recipe)
    if stamp.exists() and stamp.read_text() == wanted:
        return folder, False
    scratch = folder.parent / f".{recipe.name}.scratch"
    shutil.rmtree(scratch, ignore_errors=True)
    scratch.mkdir(parents=True)
    layers, config = recipe.make(layout, scratch)
    oci.write_layout(folder, recipe.tag, layers, config)
    shutil.rmtree(scratch)
    stamp.write_text(wanted)
    return folder, True


def _digest(layout: Layout, recipe: Recipe) -> str:
    return _digest_of(f"{recipe.name}:{recipe.tag}", recipe.inputs(layout))


def _digest_of(name: str, inputs: Sequence[Path]) -> str:
    digest = hashlib.sha256(name.encode())
    code = sorted(Path(__file__).parent.glob("*.py"))
    for path in (*code, *inputs):
        digest.update(f"{path.name}\0".encode())
        # A package's name holds its version; its content need not be read.
        digest.update(b"" if path.suffix == ".deb" else _content(path))
    return digest.hexdigest()


def _content(path: Path) -> bytes:
    if path.stat().st_size < 8 << 20:
        return path.read_bytes()
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").digest()


def _sources(layout: Layout) -> list[Path]:
    """The project's own packages, without what was compiled beside them."""
    roots = (layout.repository / "noderuntime", layout.repository / "operator/noderuntime_operator")
    return sorted(
        path
        for root in roots
        for path in root.rglob("*")
        if path.is_file() and "__pycache__" not in path.parts
    )


def _base_inputs(layout: Layout) -> list[Path]:
    lock = layout.repository / "requirements/image.lock"
    return [*debian.fetch(layout, _PYTHON_PACKAGES), lock]


def _noderuntime_inputs(layout: Layout) -> list[Path]:
    return [*_base_inputs(layout), *_sources(layout)]


def _base(layout: Layout) -> tuple[Path, Layer]:
    """Python with the locked wheels, as a folder and as a layer; kept, because it takes a while."""
    place = layout.images / ".base"
    stamp, root = place / "inputs", place / "root"
    wanted = _digest_of("base", _base_inputs(layout))
    if not stamp.exists() or stamp.read_text().split()[0] != wanted:
        shutil.rmtree(place, ignore_errors=True)
        place.mkdir(parents=True)
        rootfs.empty(root)
        rootfs.add_packages(layout, root, _PYTHON_PACKAGES)
        rootfs.add_certificates(root)
        rootfs.prune_python(root, PYTHON)
        lock = layout.repository / "requirements/image.lock"
        rootfs.add_wheels(layout, root, PYTHON, lock, _RUNTIME_ONLY)
        rootfs.compile_python(layout, root, (f"/usr/lib/python{PYTHON}", f"/{_SITE}"), PYTHON)
        layer = write_layer(root, place / "layer.tar.gz", {"/home/nonroot": rootfs.NOBODY})
        stamp.write_text(f"{wanted} {layer.digest} {layer.diff_id} {layer.size_bytes}")
    _, digest, diff_id, size = stamp.read_text().split()
    return root, Layer(place / "layer.tar.gz", digest, diff_id, int(size))


def _noderuntime(layout: Layout, scratch: Path) -> tuple[list[Layer], oci.Config]:
    """Two layers: Python with the locked wheels, and our code, which changes more often."""
    base, base_layer = _base(layout)
    own = scratch / "own"
    _own_code(layout, own / _SITE)
    scripts = own / "usr/local/bin"
    scripts.mkdir(parents=True)
    for name, module in _SCRIPTS.items():
        script = scripts / name
        script.write_text(
            f"#!/usr/bin/python{PYTHON} -P\nimport sys\n\nfrom {module} import main\n\n"
            "sys.exit(main())\n"
        )
        script.chmod(0o755)
    # Compiled inside the base, because the image's Python is there.
    for package in sorted((own / _SITE).iterdir()):
        guest = base / _SITE / package.name
        shutil.rmtree(guest, ignore_errors=True)
        package.rename(guest)
        rootfs.compile_python(layout, base, (f"/{_SITE}/{package.name}",), PYTHON)
        guest.rename(package)
    return [base_layer, write_layer(own, scratch / "own.tar.gz")], oci.Config(
        user=f"{rootfs.NOBODY}:{rootfs.NOBODY}",
        command=("noderuntime-operator",),
        environment=(
            "PATH=/usr/local/bin:/usr/bin:/bin",
            "HOME=/home/nonroot",
            "PYTHONUNBUFFERED=1",
            "PYTHONDONTWRITEBYTECODE=1",
            "PYTHONUTF8=1",
        ),
    )


def _own_code(layout: Layout, site: Path) -> None:
    for source in _sources(layout):
        below = source.relative_to(layout.repository)
        parts = below.parts[1:] if below.parts[0] == "operator" else below.parts
        target = site.joinpath(*parts)
        target.parent.mkdir(parents=True, exist_ok=True)
        shutil.copyfile(source, target)
        target.chmod(0o644)


def _agnhost(layout: Layout, scratch: Path) -> tuple[list[Layer], oci.Config]:
    root = scratch / "root"
    rootfs.empty(root)
    shutil.copyfile(layout.bin / "agnhost", root / "usr/bin/agnhost")
    (root / "usr/bin/agnhost").chmod(0o755)
    return [write_layer(root, scratch / "layer.tar.gz")], oci.Config(
        entrypoint=("/usr/bin/agnhost",), command=("pause",), environment=("PATH=/usr/bin",)
    )


def _busybox(layout: Layout, scratch: Path) -> tuple[list[Layer], oci.Config]:
    root, apart = scratch / "root", scratch / "deb"
    rootfs.empty(root)
    debian.unpack(layout, debian.fetch(layout, ("busybox-static",))[0], apart)
    binary = next(
        path for path in (apart / "bin/busybox", apart / "usr/bin/busybox") if path.exists()
    )
    binary.replace(root / "usr/bin/busybox")
    for applet in _APPLETS.split():
        (root / "usr/bin" / applet).symlink_to("busybox")
    return [write_layer(root, scratch / "layer.tar.gz")], oci.Config(
        command=("sh",), environment=("PATH=/usr/bin:/bin",)
    )


def _redis(layout: Layout, scratch: Path) -> tuple[list[Layer], oci.Config]:
    root = scratch / "root"
    rootfs.empty(root)
    rootfs.add_packages(layout, root, _REDIS_PACKAGES)
    (root / "data").mkdir()
    return [write_layer(root, scratch / "layer.tar.gz", {"/data": REDIS_USER})], oci.Config(
        user=f"{REDIS_USER}:{REDIS_USER}",
        entrypoint=("redis-server",),
        command=("--save", "", "--protected-mode", "no"),
        environment=("PATH=/usr/bin:/bin",),
        folder="/data",
    )


def all_packages() -> tuple[str, ...]:
    """Every Debian package that an image is made from."""
    return (*_PYTHON_PACKAGES, *_REDIS_PACKAGES, "busybox-static")


RECIPES: Final = (
    Recipe("noderuntime", "0.1.0", _noderuntime_inputs, _noderuntime),
    Recipe("agnhost", KUBERNETES_VERSION[1:], lambda layout: [layout.bin / "agnhost"], _agnhost),
    Recipe("busybox", "e2e", lambda layout: debian.fetch(layout, ("busybox-static",)), _busybox),
    Recipe("redis", "e2e", lambda layout: debian.fetch(layout, _REDIS_PACKAGES), _redis),
)
