"""The node's own credentials for registries: a docker ``config.json``, as the kubelet reads one.

They are for what the runtime fetches without a kubelet that sends credentials: seccomp artifacts. The
file is read at each fetch, so that a change needs no restart. It must be a regular file of root's (or of who
runs this) that others cannot read or write. No message repeats anything of it but names of keys.

A key of ``auths`` is a host with its port, or more of the path; in the host ``*`` stands for any text
within a part. The longest path that fits wins, then the host without ``*``. Helpers (``credsStore``,
``credHelpers``) are programs that nobody runs here: a file with them is refused.
Source: kubernetes.io "Images", "Interpretation of config.json"; docker-login(1).
"""

from __future__ import annotations

import base64
import binascii
import json
import os
import stat
from fnmatch import fnmatchcase
from pathlib import Path
from typing import Any, Final

from pydantic import BaseModel, ConfigDict, ValidationError

from noderuntime.errors import ConfigError
from noderuntime.images.ports import Credentials
from noderuntime.images.reference import DEFAULT_REGISTRY, Reference

LIMIT_BYTES: Final = 1 << 20
_OTHERS: Final = stat.S_IRWXO | stat.S_IWGRP
_DOCKER_HUB: Final = frozenset({"index.docker.io", "registry-1.docker.io", DEFAULT_REGISTRY})


class _Entry(BaseModel):
    """One registry's; ``auth`` is base64 of ``user:password``."""

    model_config = ConfigDict(extra="forbid", frozen=True, strict=True, hide_input_in_errors=True)

    auth: str = ""
    username: str = ""
    password: str = ""
    email: str = ""
    identitytoken: str = ""
    registrytoken: str = ""


class _File(BaseModel):
    """The whole file; what else docker keeps in it is not for us."""

    model_config = ConfigDict(extra="ignore", frozen=True, strict=True, hide_input_in_errors=True)

    auths: dict[str, _Entry] = {}
    credsStore: str = ""  # noqa: N815 - docker's name
    credHelpers: dict[str, str] = {}  # noqa: N815 - docker's name


def credentials_for(path: Path, reference: Reference) -> Credentials | None:
    """Return what the file has for the reference, None where it has nothing. Blocking.

    Raises ConfigError for a file that is missing, readable by others, too large or not as docker has it.
    """
    entries = _read(path).auths
    fitting = [(rank, key) for key in entries if (rank := _fit(key, reference)) is not None]
    if not fitting:
        return None
    key = max(fitting)[1]
    return _credentials(entries[key], f"{_named(path)}: auths[{key[:80]!r}]")


def _named(path: Path) -> str:
    return f"images.auth_file {path}"


def _read(path: Path) -> _File:
    try:
        # O_NONBLOCK: a FIFO in its place must not hang us.
        with os.fdopen(os.open(path, os.O_RDONLY | os.O_CLOEXEC | os.O_NONBLOCK), "rb") as file:
            _require_private(path, os.fstat(file.fileno()))
            data = file.read(LIMIT_BYTES + 1)
    except OSError as error:
        raise ConfigError(f"{_named(path)} cannot be read: {error.strerror}") from error
    if len(data) > LIMIT_BYTES:
        raise ConfigError(f"{_named(path)} is larger than {LIMIT_BYTES} bytes")
    try:
        found = _File.model_validate(json.loads(data, object_pairs_hook=_once))
    except ValidationError as error:
        first = error.errors(include_input=False, include_url=False, include_context=False)[0]
        where = ".".join(str(part)[:80] for part in first["loc"])
        raise ConfigError(f"{_named(path)}: {where}: {first['msg'].lower()}") from None
    except (ValueError, RecursionError):  # its text repeats what was read
        raise ConfigError(f"{_named(path)} is not JSON with each key once") from None
    if found.credsStore or found.credHelpers:
        key = "credsStore" if found.credsStore else "credHelpers"
        raise ConfigError(f"{_named(path)}: {key}: no program is run for credentials; use auths")
    return found


def _require_private(path: Path, found: os.stat_result) -> None:
    if not stat.S_ISREG(found.st_mode):
        raise ConfigError(f"{_named(path)} is not a regular file")
    if found.st_uid not in (0, os.geteuid()):
        raise ConfigError(f"{_named(path)} belongs to user {found.st_uid}; it must be root's")
    if found.st_mode & _OTHERS:
        mode = stat.S_IMODE(found.st_mode)
        raise ConfigError(f"{_named(path)} has mode {mode:04o}: others reach it; chmod 0600 it")


def _once(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    found = dict(pairs)
    if len(found) < len(pairs):
        raise ValueError
    return found


def _fit(key: str, reference: Reference) -> tuple[int, bool] | None:
    """Return how well a key fits, None where it does not: parts of the path, and no ``*``."""
    host, _, path = key.removeprefix("https://").removeprefix("http://").partition("/")
    if host in _DOCKER_HUB:
        host, path = DEFAULT_REGISTRY, "" if path.strip("/") in ("v1", "v2") else path
    wanted = [part for part in path.split("/") if part]
    if reference.repository.split("/")[: len(wanted)] != wanted:
        return None
    if not _is_host(host, reference.registry):
        return None
    return len(wanted), "*" not in host


def _is_host(pattern: str, host: str) -> bool:
    """Compare part by part, so that ``*.example.com`` is no host of another depth."""
    (name, port), (own, own_port) = _split(pattern), _split(host)
    parts, own_parts = name.split("."), own.split(".")
    return (
        port == own_port and len(parts) == len(own_parts) and all(map(_is_part, parts, own_parts))
    )


def _is_part(pattern: str, part: str) -> bool:
    return fnmatchcase(part, pattern) if "*" in pattern and "[" not in pattern else part == pattern


def _split(host: str) -> tuple[str, str]:
    name, colon, port = host.rpartition(":")
    return (name, port) if colon and port.isdigit() else (host, "")


def _credentials(entry: _Entry, where: str) -> Credentials:
    username, password = entry.username, entry.password
    if entry.auth:
        try:
            pair = base64.b64decode(entry.auth, validate=True).decode()
        except (binascii.Error, UnicodeDecodeError):
            raise ConfigError(f"{where}.auth is not base64 of user:password") from None
        username, colon, password = pair.rstrip("\0").partition(":")
        if not colon or not username:
            raise ConfigError(f"{where}.auth is not base64 of user:password")
    return Credentials(
        username=username,
        password=password,
        identity_token=entry.identitytoken,
        registry_token=entry.registrytoken,
    )
