"""containerd from its Go module, into ``.cluster/bin``; only the version that it writes into bundles is ours.

crun 1.8 refuses bundles that say 1.3.0. A wrapper around it would cost containerd time that it does
not spend by itself; so the one file of runtime-spec with the number is another when it is built.
"""

from __future__ import annotations

import shutil
import subprocess
from collections.abc import Callable
from pathlib import Path
from typing import Final

from e2e.cluster.build import GoModule, build_go
from e2e.cluster.layout import Layout

VERSION: Final = "2.4.2"
_PACKAGE: Final = "github.com/containerd/containerd/v2"
_SPEC: Final = "github.com/opencontainers/runtime-spec"
_TOOLS: Final = Path(__file__).parent / "tools"
_PROGRAMS: Final = ("containerd", "containerd-shim-runc-v2")


def build(layout: Layout, tell: Callable[[str], None]) -> None:
    """Build what is missing; a minute or two with a cold Go cache."""
    module = GoModule(
        "containerd",
        tuple((name, f"{_PACKAGE}/cmd/{name}") for name in _PROGRAMS),
        f"-s -w -X {_PACKAGE}/version.Version={VERSION}",
        tools=_TOOLS,
        prepare=lambda: _prepare(layout.root / "containerd"),
    )
    build_go(layout, module, tell)


def _prepare(folder: Path) -> Path:
    """Copy the module, with runtime-spec replaced by a copy of it that has another number."""
    shutil.rmtree(folder, ignore_errors=True)
    shutil.copytree(_TOOLS / "containerd", folder)
    _go(folder, "mod", "download", _SPEC)
    original = _go(folder, "list", "-m", "-f", "{{.Dir}}", _SPEC).strip()
    copy = folder / "runtime-spec"
    shutil.copytree(original, copy)
    for path in (copy, *copy.rglob("*")):  # the module cache is read-only
        path.chmod(0o755 if path.is_dir() else 0o644)
    (copy / "go.mod").write_text(f"module {_SPEC}\n\ngo 1.21\n")  # it has none of its own
    shutil.copyfile(folder / "version.go.in", copy / "specs-go" / "version.go")
    _go(folder, "mod", "edit", f"-replace={_SPEC}=./runtime-spec")
    return folder


def _go(folder: Path, *words: str) -> str:
    go = shutil.which("go") or "/usr/local/go/bin/go"
    argv = [go, "-C", str(folder), *words]
    done = subprocess.run(argv, check=True, stdout=subprocess.PIPE, text=True)
    return done.stdout
