from __future__ import annotations

import pytest

from noderuntime.errors import ImageError, InvalidArgumentError
from noderuntime.images.reference import id_prefix, parse

DIGEST = "sha256:" + "0123456789abcdef" * 4


@pytest.mark.parametrize(
    ("text", "normal"),
    [
        ("nginx", "docker.io/library/nginx:latest"),
        ("nginx:1.27", "docker.io/library/nginx:1.27"),
        ("grafana/loki", "docker.io/grafana/loki:latest"),
        ("index.docker.io/redis", "docker.io/library/redis:latest"),
        ("docker.io/redis", "docker.io/library/redis:latest"),
        ("registry.k8s.io/pause:3.10", "registry.k8s.io/pause:3.10"),
        ("localhost/a", "localhost/a:latest"),
        ("127.0.0.1:5000/a/b/c:x", "127.0.0.1:5000/a/b/c:x"),
        ("[::1]:5000/a", "[::1]:5000/a:latest"),
        ("Registry.Example.COM/a", "registry.example.com/a:latest"),
        ("a__b/c-d--e.f_g", "docker.io/a__b/c-d--e.f_g:latest"),
        (f"redis@{DIGEST}", f"docker.io/library/redis@{DIGEST}"),
        (f"redis:7@{DIGEST}", f"docker.io/library/redis@{DIGEST}"),
        ("a:" + "t" * 128, "docker.io/library/a:" + "t" * 128),
        ("host:5000/a", "host:5000/a:latest"),
    ],
)
def test_a_reference_has_one_normal_form(text: str, normal: str) -> None:
    parsed = parse(text)
    assert str(parsed) == normal
    assert parse(normal) == parsed


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("", "the image name is empty"),
        ("Nginx", 'image "Nginx": names are lower-case: write "library/nginx"'),
        ("docker.io/Foo/bar", 'write "foo/bar"'),
        ("https://quay.io/a", "leave the https:// away"),
        ("a b", "no spaces"),
        (" a", "no spaces"),
        ("a\n", "no spaces"),
        ("a:", 'the tag "" is not valid'),
        ("a:.x", 'the tag ".x" is not valid'),
        ("a:" + "t" * 129, "is not valid: up to 128"),
        ("a@", "behind the @ belongs a digest"),
        ("a@sha256:abc", "behind the @ belongs a digest"),
        ("a@sha512:" + "0" * 128, "behind the @ belongs a digest"),
        (f"a@{DIGEST.upper()}", "behind the @ belongs a digest"),
        ("quay.io/", "the name of the image behind the registry is missing"),
        ("a//b", '"" is not valid in a name'),
        ("a/.b", '".b" is not valid in a name'),
        ("a/b-", '"b-" is not valid in a name'),
        ("a/../b", '".." is not valid in a name'),
        ("-host.io/a", '"-host.io" is not a registry'),
        ("host.io:99999/a", "99999 is not a port"),
        ("ü", "is not valid in a name"),
        ("0" * 64, "64 hexadecimal digits are an image's ID"),
        ("a/" * 127 + "bb", "more than 255 characters"),
    ],
)
def test_a_wrong_reference_is_refused_in_the_users_words(text: str, message: str) -> None:
    with pytest.raises(ImageError) as caught:
        parse(text)
    assert message in str(caught.value)
    assert "\n" not in str(caught.value)
    assert isinstance(caught.value, InvalidArgumentError)  # the caller's mistake, not a registry's


def test_an_id_is_told_from_a_name() -> None:
    assert id_prefix(DIGEST) == DIGEST[7:]
    assert id_prefix("0123456789ab") == "0123456789ab"
    assert id_prefix("0123456789a") is None
    assert id_prefix("nginx") is None
