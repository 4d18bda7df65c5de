"""Where a registry's images come from: a ``certs.d`` as containerd reads it.

``HOSTS_DIR/HOST/hosts.toml``, else ``HOSTS_DIR/_default/hosts.toml``, else the registry itself.
Mirrors (``[host."URL"]``) are asked in the order of the file, the upstream (``server``) last. The
file is read at every pull, so that a change needs no restart. Source: containerd docs/hosts.md.
"""

from __future__ import annotations

import tomllib
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Final, cast
from urllib.parse import urlsplit

from noderuntime.errors import ConfigError

PULL: Final = "pull"
RESOLVE: Final = "resolve"
_CAPABILITIES: Final = frozenset({PULL, RESOLVE, "push"})
_KEYS: Final = frozenset(
    {"capabilities", "ca", "client", "skip_verify", "override_path", "header", "dial_timeout"}
)
_LOCAL: Final = frozenset({"localhost", "127.0.0.1", "::1"})
_MAX_FILE: Final = 1 << 20


@dataclass(frozen=True, slots=True, kw_only=True)
class Endpoint:
    """One host to ask. ``base`` is a URL up to and with ``/v2``, without a slash behind it."""

    base: str
    is_upstream: bool
    capabilities: frozenset[str] = frozenset({PULL, RESOLVE})
    ca_files: tuple[Path, ...] = ()
    client_certs: tuple[tuple[Path, Path | None], ...] = ()
    skip_verify: bool = False
    headers: Mapping[str, tuple[str, ...]] = field(default_factory=dict[str, tuple[str, ...]])

    @property
    def host(self) -> str:
        """Return ``host[:port]`` for messages."""
        return urlsplit(self.base).netloc


def endpoints_of(hosts_dir: Path, registry: str) -> tuple[Endpoint, ...]:
    """Return whom to ask for images of ``registry``, in order; raises ConfigError."""
    for folder in _folders(hosts_dir, registry):
        path = folder / "hosts.toml"
        if path.is_file():
            return _from_file(path, registry)
        if folder.is_dir() and folder.name != "_default":
            return (_from_certificates(folder, registry),)
    return (_upstream(registry),)


def _folders(hosts_dir: Path, registry: str) -> Iterable[Path]:
    host, _, port = registry.rpartition(":")
    if host and port.isdigit():
        yield hosts_dir / registry
        yield hosts_dir / f"{host}_{port}_"
    else:
        yield hosts_dir / registry
    yield hosts_dir / "_default"


def _from_certificates(folder: Path, registry: str) -> Endpoint:
    """Read a folder as docker has it: ``*.crt`` are CAs, ``NAME.cert``, ``NAME.key`` ours."""
    pairs = tuple((c, c.with_suffix(".key")) for c in sorted(folder.glob("*.cert")))
    authorities = tuple(sorted(folder.glob("*.crt")))
    plain = _upstream(registry)
    base = f"https://{registry}/v2" if authorities or pairs else plain.base
    return Endpoint(base=base, is_upstream=True, ca_files=authorities, client_certs=pairs)


def _upstream(registry: str) -> Endpoint:
    host = "registry-1.docker.io" if registry == "docker.io" else registry
    scheme = "http" if urlsplit(f"//{host}").hostname in _LOCAL else "https"
    return Endpoint(base=f"{scheme}://{host}/v2", is_upstream=True)


def _from_file(path: Path, registry: str) -> tuple[Endpoint, ...]:
    try:
        with path.open("rb") as file:
            document = tomllib.loads(file.read(_MAX_FILE).decode())
    except OSError as error:
        raise ConfigError(f"cannot read {path}: {error.strerror}") from error
    except (tomllib.TOMLDecodeError, UnicodeDecodeError) as error:
        raise ConfigError(f"{path} is not TOML: {error}") from error
    if unknown := set(document) - _KEYS - {"server", "host"}:
        raise ConfigError(f"{path}: unknown key {min(unknown)}")
    hosts = _table(document.get("host", {}), path, "host")
    mirrors = [
        _endpoint(url, _table(values, path, f'host."{url}"'), path, is_upstream=False)
        for url, values in hosts.items()
    ]
    server = document.get("server", _upstream(registry).base)
    if not isinstance(server, str):
        raise ConfigError(f"{path}: server is not a URL")
    own = {key: value for key, value in document.items() if key in _KEYS}
    return (*mirrors, _endpoint(server, own, path, is_upstream=True))


def _table(value: object, path: Path, key: str) -> dict[str, object]:
    if not isinstance(value, dict):
        raise ConfigError(f"{path}: {key} is not a table")
    return cast("dict[str, object]", value)


def _endpoint(url: str, values: dict[str, object], path: Path, *, is_upstream: bool) -> Endpoint:
    where = "" if is_upstream else f'host."{url}".'
    if unknown := set(values) - _KEYS:
        raise ConfigError(f"{path}: unknown key {where}{min(unknown)}")
    wanted = _strings(values.get("capabilities", [PULL, RESOLVE]), f"{path}: {where}capabilities")
    if unknown := set(wanted) - _CAPABILITIES:
        raise ConfigError(f"{path}: {where}capabilities: {min(unknown)} is not one")
    return Endpoint(
        base=_base(url, path, override=_flag(values, "override_path", f"{path}: {where}")),
        is_upstream=is_upstream,
        capabilities=frozenset(wanted),
        ca_files=tuple(
            _beside(path, ca) for ca in _strings(values.get("ca", []), f"{path}: {where}ca")
        ),
        client_certs=_pairs(values.get("client", []), path, where),
        skip_verify=_flag(values, "skip_verify", f"{path}: {where}"),
        headers={
            name: _strings(value, f"{path}: {where}header.{name}")
            for name, value in _table(values.get("header", {}), path, f"{where}header").items()
        },
    )


def _base(url: str, path: Path, *, override: bool) -> str:
    full = url if "://" in url else f"https://{url}"
    parts = urlsplit(full)
    if parts.scheme not in {"http", "https"} or not parts.hostname or parts.username is not None:
        raise ConfigError(f"{path}: {url} is not an http:// or https:// URL of a host")
    if parts.query or parts.fragment:
        raise ConfigError(f"{path}: {url}: a URL of a host ends with its path")
    folder = parts.path.rstrip("/")
    if not override and not folder.endswith("/v2"):
        folder += "/v2"
    return f"{parts.scheme}://{parts.netloc}{folder}"


def _strings(value: object, where: str) -> tuple[str, ...]:
    values = cast("list[object]", value) if isinstance(value, list) else [value]
    if not all(isinstance(v, str) for v in values):
        raise ConfigError(f"{where} is not a text or a list of texts")
    return tuple(cast("list[str]", values))


def _flag(values: dict[str, object], key: str, where: str) -> bool:
    value = values.get(key, False)
    if not isinstance(value, bool):
        raise ConfigError(f"{where}{key} is neither true nor false")
    return value


def _pairs(value: object, path: Path, where: str) -> tuple[tuple[Path, Path | None], ...]:
    """Read ``client``: one file, or a list of files, or a list of [certificate, key]."""
    values = cast("list[object]", value) if isinstance(value, list) else [value]
    pairs: list[tuple[Path, Path | None]] = []
    for item in values:
        names = _strings(item, f"{path}: {where}client")
        if not 1 <= len(names) <= 2:
            raise ConfigError(f"{path}: {where}client: a pair is [certificate, key]")
        key = _beside(path, names[1]) if len(names) == 2 and names[1] else None
        pairs.append((_beside(path, names[0]), key))
    return tuple(pairs)


def _beside(path: Path, name: str) -> Path:
    """Take a relative file name as one beside ``hosts.toml``."""
    return path.parent / name
