"""Root file systems out of Debian packages and wheels.

Only files are taken: no package's script is run. What a program does not need to run (manuals,
translations, character conversions) is left out.
"""

from __future__ import annotations

import hashlib
import shutil
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Final

from e2e.cluster import debian, processes
from e2e.cluster.layout import Layout

NOBODY: Final = 65532  # the non-root user of the images, as distroless has it
_MERGED: Final = ("bin", "sbin", "lib", "lib64")
_LEFT_OUT: Final = (
    "usr/share/doc",
    "usr/share/man",
    "usr/share/locale",
    "usr/share/lintian",
    "usr/share/bug",
    "usr/share/binfmts",
    "usr/share/bash-completion",
    "usr/share/menu",
    "usr/share/pixmaps",
    "usr/share/applications",
    "usr/share/apport",
    "usr/lib/x86_64-linux-gnu/gconv",
    "usr/share/gcc",
    "usr/share/gdb",
    "var/lib/dpkg",
    "etc/init.d",
    "etc/logrotate.d",
    "etc/default",
    "usr/lib/systemd",
    "usr/lib/tmpfiles.d",
    "etc/ld.so.conf.d",
)
# Of Python's standard library: what a service never imports.
_LEFT_OUT_OF_PYTHON: Final = (
    "ensurepip",
    "idlelib",
    "lib2to3",
    "distutils",
    "pydoc_data",
    "turtledemo",
    "tkinter",
    "test",
    "unittest/test",
    "curses",
    "dbm",
    "sqlite3",
    "venv",
    "__phello__",
)
_PLATFORMS: Final = ("manylinux_2_36", "manylinux_2_28", "manylinux_2_17", "manylinux2014")


def empty(folder: Path) -> None:
    """A root with merged /usr, accounts and the folders that programs expect."""
    shutil.rmtree(folder, ignore_errors=True)
    for name in _MERGED:
        (folder / "usr" / name).mkdir(parents=True)
        (folder / name).symlink_to(f"usr/{name}")
    for name in ("dev", "proc", "sys", "run", "var", "root", "home/nonroot"):
        (folder / name).mkdir(parents=True)
    (folder / "var/run").symlink_to("/run")
    (folder / "tmp").mkdir()
    (folder / "tmp").chmod(0o1777)
    (folder / "etc").mkdir()
    _write(
        folder / "etc/passwd",
        "root:x:0:0:root:/root:/sbin/nologin\n"
        "nobody:x:65534:65534:nobody:/nonexistent:/sbin/nologin\n"
        f"nonroot:x:{NOBODY}:{NOBODY}:nonroot:/home/nonroot:/sbin/nologin\n",
    )
    _write(folder / "etc/group", f"root:x:0:\nnogroup:x:65534:\nnonroot:x:{NOBODY}:\n")
    _write(folder / "etc/nsswitch.conf", "passwd: files\ngroup: files\nhosts: files dns\n")


def add_packages(layout: Layout, folder: Path, names: Sequence[str]) -> list[str]:
    """The packages' files; returns the names of the packages' files with their versions."""
    packages = debian.fetch(layout, names)
    for package in packages:
        apart = folder.with_name(f"{folder.name}.deb")
        shutil.rmtree(apart, ignore_errors=True)
        debian.unpack(layout, package, apart)
        _merge(apart, folder)
        shutil.rmtree(apart)
    for name in _LEFT_OUT:
        shutil.rmtree(folder / name, ignore_errors=True)
    return [package.name for package in packages]


def _merge(apart: Path, folder: Path) -> None:
    """Move a tree onto another; /lib goes to /usr/lib and so on, through the links there."""
    for path in sorted(apart.rglob("*")):
        target = folder / path.relative_to(apart)
        if path.is_symlink() or not path.is_dir():
            target.parent.mkdir(parents=True, exist_ok=True)
            target.unlink(missing_ok=True)
            path.rename(target)
        elif not target.exists():
            target.mkdir(parents=True)
            target.chmod(path.stat().st_mode & 0o7777)


def prune_python(folder: Path, version: str) -> None:
    """Drop what a service never imports from the standard library."""
    library = folder / f"usr/lib/python{version}"
    for name in _LEFT_OUT_OF_PYTHON:
        shutil.rmtree(library / name, ignore_errors=True)
    for path in library.glob("config-*"):
        shutil.rmtree(path)


def without(lock: str, names: Sequence[str]) -> str:
    """A lock file's text without some of its packages."""
    kept: list[str] = []
    skips = False
    for line in lock.splitlines():
        if not line.startswith((" ", "#")):
            skips = line.partition("==")[0] in names
        if not skips:
            kept.append(line)
    return "\n".join([*kept, ""])


def add_wheels(
    layout: Layout, folder: Path, version: str, lock: Path, left_out: Sequence[str] = ()
) -> None:
    """The locked wheels, checked against their hashes, into the image's site folder."""
    wanted = folder.with_name(f"{folder.name}.lock")
    wanted.write_text(without(lock.read_text(), left_out))
    wheels = _wheels(layout, wanted, version)
    place = folder / f"usr/local/lib/python{version}/dist-packages"
    place.mkdir(parents=True, exist_ok=True)
    argv = [*_pip("install", version), "--no-compile", "--no-warn-script-location"]
    argv += ["--no-index", "--find-links", str(wheels), "--target", str(place), "-r", str(wanted)]
    processes.run(argv, layout, timeout_s=600)
    for path in (place / "bin", *place.rglob("tests"), *place.rglob("__pycache__")):
        shutil.rmtree(path, ignore_errors=True)
    record_what_is_there(place)


def record_what_is_there(place: Path) -> None:
    """Take out of each RECORD what was removed: a script's hash is bound to this machine's Python."""
    for record in place.glob("*.dist-info/RECORD"):
        lines = record.read_text().splitlines(keepends=True)
        record.write_text("".join(line for line in lines if (place / line.split(",")[0]).exists()))


def _pip(verb: str, version: str) -> list[str]:
    """The words of pip for the image's Python, whatever Python this is."""
    return [
        *(sys.executable, "-m", "pip", verb, "--quiet", "--disable-pip-version-check"),
        *("--no-deps", "--require-hashes", "--only-binary", ":all:", "--implementation", "cp"),
        *("--python-version", version),
        *(word for name in _PLATFORMS for word in ("--platform", f"{name}_x86_64")),
    ]


def _wheels(layout: Layout, lock: Path, version: str) -> Path:
    """The folder with a lock's wheels; fetched once, so that an image can be made offline."""
    name = hashlib.sha256(f"{version} {lock.read_text()}".encode()).hexdigest()[:12]
    folder = layout.wheels / name
    if not folder.is_dir():
        beside = layout.wheels / f"{name}.new"
        shutil.rmtree(beside, ignore_errors=True)
        argv = [*_pip("download", version), "--dest", str(beside), "-r", str(lock)]
        processes.run(argv, layout, timeout_s=600)
        beside.replace(folder)
    return folder


def compile_python(layout: Layout, folder: Path, places: Sequence[str], version: str) -> None:
    """Bytecode beside the sources, made by the image's own Python.

    The file system is read-only where it runs, so without it each start would compile everything.
    Bytecode is bound to the source by hash and not by time, with a fixed seed, in one process: so
    it is the same each time.
    """
    argv = [f"/usr/bin/python{version}", "-m", "compileall", "-q", "-j", "1"]
    argv += ["--invalidation-mode", "unchecked-hash", *places]
    processes.run(
        ["chroot", str(folder), *argv],
        layout,
        timeout_s=600,
        environment={"PYTHONHASHSEED": "0", "PYTHONDONTWRITEBYTECODE": "1", "LC_ALL": "C.UTF-8"},
    )


def add_certificates(folder: Path) -> None:
    """The bundle that the package's script would make."""
    source = folder / "usr/share/ca-certificates"
    parts = [path.read_text().strip() + "\n" for path in sorted(source.rglob("*.crt"))]
    target = folder / "etc/ssl/certs/ca-certificates.crt"
    target.parent.mkdir(parents=True, exist_ok=True)
    _write(target, "".join(parts))
    shutil.rmtree(source)


def _write(path: Path, content: str) -> None:
    path.write_text(content)
    path.chmod(0o644)
