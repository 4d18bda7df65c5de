"""What the engine asks of images. Errors are ``ImageError`` and ``NotFoundError``."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

from noderuntime.policy.model import ImageConfig


@dataclass(frozen=True, slots=True, kw_only=True)
class Credentials:
    """AuthConfig of CRI. Never logged; ``repr`` says nothing."""

    username: str = ""
    password: str = ""
    identity_token: str = ""
    registry_token: str = ""

    def __repr__(self) -> str:
        """Hide the secrets."""
        return "Credentials(...)"


@dataclass(frozen=True, slots=True, kw_only=True)
class Image:
    """One whole image. ``id`` is the config's digest, ``layers`` are unpacked, base first."""

    id: str
    repo_tags: tuple[str, ...]  # registry/path:tag, normalised
    repo_digests: tuple[str, ...]  # registry/path@sha256:...
    size_bytes: int
    config: ImageConfig
    layers: tuple[Path, ...]
    pinned: bool = False


@dataclass(frozen=True, slots=True, kw_only=True)
class FsUsage:
    """Usage of the file system that holds ``mountpoint``."""

    mountpoint: Path
    used_bytes: int
    inodes_used: int
    timestamp_ns: int


class Images(Protocol):
    """The image store of one node; one instance a state directory."""

    async def recover(self) -> None:
        """Read what is on disk; drop half-made blobs, layers and records. Before any other call."""
        ...

    async def pull(self, reference: str, credentials: Credentials | None = None) -> Image:
        """Fetch, verify, unpack a reference as a user writes it; the same under way is joined."""
        ...

    async def artifact(self, reference: str) -> str:
        """Return a seccomp profile by a reference with a digest, from disk or fetched and kept."""
        ...

    async def kept_artifact(self, reference: str) -> str | None:
        """Return what ``artifact`` has kept on disk; nobody else is asked."""
        ...

    async def retain_artifacts(self, references: tuple[str, ...]) -> None:
        """Remove the artifacts that are none of these."""
        ...

    def find(self, reference: str) -> Image | None:
        """Find by ID, ID prefix (12 or more digits), tag or digest reference."""
        ...

    def list(self) -> tuple[Image, ...]:
        """Return all images."""
        ...

    async def remove(self, reference: str) -> None:
        """Remove the image with all its names; a container's layers stay until it is gone."""
        ...

    async def prepare(self, container_id: str, image: Image) -> Snapshot:
        """Make the writable layer of a container (on disk, not mounted)."""
        ...

    async def discard(self, container_id: str) -> None:
        """Remove it; idempotent."""
        ...

    def containers(self) -> tuple[str, ...]:
        """Return the IDs that have a writable layer, for recovery."""
        ...

    async def usage(self, container_id: str) -> FsUsage:
        """Return what the container has written."""
        ...

    async def fs_usage(self) -> FsUsage:
        """Return what all images and snapshots take."""
        ...


@dataclass(frozen=True, slots=True, kw_only=True)
class Snapshot:
    """Overlay parts of one container: ``lowers`` topmost first."""

    lowers: tuple[Path, ...]
    upper: Path
    work: Path
