"""Image references: what a user writes, and the one normal form that records and registries get.

The grammar is that of docker and of the OCI distribution-spec
(``[host[:port]/]path[:tag][@digest]``); a name without a host is on docker.io, and there without a
slash below ``library/``. Errors repeat the user's own words and say what to write instead.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import Final

from noderuntime.errors import ImageNameError

DEFAULT_REGISTRY: Final = "docker.io"
DEFAULT_TAG: Final = "latest"
MAX_NAME: Final = 255
MAX_TAG: Final = 128

_LABEL = r"[a-zA-Z0-9](?:[a-zA-Z0-9-]*[a-zA-Z0-9])?"
_HOST = re.compile(rf"(?:{_LABEL}(?:\.{_LABEL})*|\[[0-9a-fA-F:]+\])(?::([0-9]+))?")
_COMPONENT = re.compile(r"[a-z0-9]+(?:(?:[._]|__|-+)[a-z0-9]+)*")
_TAG = re.compile(rf"[A-Za-z0-9_][A-Za-z0-9_.-]{{0,{MAX_TAG - 1}}}")
_DIGEST = re.compile(r"sha256:[0-9a-f]{64}")
_ID_PREFIX = re.compile(r"[0-9a-f]{12,64}")
_HEX64 = re.compile(r"[0-9a-f]{64}")


@dataclass(frozen=True, slots=True, kw_only=True)
class Reference:
    """A reference in its normal form. With a digest the tag is only a comment and is left out."""

    registry: str
    repository: str
    tag: str = ""
    digest: str = ""

    @property
    def name(self) -> str:
        """Return ``registry/repository``."""
        return f"{self.registry}/{self.repository}"

    @property
    def target(self) -> str:
        """Return what stands behind ``/manifests/``: the digest, else the tag."""
        return self.digest or self.tag

    def __str__(self) -> str:
        """Return the normal form, the way ``repo_tags`` and ``repo_digests`` have it."""
        return f"{self.name}@{self.digest}" if self.digest else f"{self.name}:{self.tag}"

    def with_digest(self, digest: str) -> Reference:
        """Return the same repository at ``digest``."""
        return Reference(registry=self.registry, repository=self.repository, digest=digest)


def is_digest(text: str) -> bool:
    """Tell whether ``text`` is a whole ``sha256:HEX``."""
    return _DIGEST.fullmatch(text) is not None


def id_prefix(text: str) -> str | None:
    """Return the hex digits of an image ID or of a prefix (12 or more), else None."""
    digits = text.removeprefix("sha256:")
    return digits if _ID_PREFIX.fullmatch(digits) else None


def parse(text: str) -> Reference:
    """Parse a reference as a user writes it; raises ImageNameError in the user's words."""
    shown = _shown(text)
    if not text:
        raise ImageNameError(
            "the image name is empty: write one such as registry.k8s.io/pause:3.10"
        )
    if text != text.strip() or any(c.isspace() or not c.isprintable() for c in text):
        raise ImageNameError(f"image {shown}: a name holds no spaces and no control characters")
    if "://" in text:
        raise ImageNameError(f"image {shown}: leave the {text.split('://', 1)[0]}:// away")
    name, digest = _split_digest(text, shown)
    name, tag = _split_tag(name, shown)
    registry, repository = _split_registry(name)
    _check_registry(registry, shown)
    _check_repository(repository, shown)
    if len(registry) + 1 + len(repository) > MAX_NAME:
        raise ImageNameError(f"image {shown}: the name has more than {MAX_NAME} characters")
    if digest:
        return Reference(registry=registry, repository=repository, digest=digest)
    return Reference(registry=registry, repository=repository, tag=tag or DEFAULT_TAG)


def _shown(text: str) -> str:
    return ascii(text if len(text) <= MAX_NAME else text[:MAX_NAME] + "...").replace("'", '"')


def _split_digest(text: str, shown: str) -> tuple[str, str]:
    name, at, digest = text.partition("@")
    if not at:
        return name, ""
    if not is_digest(digest):
        raise ImageNameError(
            f"image {shown}: behind the @ belongs a digest, sha256: and 64 hexadecimal digits"
        )
    return name, digest


def _split_tag(name: str, shown: str) -> tuple[str, str]:
    head, colon, tag = name.rpartition(":")
    if not colon or "/" in tag or (tag.endswith("]") and "/" not in name):
        return name, ""
    if not _TAG.fullmatch(tag):
        raise ImageNameError(
            f"image {shown}: the tag {_shown(tag)} is not valid: up to {MAX_TAG} letters, digits,"
            " _ . - and no . or - in front"
        )
    return head, tag


def _split_registry(name: str) -> tuple[str, str]:
    """Split as docker does: the first part is a host if it has a dot, a colon or is localhost."""
    first, slash, rest = name.partition("/")
    is_host = "." in first or ":" in first or first.lower() == "localhost"
    if not slash or not is_host:
        registry, repository = DEFAULT_REGISTRY, name
    else:
        registry, repository = first.lower(), rest
    if registry == "index.docker.io":
        registry = DEFAULT_REGISTRY
    if registry == DEFAULT_REGISTRY and repository and "/" not in repository:
        repository = f"library/{repository}"
    return registry, repository


def _check_registry(registry: str, shown: str) -> None:
    match = _HOST.fullmatch(registry)
    if match is None:
        raise ImageNameError(f"image {shown}: {_shown(registry)} is not a registry's host[:port]")
    if match.group(1) and not 0 < int(match.group(1)[:6]) < 65536:
        raise ImageNameError(f"image {shown}: {match.group(1)[:6]} is not a port")


def _check_repository(repository: str, shown: str) -> None:
    if not repository:
        raise ImageNameError(f"image {shown}: the name of the image behind the registry is missing")
    if _HEX64.fullmatch(repository.removeprefix("library/")):
        raise ImageNameError(
            f"image {shown}: 64 hexadecimal digits are an image's ID, not its name"
        )
    if repository != repository.lower():
        raise ImageNameError(
            f"image {shown}: names are lower-case: write {_shown(repository.lower())}"
        )
    for component in repository.split("/"):
        if not _COMPONENT.fullmatch(component):
            raise ImageNameError(
                f"image {shown}: {_shown(component)} is not valid in a name: lower-case letters and"
                " digits, with one . or _ or -, or __, between them"
            )
