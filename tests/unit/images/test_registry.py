"""The client against scripted answers: what goes where, what is believed, what is told."""

from __future__ import annotations

import base64
import socket
from collections.abc import Callable
from pathlib import Path

import pytest

from noderuntime.errors import ImageError, RegistryUnavailableError
from noderuntime.images import registry as registry_module
from noderuntime.images import transport
from noderuntime.images.content import Content, Ingest, digest_of
from noderuntime.images.hosts import PULL, RESOLVE, Endpoint
from noderuntime.images.manifest import Descriptor
from noderuntime.images.ports import Credentials
from noderuntime.images.reference import parse
from noderuntime.images.registry import Registry
from noderuntime.images.transport import Host
from tests.fakes.registry import Answer, FakeRegistry, File, Request, build_image

IMAGE = build_image([File("a", b"x" * 100_000)])
LAYER = IMAGE.layers[0]
BLOB = Descriptor(digest=digest_of(LAYER), size_bytes=len(LAYER))
USER = Credentials(username="me", password="hunter2")
BASIC = "Basic " + base64.b64encode(b"me:hunter2").decode()
NONE: frozenset[str] = frozenset()


def host(
    server: FakeRegistry,
    credentials: Credentials | None = None,
    *,
    is_upstream: bool = True,
    capabilities: tuple[str, ...] = (PULL, RESOLVE),
) -> Host:
    endpoint = Endpoint(
        base=f"http://{server.host}/v2",
        is_upstream=is_upstream,
        capabilities=frozenset(capabilities),
    )
    return Host(endpoint, credentials, backoff_s=0)


def registry_of(*hosts: Host) -> Registry:
    return Registry(parse("example.com/app:v1"), hosts)


@pytest.fixture
def ingest(tmp_path: Path) -> Ingest:
    content = Content(tmp_path)
    content.create()
    return content.receive("layer", BLOB.digest, BLOB.size_bytes)


@pytest.fixture(autouse=True)
def serve(registry: FakeRegistry) -> None:
    registry.add("app", "v1", IMAGE)


def on(path: str, *answers: Answer | None) -> Callable[[Request], Answer | None]:
    """Answer requests whose path holds ``path`` one after another, the last one for ever."""
    left = list(answers)

    def script(request: Request) -> Answer | None:
        if path not in request.path:
            return None
        return left.pop(0) if len(left) > 1 else left[0]

    return script


def test_a_tag_resolves_to_the_digest_of_what_was_read(registry: FakeRegistry) -> None:
    digest, data, media_type = registry_of(host(registry)).resolve(NONE)
    assert (digest, data) == (IMAGE.digest, IMAGE.manifest)
    assert media_type == "application/vnd.oci.image.manifest.v1+json"


def test_a_known_digest_costs_one_head(registry: FakeRegistry) -> None:
    digest, data, _ = registry_of(host(registry)).resolve(frozenset({IMAGE.digest}))
    assert (digest, data) == (IMAGE.digest, None)
    assert [r.method for r in registry.requests] == ["HEAD"]


def test_a_registry_that_knows_no_head_is_asked_with_get(registry: FakeRegistry) -> None:
    registry.script = lambda r: Answer(405) if r.method == "HEAD" else None
    assert registry_of(host(registry)).resolve(frozenset({"sha256:x"}))[1] == IMAGE.manifest


def test_a_manifest_of_another_digest_is_refused(registry: FakeRegistry) -> None:
    registry.script = on("/manifests/", Answer(200, b"{}"))
    with pytest.raises(ImageError, match="is damaged"):
        registry_of(host(registry)).manifest(IMAGE.digest)


def test_a_manifest_that_differs_from_its_header_is_refused(registry: FakeRegistry) -> None:
    headers = {"Docker-Content-Digest": IMAGE.digest}
    registry.script = on("/manifests/", Answer(200, b"{}", headers))
    with pytest.raises(ImageError, match="is damaged"):
        registry_of(host(registry)).resolve(NONE)


def test_an_endless_manifest_is_cut_off(registry: FakeRegistry) -> None:
    registry.script = on("/manifests/", Answer(200, bytes((4 << 20) + 1)))
    with pytest.raises(ImageError, match="has more than 4194304 bytes"):
        registry_of(host(registry)).resolve(NONE)


def test_a_config_of_another_length_is_refused(registry: FakeRegistry) -> None:
    config = Descriptor(digest=IMAGE.id, size_bytes=len(IMAGE.config) - 1)
    with pytest.raises(ImageError, match="has more than"):
        registry_of(host(registry)).small_blob(config)


@pytest.mark.parametrize(
    ("answer", "credentials", "message"),
    [
        (Answer(401), None, "wants credentials for app, or there is no such image"),
        (Answer(401), USER, "does not accept the credentials for app: check the imagePullSecret"),
        (
            Answer(403, b'{"errors":[{"message":"pay first\\nnow"}]}'),
            USER,
            "denies access to app: pay first now",
        ),
        (Answer(404), None, "has no image example.com/app:v1: check name and tag"),
        (Answer(418), None, "answers 418"),
        (Answer(403, b"\xff\xff[["), None, "denies access to app"),
    ],
)
def test_a_refusal_is_one_clear_sentence(
    registry: FakeRegistry, answer: Answer, credentials: Credentials | None, message: str
) -> None:
    registry.script = on("/manifests/", answer)
    with pytest.raises(ImageError) as caught:
        registry_of(host(registry, credentials)).resolve(NONE)
    assert message in str(caught.value)
    assert "hunter2" not in str(caught.value)
    assert not isinstance(caught.value, RegistryUnavailableError)


@pytest.mark.parametrize("status", [429, 500, 503])
def test_a_registry_that_cannot_now_is_tried_again(registry: FakeRegistry, status: int) -> None:
    registry.script = on("/manifests/", Answer(status), Answer(status), None)
    assert registry_of(host(registry)).resolve(NONE)[0] == IMAGE.digest


def test_a_registry_that_never_can_is_unavailable(registry: FakeRegistry) -> None:
    registry.script = on("/manifests/", Answer(503))
    with pytest.raises(RegistryUnavailableError, match="is not available: it answers 503"):
        registry_of(host(registry)).resolve(NONE)
    assert len(registry.requests) == transport.TRIES


def test_a_host_that_does_not_answer_is_unavailable() -> None:
    endpoint = Endpoint(base="http://127.0.0.1:1/v2", is_upstream=True)
    with pytest.raises(RegistryUnavailableError, match=r"127.0.0.1:1 is not available: .*refused"):
        registry_of(Host(endpoint, None, backoff_s=0)).resolve(NONE)


def test_a_registry_that_accepts_and_never_answers_is_unavailable(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(transport, "READ_S", 0.01)
    with socket.create_server(("127.0.0.1", 0)) as silent:
        endpoint = Endpoint(base=f"http://127.0.0.1:{silent.getsockname()[1]}/v2", is_upstream=True)
        with pytest.raises(RegistryUnavailableError, match="is not available: .*timed out"):
            registry_of(Host(endpoint, None, backoff_s=0)).resolve(NONE)


def test_a_layer_arrives_verified(registry: FakeRegistry, ingest: Ingest) -> None:
    registry_of(host(registry)).blob(BLOB, ingest)
    assert ingest.path.read_bytes() == LAYER


def test_a_broken_download_goes_on_where_it_stopped(registry: FakeRegistry, ingest: Ingest) -> None:
    registry.script = on("/blobs/", Answer(200, LAYER, cut=100), None)
    registry_of(host(registry)).blob(BLOB, ingest)
    assert ingest.path.read_bytes() == LAYER
    assert [r.headers.get("Range") for r in registry.requests] == [None, "bytes=100-"]


def test_a_registry_that_knows_no_ranges_sends_all_again(
    registry: FakeRegistry, ingest: Ingest
) -> None:
    registry.script = on("/blobs/", Answer(200, LAYER, cut=100), Answer(200, LAYER))
    registry_of(host(registry)).blob(BLOB, ingest)
    assert ingest.path.read_bytes() == LAYER


def test_another_range_than_the_asked_one_is_refused(
    registry: FakeRegistry, ingest: Ingest
) -> None:
    wrong = Answer(206, LAYER[50:], {"Content-Range": f"bytes 50-{len(LAYER) - 1}/{len(LAYER)}"})
    registry.script = on("/blobs/", Answer(200, LAYER, cut=100), wrong)
    with pytest.raises(ImageError, match="another range"):
        registry_of(host(registry)).blob(BLOB, ingest)


def test_a_registry_that_always_breaks_off_is_unavailable(
    registry: FakeRegistry, ingest: Ingest
) -> None:
    registry.script = on("/blobs/", Answer(200, LAYER, cut=0))
    with pytest.raises(RegistryUnavailableError, match=f"breaks off at 0 of {len(LAYER)} bytes"):
        registry_of(host(registry)).blob(BLOB, ingest)


def test_a_registry_that_only_trickles_is_unavailable(
    registry: FakeRegistry, ingest: Ingest, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(registry_module, "SLOW_S", 0.01)
    registry.script = on("/blobs/", Answer(200, LAYER, pace_s=0.004))
    with pytest.raises(RegistryUnavailableError, match="fewer than 65536 bytes"):
        registry_of(host(registry)).blob(BLOB, ingest)
    with pytest.raises(RegistryUnavailableError, match="fewer than 65536 bytes"):
        registry_of(host(registry)).small_blob(BLOB)


@pytest.mark.parametrize("data", [LAYER + b"!", LAYER[:-1] + b"!", LAYER[:-1]])
def test_a_damaged_layer_is_never_kept(registry: FakeRegistry, ingest: Ingest, data: bytes) -> None:
    registry.script = on("/blobs/", Answer(200, data))
    with pytest.raises(ImageError):
        registry_of(host(registry)).blob(BLOB, ingest)
    assert ingest.path.read_bytes() in {b"", LAYER[:-1]}


def test_a_mirror_is_asked_first_and_told_for_whom(
    registry: FakeRegistry, other: FakeRegistry
) -> None:
    other.add("app", "v1", IMAGE)
    registry_of(host(other, is_upstream=False), host(registry)).resolve(NONE)
    assert [r.path for r in other.requests] == ["/v2/app/manifests/v1?ns=example.com"]
    assert registry.requests == []


@pytest.mark.parametrize("status", [401, 404, 403, 500])
def test_what_a_mirror_cannot_do_the_upstream_does(
    registry: FakeRegistry, other: FakeRegistry, status: int
) -> None:
    other.script = lambda _: Answer(status)
    client = registry_of(host(other, USER, is_upstream=False), host(registry, USER))
    assert client.resolve(NONE)[0] == IMAGE.digest


def test_a_mirrors_damaged_layer_is_replaced_by_the_upstreams(
    registry: FakeRegistry, other: FakeRegistry, ingest: Ingest
) -> None:
    other.script = lambda _: Answer(200, LAYER[:-1] + b"!")
    registry_of(host(other, is_upstream=False), host(registry)).blob(BLOB, ingest)
    assert ingest.path.read_bytes() == LAYER


def test_a_mirror_that_may_not_resolve_is_not_asked_for_tags(
    registry: FakeRegistry, other: FakeRegistry
) -> None:
    other.add("app", "v1", IMAGE)
    mirror = host(other, is_upstream=False, capabilities=(PULL,))
    client = registry_of(mirror, host(registry))
    client.resolve(NONE)
    assert other.requests == []
    client.manifest(IMAGE.digest)
    assert len(other.requests) == 1


def test_the_upstreams_error_tells_the_mirrors_too(
    registry: FakeRegistry, other: FakeRegistry
) -> None:
    other.script = lambda _: Answer(403)
    registry.script = lambda _: Answer(404)
    with pytest.raises(ImageError, match=r"has no image .* before that: .* denies access"):
        registry_of(host(other, is_upstream=False), host(registry)).resolve(NONE)


def test_basic_credentials_are_sent_when_asked_for_and_never_to_a_mirror(
    registry: FakeRegistry, other: FakeRegistry
) -> None:
    ask = Answer(401, headers={"WWW-Authenticate": 'Basic realm="x"'})
    other.script = lambda _: ask
    registry.script = lambda r: None if r.headers.get("Authorization") == BASIC else ask
    client = registry_of(host(other, USER, is_upstream=False), host(registry, USER))
    assert client.resolve(NONE)[0] == IMAGE.digest
    assert not [r for r in other.requests if "Authorization" in r.headers]
    assert "Authorization" not in registry.requests[0].headers


def token_script(registry: FakeRegistry, realm: str) -> Callable[[Request], Answer | None]:
    challenge = f'Bearer realm="{realm}",service="reg",scope="repository:app:pull"'
    ask = Answer(401, headers={"WWW-Authenticate": challenge})
    return lambda r: None if r.headers.get("Authorization") == "Bearer t0ken" else ask


def test_a_token_is_fetched_once_and_used(registry: FakeRegistry, other: FakeRegistry) -> None:
    other.script = lambda _: Answer(200, b'{"token": "t0ken"}')
    registry.script = token_script(registry, f"http://{other.host}/token")
    client = registry_of(host(registry, USER))
    client.resolve(NONE)
    client.manifest(IMAGE.digest)
    (asked,) = other.requests
    assert asked.path == "/token?service=reg&scope=repository%3Aapp%3Apull"
    assert asked.headers["Authorization"] == BASIC
    assert BASIC not in [r.headers.get("Authorization") for r in registry.requests]


def test_a_token_without_credentials_is_asked_for_without(
    registry: FakeRegistry, other: FakeRegistry
) -> None:
    other.script = lambda _: Answer(200, b'{"access_token": "t0ken"}')
    registry.script = token_script(registry, f"http://{other.host}/token")
    registry_of(host(registry)).resolve(NONE)
    assert "Authorization" not in other.requests[0].headers


def test_an_identity_token_is_exchanged(registry: FakeRegistry, other: FakeRegistry) -> None:
    other.script = lambda _: Answer(200, b'{"access_token": "t0ken"}')
    registry.script = token_script(registry, f"http://{other.host}/token")
    registry_of(host(registry, Credentials(identity_token="refresh"))).resolve(NONE)
    (asked,) = other.requests
    assert asked.method == "POST"
    assert b"grant_type=refresh_token" in asked.body
    assert b"refresh_token=refresh" in asked.body


def test_a_registry_token_is_sent_as_it_is(registry: FakeRegistry) -> None:
    registry.script = lambda r: (
        None if r.headers.get("Authorization") == "Bearer given" else Answer(401)
    )
    registry_of(host(registry, Credentials(registry_token="given"))).resolve(NONE)


@pytest.mark.parametrize("body", [b"", b"[]", b"{}", b'{"token": 3}', b'{"token": "a\\nb"}'])
def test_a_token_that_is_none_is_no_token(
    registry: FakeRegistry, other: FakeRegistry, body: bytes
) -> None:
    other.script = lambda _: Answer(200, body)
    registry.script = token_script(registry, f"http://{other.host}/token")
    with pytest.raises(ImageError, match="does not accept the credentials"):
        registry_of(host(registry, USER)).resolve(NONE)


def test_a_token_server_without_tls_gets_no_credentials_of_a_tls_registry() -> None:
    endpoint = Endpoint(base="https://reg.example/v2", is_upstream=True)
    asked = Host(endpoint, USER, backoff_s=0)
    with pytest.raises(ImageError, match="names a token server without TLS"):
        asked._answer(['Bearer realm="http://evil/token"'], "app")  # pyright: ignore[reportPrivateUsage]


@pytest.mark.parametrize("status", [301, 302, 307, 308])
def test_a_redirect_to_another_host_takes_no_credentials_along(
    registry: FakeRegistry, other: FakeRegistry, ingest: Ingest, status: int
) -> None:
    other.add("app", "v1", IMAGE)
    target = f"http://{other.host}/v2/app/blobs/{BLOB.digest}"

    def script(request: Request) -> Answer | None:
        if request.headers.get("Authorization") != BASIC:
            return Answer(401, headers={"WWW-Authenticate": "Basic realm=x"})
        return Answer(status, headers={"Location": target})

    registry.script = script
    registry_of(host(registry, USER)).blob(BLOB, ingest)
    assert [r.headers.get("Authorization") for r in other.requests] == [None]


def test_a_redirect_on_the_same_host_keeps_them(registry: FakeRegistry) -> None:
    def script(request: Request) -> Answer | None:
        if request.headers.get("Authorization") != BASIC:
            return Answer(401, headers={"WWW-Authenticate": "Basic realm=x"})
        if request.path.endswith("v1"):
            return Answer(302, headers={"Location": f"/v2/app/manifests/{IMAGE.digest}"})
        return None

    registry.script = script
    assert registry_of(host(registry, USER)).resolve(NONE)[0] == IMAGE.digest


@pytest.mark.parametrize("target", ["", "ftp://x/", "file:///etc/passwd", "/v2/app/manifests/v1"])
def test_a_redirect_to_nowhere_ends(registry: FakeRegistry, target: str) -> None:
    registry.script = on("/manifests/", Answer(302, headers={"Location": target}))
    with pytest.raises(ImageError, match="redirects without end"):
        registry_of(host(registry)).resolve(NONE)


def test_headers_of_hosts_toml_stay_at_their_host(
    registry: FakeRegistry, other: FakeRegistry
) -> None:
    other.add("app", "v1", IMAGE)
    registry.script = on(
        "/manifests/", Answer(307, headers={"Location": f"http://{other.host}/v2/app/manifests/v1"})
    )
    endpoint = Endpoint(
        base=f"http://{registry.host}/v2", is_upstream=True, headers={"X-Key": ("secret",)}
    )
    registry_of(Host(endpoint, None)).resolve(NONE)
    assert registry.requests[0].headers["X-Key"] == "secret"
    assert "X-Key" not in other.requests[0].headers
