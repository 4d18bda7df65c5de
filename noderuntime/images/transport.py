"""HTTP to one registry host: retries, redirects, authentication. Used in the worker only.

What always holds: the kubelet's credentials go to the host that the image's reference names (the
upstream) and to the token server which that host points to over TLS, to nobody else; a redirect to
another origin takes no credential along and never leaves TLS; every wait has an end.
Sources: distribution-spec; distribution docs/spec/auth/{token,oauth}.md; RFC 9110.
"""

from __future__ import annotations

import base64
import json
import os
import re
import ssl
import threading
import time
import urllib.request
from collections.abc import Mapping
from typing import Final, cast
from urllib.parse import urlencode, urljoin, urlsplit

import urllib3
from urllib3.exceptions import HTTPError, SSLError
from urllib3.response import BaseHTTPResponse

from noderuntime.errors import ImageError, RegistryUnavailableError
from noderuntime.images.hosts import Endpoint
from noderuntime.images.manifest import MAX_DOCUMENT
from noderuntime.images.ports import Credentials

CONNECT_S: Final = 10.0
READ_S: Final = 30.0
TRIES: Final = 4
MIRROR_TRIES: Final = 2
MAX_REDIRECTS: Final = 5
_CHALLENGE = re.compile(r'(\w+)=(?:"([^"]*)"|([^\s,]+))')
_REDIRECTS: Final = frozenset({301, 302, 303, 307, 308})


class Host:
    """One endpoint with its connections and its token; usable from several threads."""

    def __init__(
        self, endpoint: Endpoint, credentials: Credentials | None, *, backoff_s: float = 0.3
    ) -> None:
        """Take the credentials only where ``endpoint`` is the upstream."""
        self.endpoint = endpoint
        self.credentials = credentials if endpoint.is_upstream else None
        self._backoff_s = backoff_s
        self._lock = threading.Lock()
        self._authorization: dict[str, str] = {}
        if self.credentials is not None and self.credentials.registry_token:
            self._authorization[""] = f"Bearer {self.credentials.registry_token}"
        self._own = _pool(endpoint.base, _context(endpoint))
        self._others: dict[str, urllib3.PoolManager] = {}

    def get(self, path: str, repository: str, headers: Mapping[str, str]) -> BaseHTTPResponse:
        """GET below ``/v2``; the answer is not read yet. Raises RegistryUnavailableError."""
        return self._try("GET", path, repository, headers)

    def head(self, path: str, repository: str, headers: Mapping[str, str]) -> BaseHTTPResponse:
        """HEAD below ``/v2``."""
        return self._try("HEAD", path, repository, headers)

    def pause(self, failures: int) -> None:
        """Wait before trying again."""
        time.sleep(min(self._backoff_s * 2**failures, 5.0))

    def _try(
        self, method: str, path: str, repository: str, headers: Mapping[str, str]
    ) -> BaseHTTPResponse:
        """Send until something other than 'not now' comes back."""
        problem = ""
        for attempt in range(TRIES if self.endpoint.is_upstream else MIRROR_TRIES):
            if attempt:
                self.pause(attempt - 1)
            try:
                response = self._authorized(method, path, repository, headers)
            except (HTTPError, OSError) as error:
                problem = reason_of(error)
                if isinstance(error, SSLError) or isinstance(error.__cause__, SSLError):
                    break
                continue
            if response.status != 429 and response.status < 500:
                return response
            problem = f"it answers {response.status}"
            response.close()
        raise RegistryUnavailableError(f"registry {self.endpoint.host} is not available: {problem}")

    def _authorized(
        self, method: str, path: str, repository: str, headers: Mapping[str, str]
    ) -> BaseHTTPResponse:
        authorization = self._authorization.get(repository) or self._authorization.get("")
        response = self._send(method, path, headers, authorization)
        if response.status != 401:
            return response
        challenges = response.headers.getlist("WWW-Authenticate")
        with self._lock:
            known = self._authorization.get(repository)
            if known is None or known == authorization:  # no other thread has been here meanwhile
                known = self._answer(challenges, repository)
            if known is None:
                return response
            self._authorization[repository] = known
        response.close()
        return self._send(method, path, headers, known)

    def _send(
        self, method: str, path: str, headers: Mapping[str, str], authorization: str | None
    ) -> BaseHTTPResponse:
        url = self.endpoint.base + path
        origin = _origin(url)
        for _ in range(MAX_REDIRECTS + 1):
            sent = {"User-Agent": "noderuntime", "Accept-Encoding": "identity", **headers}
            pool = self._own
            if _origin(url) == origin:
                sent |= {name: ", ".join(values) for name, values in self.endpoint.headers.items()}
                if authorization:
                    sent["Authorization"] = authorization
            else:
                pool = self._pool_for(url)
            response = pool.request(
                method, url, headers=sent, redirect=False, retries=False, preload_content=False
            )
            if response.status not in _REDIRECTS:
                return response
            target = urljoin(url, response.headers.get("Location", ""))
            response.close()
            parts = urlsplit(target)
            if parts.scheme not in {"http", "https"} or not parts.hostname:
                break
            if urlsplit(url).scheme == "https" and parts.scheme != "https":
                raise ImageError(
                    f"registry {self.endpoint.host} redirects from https to http: not followed"
                )
            url = target
        raise ImageError(f"registry {self.endpoint.host} redirects without end")

    def _pool_for(self, url: str) -> urllib3.PoolManager:
        """Return connections to another origin: with nothing of this endpoint's settings."""
        origin = _origin(url)
        with self._lock:
            if origin not in self._others:
                self._others[origin] = _pool(url, _context(None))
            return self._others[origin]

    def _answer(self, challenges: list[str], repository: str) -> str | None:
        """Make an Authorization header for a challenge; None where there is nothing to offer."""
        for challenge in challenges:
            scheme, _, rest = challenge.strip().partition(" ")
            values = {m[1].lower(): m[2] or m[3] or "" for m in _CHALLENGE.finditer(rest)}
            if scheme.lower() == "bearer" and values.get("realm"):
                return f"Bearer {self._token(values, repository)}"
            if scheme.lower() == "basic" and self.credentials and self.credentials.username:
                return _basic(self.credentials)
        return None

    def _token(self, challenge: Mapping[str, str], repository: str) -> str:
        """Fetch a token from the server that the challenge names."""
        realm = challenge["realm"]
        scheme = urlsplit(realm).scheme
        if scheme != "https" and (scheme != "http" or self.endpoint.base.startswith("https:")):
            raise ImageError(
                f"registry {self.endpoint.host} names a token server without TLS: not asked"
            )
        query = {
            "service": challenge.get("service", ""),
            "scope": challenge.get("scope") or f"repository:{repository}:pull",
        }
        pool = _pool(realm, _context(self.endpoint))
        try:
            response = self._ask_token(pool, realm, query)
            body = response.read(MAX_DOCUMENT)
            response.close()
        finally:
            pool.clear()
        if response.status >= 500 or response.status == 429:
            raise HTTPError(f"its token server answers {response.status}")
        token = _token_in(body) if response.status == 200 else ""
        if not token:
            raise ImageError(refused(self, repository))
        return token

    def _ask_token(
        self, pool: urllib3.PoolManager, realm: str, query: Mapping[str, str]
    ) -> BaseHTTPResponse:
        own = self.credentials
        if own is not None and own.identity_token:
            form = {
                **query,
                "grant_type": "refresh_token",
                "refresh_token": own.identity_token,
                "client_id": "noderuntime",
            }
            return pool.request(
                "POST",
                realm,
                body=urlencode(form),
                headers={"Content-Type": "application/x-www-form-urlencoded"},
                redirect=False,
                retries=False,
                preload_content=False,
            )
        headers = {"Authorization": _basic(own)} if own is not None and own.username else {}
        url = f"{realm}{'&' if '?' in realm else '?'}{urlencode(query)}"
        return pool.request(
            "GET", url, headers=headers, redirect=False, retries=False, preload_content=False
        )


def refused(host: Host, repository: str) -> str:
    """Return the sentence for a 401."""
    if host.credentials is None:
        return (
            f"registry {host.endpoint.host} wants credentials for {repository}, or there is no such"
            " image: check the name, or add an imagePullSecret"
        )
    return (
        f"registry {host.endpoint.host} does not accept the credentials for {repository}: check the"
        " imagePullSecret"
    )


def reason_of(error: BaseException) -> str:
    """Return the innermost reason of a failed request, short."""
    inner = error
    while True:
        deeper = getattr(inner, "reason", None) or inner.__cause__
        if not isinstance(deeper, BaseException):
            break
        inner = deeper
    if isinstance(inner, OSError) and inner.strerror:
        return inner.strerror.lower()
    text = str(inner).rpartition(": ")[2] if isinstance(inner, HTTPError) else str(inner)
    return " ".join(text.split())[:200] or type(inner).__name__


def _origin(url: str) -> str:
    parts = urlsplit(url)
    port = parts.port or (443 if parts.scheme == "https" else 80)
    return f"{parts.scheme}://{parts.hostname}:{port}"


def _basic(credentials: Credentials) -> str:
    pair = f"{credentials.username}:{credentials.password}".encode()
    return f"Basic {base64.b64encode(pair).decode()}"


def _token_in(body: bytes) -> str:
    try:
        document: object = json.loads(body)
    except ValueError:
        return ""
    if not isinstance(document, dict):
        return ""
    values = cast("dict[str, object]", document)
    token = values.get("token") or values.get("access_token")
    return token if isinstance(token, str) and token.isprintable() else ""


def _context(endpoint: Endpoint | None) -> ssl.SSLContext | None:
    """Return TLS settings: the system's CAs and the endpoint's own beside them."""
    if endpoint is not None and not endpoint.base.startswith("https:"):
        return None
    context = ssl.create_default_context()
    if endpoint is None:
        return context
    try:
        for authority in endpoint.ca_files:
            context.load_verify_locations(authority)
        for certificate, key in endpoint.client_certs:
            context.load_cert_chain(certificate, key)
    except OSError as error:
        raise ImageError(
            f"the certificates for registry {endpoint.host} cannot be read: {error}"
        ) from error
    if endpoint.skip_verify:
        context.check_hostname = False
        context.verify_mode = ssl.CERT_NONE
    return context


def _pool(url: str, context: ssl.SSLContext | None) -> urllib3.PoolManager:
    """Return connections for ``url``, through the environment's proxy where one is set."""
    parts = urlsplit(url)
    timeout = urllib3.Timeout(connect=CONNECT_S, read=READ_S)
    proxy = _proxy(parts.scheme, parts.hostname or "")
    if proxy:
        return urllib3.ProxyManager(proxy, timeout=timeout, maxsize=8, ssl_context=context)
    return urllib3.PoolManager(timeout=timeout, maxsize=8, ssl_context=context)


def _proxy(scheme: str, host: str) -> str:
    if not any(name.lower().endswith("_proxy") for name in os.environ):
        return ""
    if urllib.request.proxy_bypass(host):
        return ""
    return urllib.request.getproxies().get(scheme, "")
