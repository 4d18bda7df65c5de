"""The image store of a node: what of ``Images`` the engine calls, over the parts beside this file.

An image is there when its record is: that is written after all its layers are durable, and removed
before any of them. Layers are shared by chain ID, made by one worker at a time, and stay while an
image, a container or a pull under way needs them. The runtime itself parses no tar and speaks no
HTTP (see ``worker``).

Folders are 0700: images bring setuid programs, which no user of the host is to reach
(CVE-2021-41091, CVE-2024-25621). Overlay needs no more, since it goes to its layers as the mounter.
"""

from __future__ import annotations

import asyncio
import logging
import time
from collections import Counter
from collections.abc import AsyncGenerator, Callable, Iterable, Mapping
from concurrent.futures import ThreadPoolExecutor
from contextlib import asynccontextmanager, suppress
from pathlib import Path
from typing import Any, Final, TypeVar

from noderuntime.errors import ImageError, NotFoundError
from noderuntime.host.syscalls import host_error
from noderuntime.images import client
from noderuntime.images.artifact import Artifacts
from noderuntime.images.auth_file import credentials_for
from noderuntime.images.client import Worker
from noderuntime.images.content import PRIVATE, TRAVERSABLE, Content
from noderuntime.images.flights import Flights
from noderuntime.images.layers import LayerInfo, Layers, remove_tree
from noderuntime.images.ports import Credentials, FsUsage, Image, Snapshot
from noderuntime.images.records import Record, Records, config_of
from noderuntime.images.reference import Reference, parse
from noderuntime.images.snapshot import Snapshots, Usage, usage_of
from noderuntime.telemetry import metrics
from noderuntime.telemetry.trace import span

T = TypeVar("T")
PULL_S: Final = 3600.0
USAGE_AGE_S: Final = 10.0
SPARED_S: Final = 600.0

_log = logging.getLogger(__name__)


class ImageStore:
    """Implements ``Images`` below ``state_dir``: ``images/`` and ``snapshots/``."""

    def __init__(self, state_dir: Path, hosts_dir: Path, auth_file: Path | None = None) -> None:
        """``hosts_dir`` is a ``certs.d``, there or not; ``auth_file`` is for artifacts.

        Nothing is touched before ``recover``.
        """
        self._state_dir = state_dir
        self._root = state_dir / "images"
        self._hosts_dir = hosts_dir
        self._auth_file = auth_file
        self._content = Content(self._root)
        self._folders = Layers(self._root)
        self._records = Records(self._root)
        self._snapshots = Snapshots(state_dir)
        self._layers: dict[str, LayerInfo] = {}
        self._making: dict[str, asyncio.Future[None]] = {}
        self._held: Counter[str] = Counter()  # chains and blobs that pulls under way need
        self._fetching = 0
        self._spared: dict[str, float] = {}  # layers of failed pulls, until when
        self._pulls: Flights[Image] = Flights()
        self._artifacts = Artifacts(self._root)
        self._texts: Flights[str] = Flights()
        self._writing = asyncio.Lock()
        self._threads = ThreadPoolExecutor(4, thread_name_prefix="images")
        self._uppers: dict[str, tuple[float, Usage]] = {}

    async def recover(self) -> None:
        """Read what is on disk; drop half-made blobs, layers and records. Before any other call."""
        await self._in_thread(self._recover)

    def _recover(self) -> None:
        self._state_dir.mkdir(mode=TRAVERSABLE, parents=True, exist_ok=True)
        self._root.mkdir(mode=PRIVATE, exist_ok=True)
        for part in (self._content, self._folders, self._records, self._snapshots):
            part.create()
        client.recover(self._content, self._folders)
        self._content.recover()
        self._snapshots.recover()
        needed = self._snapshots.used()
        self._layers = self._folders.recover(needed)
        for chain in (needed or frozenset()) - self._layers.keys():
            self._mend(chain)
        self._records.recover(lambda record: all(c in self._layers for c in record.layers))
        self._content.retain(self._blobs())
        for path in self._take_unused():
            remove_tree(path)

    def _mend(self, chain: str) -> None:
        """Write the damaged marker of a layer anew that a container stands on."""
        folder = self._folders.folder(chain)
        if not self._folders.diff(chain).is_dir():
            return
        metrics.count_damaged_record("layer")
        _log.error(
            "a layer's marker is corrupted; it was written anew", extra={"file": str(folder)}
        )
        usage = usage_of(self._folders.diff(chain))
        info = LayerInfo(chain=chain, size_bytes=usage.used_bytes, inodes=usage.inodes)
        with suppress(OSError):  # a read-only disk
            self._folders.complete(folder, info)
        self._layers[chain] = info

    async def pull(self, reference: str, credentials: Credentials | None = None) -> Image:
        """Fetch, verify, unpack a reference as a user writes it; the same under way is joined."""
        parsed = parse(reference)
        # With other credentials it is another pull: who may not read an image gets no one else's.
        key = ("pull", str(parsed), _key_of(credentials))
        return await self._pulls.join(key, lambda: self._fetch(parsed, credentials, None))

    async def load(self, path: Path, reference: str) -> Image:
        """Take an image from an OCI layout (folder or tar), as if pulled as ``reference``."""
        parsed = parse(reference)
        key = ("load", str(parsed), str(path))
        return await self._pulls.join(key, lambda: self._fetch(parsed, None, path.absolute()))

    async def artifact(self, reference: str) -> str:
        """Return a seccomp profile by a reference with a digest, from disk or fetched and kept."""
        parsed = parse(reference)
        if not parsed.digest:
            raise ImageError(f"artifact {reference} is named without a digest")
        return await self._texts.join(str(parsed), lambda: self._artifact(parsed))

    async def _artifact(self, reference: Reference) -> str:
        there = await self._in_thread(lambda: self._artifacts.read(reference.digest))
        if there is not None:
            return there
        path, credentials = self._auth_file, None
        if path is not None:
            credentials = await self._in_thread(lambda: credentials_for(path, reference))
        with span("images.artifact", artifact=str(reference)):
            async with Worker(self._root, self._hosts_dir, self._threads) as worker:
                text = await worker.artifact(str(reference), credentials)
        await self._in_thread(lambda: self._artifacts.write(reference.digest, text))
        return text

    async def kept_artifact(self, reference: str) -> str | None:
        """Return what ``artifact`` has kept on disk; nobody else is asked."""
        digest = parse(reference).digest
        return await self._in_thread(lambda: self._artifacts.read(digest)) if digest else None

    async def retain_artifacts(self, references: tuple[str, ...]) -> None:
        """Remove the artifacts that are none of these."""
        kept = frozenset(parse(reference).digest for reference in references)
        await self._in_thread(lambda: self._artifacts.retain(kept))

    async def _fetch(
        self, reference: Reference, credentials: Credentials | None, layout: Path | None
    ) -> Image:
        # Known is what came from this repository: another one saying the digest of an image that is
        # here proves nothing, it may be a private one's.
        prefix = f"{reference.name}@"
        known = frozenset(
            d.removeprefix(prefix)
            for r in self._records.all()
            for d in r.digests
            if d.startswith(prefix)
        )
        with span("images.pull", image=str(reference)):
            self._fetching += 1
            try:
                async with (
                    asyncio.timeout(PULL_S),
                    Worker(self._root, self._hosts_dir, self._threads) as worker,
                ):
                    event = await worker.ask(str(reference), credentials, known, layout)
                    if event["event"] == "image":
                        return await self._take(worker, event, reference)
            except TimeoutError:
                raise ImageError(f"image {reference}: not there after {PULL_S:.0f} s") from None
            finally:
                self._fetching -= 1
                self._drop_blobs()
        record = self._records.find(prefix + event["digest"])
        if record is None:  # removed meanwhile
            return await self._fetch(reference, credentials, layout)
        return await self._name(record, reference, event["digest"])

    async def _take(self, worker: Worker, event: Mapping[str, Any], reference: Reference) -> Image:
        """Have the missing layers made, then record the image."""
        record = Record(
            id=event["id"],
            config=config_of(event["config"]),
            layers=tuple(event["layers"]),
            blobs=tuple(event["blobs"]),
        )
        async with self._holding((*record.layers, *record.blobs)):
            await self._complete(worker, record.layers)
            return await self._name(record, reference, event["digest"])

    @asynccontextmanager
    async def _holding(self, names: tuple[str, ...]) -> AsyncGenerator[None, None]:
        """Keep layers and blobs from being collected; collect what nobody needs in the end."""
        self._held.update(names)
        try:
            yield
        except BaseException:
            # The kubelet comes back in a while: what is here already need not be fetched again.
            self._spared.update(dict.fromkeys(names, time.monotonic() + SPARED_S))
            raise
        finally:
            self._held.subtract(names)
            self._held += Counter()  # drops what is at zero
        await self._collect()

    async def _complete(self, worker: Worker, chains: tuple[str, ...]) -> None:
        """Return when all layers are there. Nothing is claimed while another's layer is awaited."""
        while missing := [c for c in dict.fromkeys(chains) if c not in self._layers]:
            if others := [self._making[c] for c in missing if c in self._making]:
                await asyncio.wait(others)
                continue
            claim = asyncio.get_running_loop().create_future()
            self._making.update(dict.fromkeys(missing, claim))
            try:
                await worker.make(missing)
                while (event := await worker.event())["event"] == "layer":
                    info = LayerInfo(
                        chain=event["chain"],
                        size_bytes=event["size_bytes"],
                        inodes=event["inodes"],
                    )
                    self._layers[info.chain] = info
            finally:
                for chain in missing:
                    del self._making[chain]
                claim.set_result(None)

    async def _name(self, record: Record, reference: Reference, digest: str) -> Image:
        async with self._writing:
            if any(chain not in self._layers for chain in record.layers):
                raise ImageError(
                    f"image {reference} was removed while it was pulled: pull it again"
                )
            new = await self._in_thread(lambda: self._records.put(record, reference, digest))
        return self._image(new)

    def find(self, reference: str) -> Image | None:
        """Find by ID, ID prefix (12 or more digits), tag or digest reference."""
        record = self._records.find(reference)
        return self._image(record) if record else None

    def list(self) -> tuple[Image, ...]:
        """Return all images."""
        return tuple(self._image(record) for record in self._records.all())

    async def remove(self, reference: str) -> None:
        """Remove the image with all its names; a container's layers stay until it is gone."""
        async with self._writing:
            record = self._records.find(reference)
            if record is None:
                return
            await self._in_thread(lambda: self._records.delete(record.id))
        await self._collect()

    async def prepare(self, container_id: str, image: Image) -> Snapshot:
        """Make the writable layer of a container (on disk, not mounted)."""
        record = self._records.find(image.id)
        if record is None:
            raise NotFoundError(f"image {image.id} is not on this node: pull it again")
        chains = record.layers
        if not chains:
            raise ImageError(f"image {image.id} has no layers: there is nothing in it to run")
        lowers = tuple(self._folders.diff(chain) for chain in reversed(chains))
        if not self._snapshots.is_same(container_id, chains):
            self._snapshots.folder(container_id)
            self._snapshots.hold(container_id, chains)
            with span("images.snapshot"):
                await self._in_thread(lambda: self._snapshots.make(container_id, chains, lowers[0]))
        return Snapshot(
            lowers=lowers,
            upper=self._snapshots.upper(container_id),
            work=self._snapshots.work(container_id),
        )

    async def discard(self, container_id: str) -> None:
        """Remove it; idempotent."""
        await self._in_thread(lambda: self._snapshots.drop(container_id))
        self._snapshots.forget(container_id)
        self._uppers.pop(container_id, None)
        await self._collect()

    def containers(self) -> tuple[str, ...]:
        """Return the IDs that have a writable layer, for recovery."""
        return self._snapshots.ids()

    async def usage(self, container_id: str) -> FsUsage:
        """Return what the container has written, not older than a few seconds."""
        if container_id not in self._snapshots.ids():
            raise NotFoundError(f"container {container_id} has no writable layer on this node")
        return self._fs_usage((await self._usage(container_id),))

    async def fs_usage(self) -> FsUsage:
        """Return what all images and snapshots take."""
        layers = (
            Usage(used_bytes=i.size_bytes, inodes=i.inodes) for i in tuple(self._layers.values())
        )
        uppers = [await self._usage(container_id) for container_id in self._snapshots.ids()]
        return self._fs_usage((*layers, *uppers))

    async def _usage(self, container_id: str) -> Usage:
        held = self._uppers.get(container_id)
        if held is not None and time.monotonic() - held[0] < USAGE_AGE_S:
            return held[1]
        upper = self._snapshots.upper(container_id)
        usage = await self._in_thread(lambda: usage_of(upper))
        if container_id in self._snapshots.ids():
            self._uppers[container_id] = (time.monotonic(), usage)
        return usage

    def _fs_usage(self, parts: Iterable[Usage]) -> FsUsage:
        counted = tuple(parts)
        return FsUsage(
            mountpoint=self._state_dir,
            used_bytes=sum(part.used_bytes for part in counted),
            inodes_used=sum(part.inodes for part in counted),
            timestamp_ns=time.time_ns(),
        )

    def _image(self, record: Record) -> Image:
        return Image(
            id=record.id,
            repo_tags=tuple(record.tags),
            repo_digests=record.digests,
            size_bytes=sum(self._layers[c].size_bytes for c in dict.fromkeys(record.layers)),
            config=record.config,
            layers=tuple(self._folders.diff(chain) for chain in record.layers),
            pinned=record.pinned,
        )

    async def _collect(self) -> None:
        """Remove the layers and blobs that nothing needs any more."""
        aside = self._take_unused()
        if aside:
            await self._in_thread(lambda: _remove_all(aside))

    def _take_unused(self) -> tuple[Path, ...]:
        """Take them out of sight, without a pause in which someone could come to need one."""
        used = {chain for record in self._records.all() for chain in record.layers}
        now = time.monotonic()
        self._spared = {chain: until for chain, until in self._spared.items() if until > now}
        on_disk = self._snapshots.used()
        used |= self._layers.keys() if on_disk is None else on_disk
        used |= set(self._held) | set(self._making) | set(self._spared)
        unused = [chain for chain in self._layers if chain not in used]
        for chain in unused:
            del self._layers[chain]
        aside = [self._folders.put_aside(chain) for chain in unused]
        self._drop_blobs()
        return tuple(path for path in aside if path is not None)

    def _drop_blobs(self) -> None:
        if not self._fetching:  # a worker's blobs have no record yet
            self._content.retain(self._blobs())

    def _blobs(self) -> frozenset[str]:
        return frozenset(blob for record in self._records.all() for blob in record.blobs)

    async def _in_thread(self, job: Callable[[], T]) -> T:
        """Run blocking work in this store's own threads; a cancelled caller does not tear it.

        Raises HostError for what the disk refuses.
        """
        try:
            return await asyncio.get_running_loop().run_in_executor(self._threads, job)
        except OSError as error:
            where = error.filename2 or error.filename or self._state_dir
            raise host_error(f"cannot change {where}", error.errno or 0) from error


def _remove_all(paths: Iterable[Path]) -> None:
    for path in paths:
        remove_tree(path)


def _key_of(credentials: Credentials | None) -> tuple[str, ...]:
    if credentials is None:
        return ()
    return (
        credentials.username,
        credentials.password,
        credentials.identity_token,
        credentials.registry_token,
    )
