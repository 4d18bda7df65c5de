"""What the worker does: resolve, then make the layers that the store wants."""

from __future__ import annotations

import os
import threading
from collections.abc import Callable, Iterable, Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Final, Protocol

from noderuntime.errors import ImageError, NodeRuntimeError
from noderuntime.images import artifact
from noderuntime.images.content import Content, Ingest
from noderuntime.images.hosts import endpoints_of
from noderuntime.images.jail import Jail, Limits
from noderuntime.images.layers import LayerInfo, Layers, chain_ids, describe_implied
from noderuntime.images.manifest import (
    Descriptor,
    Manifest,
    architecture,
    choose,
    is_index,
    parse_config,
    parse_document,
    parse_manifest,
)
from noderuntime.images.ports import Credentials
from noderuntime.images.reference import Reference, parse
from noderuntime.images.registry import Registry
from noderuntime.images.transport import Host

Event = Mapping[str, object]
PARALLEL: Final = 3
# A layer may become a hundred times its compressed size, and 4 GiB in any case (a large file of
# zeros is nothing evil), but never more than MAX_PLAIN.
MAX_RATIO: Final = 100
MAX_PLAIN_SMALL: Final = 4 << 30
MAX_PLAIN: Final = 128 << 30
MAX_ENTRIES: Final = 2_000_000


class Source(Protocol):
    """A registry or a layout."""

    def resolve(self, known: frozenset[str]) -> tuple[str, bytes | None, str]:
        """Return digest, document and media type; no document where the digest is ``known``."""
        ...

    def manifest(self, digest: str) -> tuple[bytes, str]:
        """Return a manifest and its media type."""
        ...

    def small_blob(self, blob: Descriptor) -> bytes:
        """Return a config."""
        ...

    def blob(self, blob: Descriptor, ingest: Ingest) -> None:
        """Receive a layer, verified."""
        ...


@dataclass(frozen=True, slots=True, kw_only=True)
class _Found:
    """A layer that the image has."""

    chain: str
    diff_id: str
    blob: Descriptor
    lowers: tuple[str, ...]  # chains, topmost first


def run(
    request: Mapping[str, Any],
    jail: Jail,
    commands: Iterable[Mapping[str, Any]],
    emit: Callable[[Event], None],
) -> None:
    """Serve one request; raises NodeRuntimeError."""
    root = Path(request["root"])
    content, layers = Content(root), Layers(root)
    source = _source(request, parse(request["reference"]))
    if request.get("artifact"):
        artifact.fetch(source, request["reference"], emit)
        return
    digest, data, media_type = source.resolve(frozenset(request["known"]))
    if data is None:
        emit({"event": "known", "digest": digest})
        return
    found = _image(source, content, (digest, data, media_type), request["reference"], emit)
    maker = _Maker(source, content, layers, jail, request["run"])
    for command in commands:
        wanted = frozenset(command["make"])
        maker.make([layer for layer in found if layer.chain in wanted], emit)
        emit({"event": "made"})


def _source(request: Mapping[str, Any], reference: Reference) -> Source:
    if request["layout"]:
        from noderuntime.images.layout import Layout  # seldom: loading tarfile takes a while

        return Layout(Path(request["layout"]), reference)
    given = request["credentials"]
    credentials = Credentials(**given) if given else None
    endpoints = endpoints_of(Path(request["hosts_dir"]), reference.registry)
    return Registry(reference, [Host(endpoint, credentials) for endpoint in endpoints])


def _image(
    source: Source,
    content: Content,
    top: tuple[str, bytes, str],
    what: str,
    emit: Callable[[Event], None],
) -> list[_Found]:
    """Fetch the manifest for this machine and its config; say what the image is."""
    digest, data, _ = top
    documents = {digest: data}
    manifest = _manifest(source, documents, top, what)
    config_data = source.small_blob(manifest.config)
    config = parse_config(parse_document(config_data, f"the config of {what}"), what)
    if len(config.diff_ids) != len(manifest.layers):
        raise ImageError(
            f"{what}: its config has {len(config.diff_ids)} layers, its manifest"
            f" {len(manifest.layers)}"
        )
    documents[manifest.config.digest] = config_data
    for name, document in documents.items():
        content.put(name, document)
    chains = chain_ids(config.diff_ids)
    found = {
        chain: _Found(chain=chain, diff_id=diff_id, blob=blob, lowers=chains[:index][::-1])
        for index, (chain, diff_id, blob) in enumerate(
            zip(chains, config.diff_ids, manifest.layers, strict=True)
        )
    }
    values = asdict(config)
    del values["diff_ids"]
    emit(
        {
            "event": "image",
            "digest": digest,
            "id": manifest.config.digest,
            "blobs": list(documents),
            "layers": list(chains),
            "config": values,
        }
    )
    return list(found.values())


def _manifest(
    source: Source, documents: dict[str, bytes], top: tuple[str, bytes, str], what: str
) -> Manifest:
    """Go from index to manifest (an index may be inside another), keeping what was read."""
    _, data, media_type = top
    arch = architecture()
    for _ in range(3):
        document = parse_document(data, f"the manifest of {what}")
        if not is_index(document, media_type):
            return parse_manifest(document, what)
        chosen = choose(document, what, arch)
        data, media_type = source.manifest(chosen.digest)
        documents[chosen.digest] = data
    raise ImageError(f"{what} is an index of indexes of indexes")


class _Maker:
    """Makes layers: download, verify, unpack, three at a time; then publish in order."""

    def __init__(
        self, source: Source, content: Content, layers: Layers, jail: Jail, run_id: str
    ) -> None:
        self._source = source
        self._content = content
        self._layers = layers
        self._jail = jail
        self._run_id = run_id
        self._stop = threading.Event()

    def make(self, wanted: list[_Found], emit: Callable[[Event], None]) -> None:
        """Make all, base first; where one fails, those below it are kept and it is raised."""
        made: list[tuple[Path, LayerInfo]] = []
        problem: NodeRuntimeError | None = None
        # The largest first would end sooner, the base first keeps more when one fails.
        with ThreadPoolExecutor(PARALLEL, thread_name_prefix="layer") as pool:
            futures = [pool.submit(self._make, layer) for layer in wanted]
            for layer, future in zip(wanted, futures, strict=True):
                try:
                    path, info, implied = future.result()
                except NodeRuntimeError as error:
                    problem = problem or error
                    self._stop.set()
                    continue
                if problem is None:
                    below = {i.chain: p / "diff" for p, i in made}
                    lowers = [below.get(c) or self._layers.diff(c) for c in layer.lowers]
                    describe_implied(path / "diff", implied, lowers)
                    self._layers.complete(path, info)
                    made.append((path, info))
        if made:
            self._layers.publish(made)
        for _, info in made:
            emit({"event": "layer", **asdict(info)})
        if problem is not None:
            raise problem

    def _make(self, layer: _Found) -> tuple[Path, LayerInfo, tuple[bytes, ...]]:
        if self._stop.is_set():
            raise ImageError(f"layer {layer.blob.digest} was not begun")
        name = f"{layer.chain.removeprefix('sha256:')}.{self._run_id}"
        ingest = self._content.receive(name, layer.blob.digest, layer.blob.size_bytes)
        try:
            self._source.blob(layer.blob, ingest)
            path = self._layers.begin(layer.chain, self._run_id)
            info, implied = self._unpack(layer, ingest, path)
        except OSError as error:
            raise ImageError(f"layer {layer.blob.digest}: {error.strerror or error}") from error
        finally:
            ingest.discard()
        return path, info, implied

    def _unpack(
        self, layer: _Found, ingest: Ingest, path: Path
    ) -> tuple[LayerInfo, tuple[bytes, ...]]:
        size = layer.blob.size_bytes
        limits = Limits(
            is_base=not layer.lowers,
            limit_bytes=min(MAX_PLAIN, max(MAX_PLAIN_SMALL, MAX_RATIO * size)),
            max_entries=MAX_ENTRIES,
        )
        file = ingest.open()
        folder = os.open(path / "diff", os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
        try:
            result = self._jail.unpack(file, folder, limits)
        except ImageError as error:
            raise ImageError(f"layer {layer.blob.digest}: {error}") from error
        finally:
            os.close(file)
            os.close(folder)
        if result.diff_id != layer.diff_id:
            raise ImageError(
                f"layer {layer.blob.digest} unpacks to {result.diff_id}, its config says"
                f" {layer.diff_id}"
            )
        info = LayerInfo(chain=layer.chain, size_bytes=result.size_bytes, inodes=result.inodes)
        return info, result.implied
