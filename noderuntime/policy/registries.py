"""Where images may come from: a reference as the user wrote it against the allowed prefixes.

A prefix matches only at a ``/``, so ``registry.example.com`` never matches
``registry.example.com.evil.org``. What cannot be read as a reference is refused, not guessed.
Source: distribution/reference grammar; docker.io and library/ are what a short name means.
"""

from __future__ import annotations

import re
from typing import Final

_HOST: Final = (
    r"(?:[a-z0-9](?:[a-z0-9-]*[a-z0-9])?(?:\.[a-z0-9](?:[a-z0-9-]*[a-z0-9])?)*|\[[0-9a-f:]+\])"
)
_PART: Final = r"[a-z0-9]+(?:(?:\.|_|__|-+)[a-z0-9]+)*"
_REFERENCE: Final = re.compile(
    rf"(?:(?P<host>{_HOST}(?::[0-9]{{1,5}})?)/)?(?P<path>{_PART}(?:/{_PART})*)"
    r"(?::[A-Za-z0-9_][A-Za-z0-9_.-]{0,127})?(?:@[a-z0-9]+:[0-9a-f]{32,128})?",
)
_DIGEST: Final = re.compile(r"sha256:[0-9a-f]{64}|sha512:[0-9a-f]{128}")
_LONGEST: Final = 1024


def repository_of(reference: str) -> str | None:
    """Return ``registry/path`` without tag and digest, or None for what is no reference."""
    if len(reference) > _LONGEST:
        return None
    first, slash, rest = reference.partition("/")
    if slash and _is_host(first):
        reference = f"{first.lower()}/{rest}"
    else:
        reference = f"docker.io/{reference if slash else 'library/' + reference}"
    match = _REFERENCE.fullmatch(reference)
    if match is None or match["host"] is None:
        return None
    host = "docker.io" if match["host"] == "index.docker.io" else match["host"]
    path = match["path"]
    return f"{host}/library/{path}" if host == "docker.io" and "/" not in path else f"{host}/{path}"


def prefix_of(rule: str) -> str:
    """Return an allowed prefix as it is compared: lower-case host, no slash at the end."""
    host, slash, path = rule.strip().strip("/").partition("/")
    host = host.lower()
    return ("docker.io" if host == "index.docker.io" else host) + slash + path


def is_allowed(reference: str, prefixes: tuple[str, ...]) -> bool:
    """Tell whether the reference is below one of the prefixes; no prefixes allow every one."""
    if not prefixes:
        return True
    repository = repository_of(reference)
    return repository is not None and any(
        repository == prefix or repository.startswith(prefix + "/") for prefix in prefixes
    )


def has_digest(reference: str) -> bool:
    """Tell whether the reference names its content: ``name@sha256:HEX``, with a tag or without."""
    _, at, digest = reference.rpartition("@")
    return bool(at) and bool(_DIGEST.fullmatch(digest)) and repository_of(reference) is not None


def _is_host(first: str) -> bool:
    return "." in first or ":" in first or first == "localhost" or first != first.lower()
