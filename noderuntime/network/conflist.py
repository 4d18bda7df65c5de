"""CNI configuration files: a .conflist, or a .conf of one plugin, the first by name.

They are read anew at each use, so that a network plugin's DaemonSet may write them at any time.
Source: CNI spec 1.1, section 1; libcni takes the first of *.conf, *.conflist, *.json by name.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Final, cast

from noderuntime.errors import HostError, NetworkError
from noderuntime.host import durable

_SUFFIXES: Final = frozenset({".conflist", ".conf", ".json"})
_LIMIT_BYTES: Final = 1024 * 1024

Document = Mapping[str, object]


@dataclass(frozen=True, slots=True, kw_only=True)
class NetworkList:
    """One network: a chain of plugins. ``version`` is what we speak with them."""

    name: str
    version: str
    plugins: tuple[Document, ...]
    disable_check: bool
    disable_gc: bool
    source: Path


def version_at_least(version: str, wanted: tuple[int, int]) -> bool:
    """Compare the first two numbers of a CNI version."""
    parts = version.split(".")
    return len(parts) >= 2 and tuple(int(p) for p in parts[:2]) >= wanted


def files_in(directory: Path) -> list[Path]:
    """Return the configuration files, the first by name first. Raises NetworkError."""
    try:
        return sorted(f for f in directory.iterdir() if f.suffix in _SUFFIXES)
    except FileNotFoundError:
        return []
    except OSError as error:
        raise NetworkError(f"cannot read {directory}: {error.strerror}") from error


def load(directory: Path) -> NetworkList:
    """Load the first network by name; raises NetworkError that says what to do."""
    files = files_in(directory)
    if not files:
        raise NetworkError(
            f"no CNI configuration in {directory}: install a network plugin, "
            "or put a .conflist there"
        )
    return parse_file(files[0])


def parse_file(file: Path) -> NetworkList:
    """Parse one file; raises NetworkError that names it."""
    try:
        data = durable.read(file, limit_bytes=_LIMIT_BYTES)
        document: object = json.loads(data or b"")
    except HostError as error:
        raise NetworkError(str(error)) from error
    except ValueError as error:
        raise NetworkError(f"{file} is not JSON: {error}") from error
    if not isinstance(document, dict):
        raise NetworkError(f"{file} is not a JSON object")
    return _of_document(cast("Document", document), file)


def _of_document(document: Document, file: Path) -> NetworkList:
    plugins = document.get("plugins") if "plugins" in document else [document]
    if not isinstance(plugins, list) or not plugins:
        raise NetworkError(f"{file} has no plugins")
    chain: list[Document] = []
    for plugin in cast("list[object]", plugins):
        kind = cast("Document", plugin).get("type") if isinstance(plugin, dict) else None
        if not isinstance(kind, str) or not kind or "/" in kind or kind in {".", ".."}:
            raise NetworkError(f"{file}: a plugin has no valid type")
        chain.append(cast("Document", plugin))
    name, version = document.get("name"), _version(document, file)
    if not isinstance(name, str) or not name:
        raise NetworkError(f"{file} has no name")
    return NetworkList(
        name=name,
        version=version,
        plugins=tuple(chain),
        disable_check=document.get("disableCheck") is True,
        disable_gc=document.get("disableGC") is True,
        source=file,
    )


def _version(document: Document, file: Path) -> str:
    """Return the highest of cniVersions (spec 1.1), else cniVersion, else the oldest."""
    offered = document.get("cniVersions")
    listed = cast("list[object]", offered) if isinstance(offered, list) else []
    versions = [*listed, document.get("cniVersion", "0.1.0")]
    found: list[str] = []
    for version in versions:
        parts = version.split(".") if isinstance(version, str) else []
        if not isinstance(version, str) or not parts or not all(p.isdecimal() for p in parts):
            raise NetworkError(f"{file}: cniVersion {version!r} is not a version")
        found.append(version)
    return max(found, key=lambda version: [int(part) for part in version.split(".")])
