"""The kernel: Debian's User Mode Linux of its newest suite, unpacked and not installed.

Before 7.x UML traps system calls by ptrace, which is five to ten times slower; that is why the
newest suite. It asks for a newer C library than a stable machine has: that library is unpacked
beside it and written into the program. What was fetched once is kept by its version, because the
suite moves on.
"""

from __future__ import annotations

import shutil
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Final

from e2e.cluster import debian, processes
from e2e.cluster.layout import Layout
from e2e.cluster.state import ClusterError

SUITE: Final = "sid"
PACKAGES: Final = ("user-mode-linux", "libc6")
_LOADER: Final = "usr/lib64/ld-linux-x86-64.so.2"
_LIBRARIES: Final = "usr/lib/x86_64-linux-gnu"


@dataclass(frozen=True, slots=True)
class Kernel:
    """A kernel that is a program, and the folder that is its ``/usr/lib/modules``."""

    program: Path
    modules: Path


def folder(layout: Layout) -> Path:
    """Where kernels and guests' disks are kept."""
    return layout.root / "kernels"


def kernel(layout: Layout) -> Kernel:
    """The kernel, fetched if none is kept. Raises ClusterError."""
    place = folder(layout)
    kept = sorted(place.glob("uml-*/linux"), key=lambda path: path.stat().st_mtime)
    if not kept:
        kept = [_fetch(layout, place)]
    return Kernel(kept[-1], kept[-1].with_name("modules"))


def _fetch(layout: Layout, place: Path) -> Path:
    scratch = place / ".uml.new"
    shutil.rmtree(scratch, ignore_errors=True)
    scratch.mkdir(parents=True)
    linux, libc = _download(layout, scratch)
    version = linux.name.split("_")[1]
    debian.unpack(layout, linux, scratch / "package")
    debian.unpack(layout, libc, scratch / "libc")
    (scratch / "package/usr/bin/linux.uml").replace(scratch / "linux")
    (scratch / "package/usr/lib/uml/modules").replace(scratch / "modules")
    target = place / f"uml-{version}"
    # The paths are written into the program, so they must be those at the end of all this.
    libraries = target / "libc" / _LIBRARIES
    words = ["--set-interpreter", str(target / "libc" / _LOADER), "--set-rpath", str(libraries)]
    debian.unpack(layout, debian.fetch(layout, ("patchelf",))[0], scratch / "patchelf")
    patchelf = scratch / "patchelf/usr/bin/patchelf"
    processes.run([str(patchelf), *words, str(scratch / "linux")], layout)
    for path in (linux, libc):
        path.unlink()
    for name in ("package", "patchelf", "apt"):
        shutil.rmtree(scratch / name)
    shutil.rmtree(target, ignore_errors=True)
    scratch.replace(target)
    return target / "linux"


def _download(layout: Layout, scratch: Path) -> tuple[Path, Path]:
    """Fetch the newer suite's packages with a state of apt's own, from where this machine does."""
    apt = scratch / "apt"
    for name in ("lists/partial", "cache/archives/partial", "parts"):
        (apt / name).mkdir(parents=True)
    newer = replace(debian.archives(layout)[0], suite=SUITE)
    (apt / "parts/newer.list").write_text(f"{newer.line()}\n")
    pairs = (
        ("Dir::Etc::sourcelist", "/dev/null"),
        ("Dir::Etc::sourceparts", apt / "parts"),
        ("Dir::State::lists", apt / "lists"),
        ("Dir::Cache", apt / "cache"),
        ("APT::Sandbox::User", "root"),
    )
    argv = ["apt-get", "-qq", *(x for key, value in pairs for x in ("-o", f"{key}={value}"))]
    processes.run([*argv, "update"], layout, timeout_s=300)
    processes.run([*argv, "download", *PACKAGES], layout, timeout_s=300, folder=scratch)
    found = [next(scratch.glob(f"{name}_*.deb"), None) for name in PACKAGES]
    linux, libc = found
    if linux is None or libc is None:
        raise ClusterError(f"apt fetched no {' or '.join(PACKAGES)} of {SUITE}")
    return linux, libc
