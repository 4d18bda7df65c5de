"""``Images`` without registry and root: images are added by the test, layers are empty folders."""

from __future__ import annotations

import asyncio
import hashlib
import shutil
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

from noderuntime.errors import ImageError, NotFoundError
from noderuntime.images.ports import Credentials, FsUsage, Image, Snapshot
from noderuntime.images.reference import id_prefix, parse
from noderuntime.policy.model import ImageConfig


class FakeImages:
    """``add`` puts an image into the registry that ``pull`` asks; ``fail`` makes a method raise."""

    def __init__(self, root: Path, called: Callable[[str], None] = lambda _: None) -> None:
        self.root = root
        self._called = called
        self.snapshots: set[str] = set()
        self.remote: dict[str, Image] = {}
        self.calls: list[tuple[str, str]] = []
        self.fail: dict[str, BaseException] = {}
        self.gate: asyncio.Event | None = None  # pulls wait for it
        self.artifacts: dict[str, str] = {}  # what ``artifact`` finds
        self.kept: dict[str, str] = {}  # what it has found
        self._images: dict[str, Image] = {}
        self._used: dict[str, Image] = {}

    def add(
        self,
        reference: str,
        config: ImageConfig | None = None,
        *,
        salt: str = "",
        image_id: str = "",
        is_held: bool = False,
    ) -> Image:
        """Offer an image under ``reference``, or have it; another ``salt`` makes it another image."""
        parsed = parse(reference)
        digits = hashlib.sha256(f"{parsed.name} {config} {salt}".encode()).hexdigest()
        layer = self.root / "layers" / digits[:32] / "diff"
        image = Image(
            id=image_id or f"sha256:{digits}",
            repo_tags=(str(parsed),) if parsed.tag else (),
            repo_digests=(f"{parsed.name}@sha256:{digits[::-1]}",),
            size_bytes=4096,
            config=config or ImageConfig(),
            layers=(layer,),
        )
        self.remote[str(parsed)] = image
        self.remote[image.repo_digests[0]] = image
        if is_held:
            self._images[image.id] = image
        return image

    async def recover(self) -> None:
        self._call("recover", "")
        (self.root / "snapshots").mkdir(parents=True, exist_ok=True)

    async def pull(self, reference: str, credentials: Credentials | None = None) -> Image:
        self._call("pull", reference)
        name = str(parse(reference))
        if self.gate is not None:
            await self.gate.wait()
        offered = self.remote.get(name)
        if offered is None:
            raise ImageError(f"registry {parse(reference).registry} has no image {name}")
        held = self._images.get(offered.id)
        tags = dict.fromkeys((*(held.repo_tags if held else ()), *offered.repo_tags))
        for other in list(self._images.values()):
            left = tuple(tag for tag in other.repo_tags if tag not in tags)
            self._images[other.id] = replace(other, repo_tags=left)
        image = self._images[offered.id] = replace(offered, repo_tags=tuple(tags))
        for layer in image.layers:
            layer.mkdir(parents=True, exist_ok=True)
        return image

    async def artifact(self, reference: str) -> str:
        """Find one that a test has put there."""
        self._call("artifact", reference)
        if reference not in self.artifacts:
            raise ImageError(f"{reference} is not there")
        self.kept[reference] = self.artifacts[reference]
        return self.artifacts[reference]

    async def kept_artifact(self, reference: str) -> str | None:
        """Find one that was found before."""
        return self.kept.get(reference)

    async def retain_artifacts(self, references: tuple[str, ...]) -> None:
        """Forget the others."""
        self._call("retain_artifacts", " ".join(references))
        self.artifacts = {k: v for k, v in self.artifacts.items() if k in references}
        self.kept = {k: v for k, v in self.kept.items() if k in references}

    def find(self, reference: str) -> Image | None:
        digits = id_prefix(reference)
        if digits is not None:
            found = [i for i in self._images.values() if i.id.startswith(f"sha256:{digits}")]
            if len(found) == 1 or len(digits) == 64:
                return found[0] if found else None
        name = str(parse(reference))
        for image in self._images.values():
            if name in image.repo_tags or name in image.repo_digests:
                return image
        return None

    def list(self) -> tuple[Image, ...]:
        return tuple(self._images.values())

    async def remove(self, reference: str) -> None:
        self._call("remove", reference)
        image = self.find(reference)
        if image is not None:
            del self._images[image.id]
            self._collect(image)

    async def prepare(self, container_id: str, image: Image) -> Snapshot:
        self._call("prepare", container_id)
        held = self._images.get(image.id)
        if held is None:
            raise NotFoundError(f"image {image.id} is not on this node: pull it again")
        folder = self.root / "snapshots" / container_id
        self._used[container_id] = held
        self.snapshots.add(container_id)
        for name in ("upper", "work"):
            (folder / name).mkdir(parents=True, exist_ok=True)
        return Snapshot(lowers=held.layers[::-1], upper=folder / "upper", work=folder / "work")

    async def discard(self, container_id: str) -> None:
        self._call("discard", container_id)
        shutil.rmtree(self.root / "snapshots" / container_id, ignore_errors=True)
        self.snapshots.discard(container_id)
        image = self._used.pop(container_id, None)
        if image is not None:
            self._collect(image)

    def containers(self) -> tuple[str, ...]:
        return tuple(sorted(self.snapshots))

    async def usage(self, container_id: str) -> FsUsage:
        if container_id not in self.containers():
            raise NotFoundError(f"container {container_id} has no writable layer on this node")
        return self._usage()

    async def fs_usage(self) -> FsUsage:
        return self._usage()

    def _usage(self) -> FsUsage:
        return FsUsage(mountpoint=self.root, used_bytes=0, inodes_used=0, timestamp_ns=1)

    def _collect(self, image: Image) -> None:
        if image.id not in self._images and image not in self._used.values():
            for layer in image.layers:
                shutil.rmtree(layer.parent, ignore_errors=True)

    def _call(self, method: str, argument: str) -> None:
        """Record the call, and fail as the test wants: the next call is well again."""
        self.calls.append((method, argument))
        self._called(f"images.{method}")
        error: BaseException | None = self.fail.pop(method, None)
        if error is not None:
            raise error


def assert_is_images(images: Callable[[Path], FakeImages]) -> None:
    """Let the type checker compare the fake with the Protocol."""
    from noderuntime.images.ports import Images

    _: Images = images(Path("/"))
