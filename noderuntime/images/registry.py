"""Pulling from a registry and its mirrors: manifests by tag or digest, blobs verified on arrival.

Mirrors are asked in the order of ``hosts.toml``, the upstream last; whatever a mirror does wrong
only costs the time to ask the next. A tag is resolved by hosts that may resolve, everything else is
asked for by digest, so a mirror cannot choose the content. Source: distribution-spec.
"""

from __future__ import annotations

import json
import time
from collections.abc import Callable, Iterator, Sequence
from typing import Final, TypeVar, cast
from urllib.parse import quote

from urllib3.exceptions import HTTPError
from urllib3.response import BaseHTTPResponse

from noderuntime.errors import ImageError, RegistryUnavailableError
from noderuntime.images.content import Ingest, digest_of
from noderuntime.images.hosts import PULL, RESOLVE
from noderuntime.images.manifest import INDEXES, MANIFESTS, MAX_DOCUMENT, Descriptor
from noderuntime.images.reference import Reference, is_digest
from noderuntime.images.transport import Host, reason_of, refused

CHUNK: Final = 256 << 10
MAX_FAILURES: Final = 4  # in a row, each with fewer than SLOW_BYTES
MAX_REQUESTS: Final = 20  # for one blob from one host
SLOW_BYTES: Final = 64 << 10
SLOW_S: Final = 60.0
_ACCEPT: Final = {"Accept": ", ".join((*MANIFESTS, *INDEXES))}
T = TypeVar("T")


class Registry:
    """Images of one repository."""

    def __init__(self, reference: Reference, hosts: Sequence[Host]) -> None:
        """``hosts`` in the order in which they are asked."""
        self._reference = reference
        self._hosts = hosts
        self._down: set[Host] = set()  # mirrors that did not answer: not asked again in this pull

    def resolve(self, known: frozenset[str]) -> tuple[str, bytes | None, str]:
        """Return digest, document and media type; no document where the digest is ``known``."""
        target = self._reference.target
        capability = PULL if self._reference.digest else RESOLVE

        def ask(host: Host) -> tuple[str, bytes | None, str]:
            if known and (digest := self._head(host, target)) in known:
                return digest, None, ""
            data, media_type = self._manifest(host, target)
            return digest_of(data), data, media_type

        return self._ask(capability, ask)

    def manifest(self, digest: str) -> tuple[bytes, str]:
        """Return a manifest by digest, and its media type."""
        return self._ask(PULL, lambda host: self._manifest(host, digest))

    def small_blob(self, blob: Descriptor) -> bytes:
        """Return a config."""

        def ask(host: Host) -> bytes:
            response = self._open(host, f"/blobs/{blob.digest}", {}, f"blob {blob.digest}")
            data = _read(response, blob.size_bytes, f"blob {blob.digest}")
            if len(data) != blob.size_bytes or digest_of(data) != blob.digest:
                raise ImageError(f"blob {blob.digest} of registry {host.endpoint.host} is damaged")
            return data

        return self._ask(PULL, ask)

    def blob(self, blob: Descriptor, ingest: Ingest) -> None:
        """Receive a layer whole and verified; a broken download goes on where it stopped."""

        def ask(host: Host) -> None:
            try:
                self._receive(host, blob, ingest)
                ingest.verify()
            except ImageError as error:
                if not isinstance(error, RegistryUnavailableError):
                    ingest.restart()  # what this host sent is not to be built upon
                raise

        self._ask(PULL, ask)

    def _ask(self, capability: str, ask: Callable[[Host], T]) -> T:
        """Ask one host after another; the last one's error counts, the others' are told with it."""
        hosts = [host for host in self._hosts if capability in host.endpoint.capabilities]
        problems: list[str] = []
        for host in hosts[:-1]:
            if host in self._down:
                continue
            try:
                return ask(host)
            except ImageError as error:
                problems.append(str(error))
                if isinstance(error, RegistryUnavailableError):
                    self._down.add(host)
        if not hosts:
            raise ImageError(f"no host in hosts.toml may {capability} for {self._reference.name}")
        try:
            return ask(hosts[-1])
        except ImageError as error:
            if not problems:
                raise
            told = "; before that: ".join((str(error), *problems))
            raise type(error)(told) from error

    def _head(self, host: Host, target: str) -> str:
        """Return the digest that the host says, "" where only GET will tell what is wrong."""
        path = self._path(host, f"/manifests/{target}")
        response = host.head(path, self._reference.repository, _ACCEPT)
        response.close()
        digest = response.headers.get("Docker-Content-Digest", "")
        return digest if response.status == 200 and is_digest(digest) else ""

    def _manifest(self, host: Host, target: str) -> tuple[bytes, str]:
        what = f"the manifest of {self._reference} at registry {host.endpoint.host}"
        response = self._open(host, f"/manifests/{target}", _ACCEPT, f"manifest {target}")
        declared = response.headers.get("Docker-Content-Digest", "")
        media_type = response.headers.get("Content-Type", "").partition(";")[0].strip()
        data = _read(response, MAX_DOCUMENT, what)
        wanted = target if is_digest(target) else declared
        if is_digest(wanted) and digest_of(data) != wanted:
            raise ImageError(f"{what} is damaged: it has digest {digest_of(data)}, not {wanted}")
        return data, media_type

    def _receive(self, host: Host, blob: Descriptor, ingest: Ingest) -> None:
        failures = 0
        problem = "it ends blobs too early"
        for _ in range(MAX_REQUESTS):
            if ingest.is_complete:
                return
            before = ingest.written
            headers = {"Range": f"bytes={before}-"} if before else {}
            response = self._open(host, f"/blobs/{blob.digest}", headers, f"blob {blob.digest}")
            try:
                _stream(response, ingest, before)
            except (HTTPError, OSError) as error:
                problem = reason_of(error)
            finally:
                response.close()
            failures = 0 if ingest.written - before >= SLOW_BYTES else failures + 1
            if failures >= MAX_FAILURES:
                break
            if not ingest.is_complete:
                host.pause(failures)
        if not ingest.is_complete:
            raise RegistryUnavailableError(
                f"registry {host.endpoint.host} breaks off at {ingest.written} of"
                f" {blob.size_bytes} bytes of blob {blob.digest}: {problem}"
            )

    def _open(self, host: Host, path: str, headers: dict[str, str], what: str) -> BaseHTTPResponse:
        response = host.get(self._path(host, path), self._reference.repository, headers)
        self._check(host, response, what)
        return response

    def _path(self, host: Host, path: str) -> str:
        query = "" if host.endpoint.is_upstream else f"?ns={quote(self._reference.registry)}"
        return f"/{self._reference.repository}{path}{query}"

    def _check(self, host: Host, response: BaseHTTPResponse, what: str) -> None:
        """Raise the sentence for an answer that is not the wanted thing."""
        status = response.status
        if status in {200, 206}:
            return
        said = _said(response)
        response.close()
        name, repository = host.endpoint.host, self._reference.repository
        if status == 401:
            raise ImageError(refused(host, repository))
        if status == 403:
            raise ImageError(f"registry {name} denies access to {repository}{said}")
        if status == 404 and what.startswith("manifest"):
            raise ImageError(f"registry {name} has no image {self._reference}: check name and tag")
        if status == 404:
            raise ImageError(f"registry {name} has lost {what} of {self._reference}{said}")
        raise ImageError(f"registry {name} answers {status} for {what} of {repository}{said}")


def _stream(response: BaseHTTPResponse, ingest: Ingest, before: int) -> None:
    """Write what comes behind ``before``."""
    if response.status == 206:
        begin = response.headers.get("Content-Range", "").removeprefix("bytes ").partition("-")[0]
        if begin != str(before):
            ingest.restart()
            raise ImageError(f"the registry answers another range than the asked one: {begin[:20]}")
    elif before:
        ingest.restart()
    for chunk in _pieces(response):
        ingest.write(chunk)


def _pieces(response: BaseHTTPResponse) -> Iterator[bytes]:
    """Yield the body as it arrives; raises TimeoutError where nearly nothing does.

    ``read1``, since ``read`` and ``stream`` wait for a whole chunk: a host that sends a byte now
    and then would hold them for ever.
    """
    since, count = time.monotonic(), 0
    while chunk := response.read1(CHUNK, decode_content=False):
        yield chunk
        count += len(chunk)
        now = time.monotonic()
        if now - since > SLOW_S:
            if count < SLOW_BYTES:
                raise TimeoutError(f"fewer than {SLOW_BYTES} bytes in {SLOW_S:.0f} s")
            since, count = now, 0


def _read(response: BaseHTTPResponse, limit: int, what: str) -> bytes:
    """Read a small answer whole; raises ImageError where it is longer than ``limit``."""
    parts: list[bytes] = []
    count = 0
    try:
        for chunk in _pieces(response):
            parts.append(chunk)
            count += len(chunk)
            if count > limit:
                raise ImageError(f"{what} has more than {limit} bytes")
    except (HTTPError, OSError) as error:
        raise RegistryUnavailableError(f"{what} breaks off: {reason_of(error)}") from error
    finally:
        response.close()
    return b"".join(parts)


def _said(response: BaseHTTPResponse) -> str:
    """Return the registry's own words in an error answer, if there are any."""
    try:
        document: object = json.loads(response.read(16 << 10))
        errors = cast("dict[str, list[dict[str, object]]]", document)["errors"]
        message = str(errors[0].get("message", ""))
    except (HTTPError, OSError, ValueError, LookupError, TypeError, AttributeError):
        return ""
    text = " ".join(message.split())[:200]
    return f": {text}" if text and text.isprintable() else ""
