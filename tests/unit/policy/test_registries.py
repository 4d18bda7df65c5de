from __future__ import annotations

import pytest

from noderuntime.policy.registries import is_allowed, prefix_of, repository_of


@pytest.mark.parametrize(
    ("reference", "repository"),
    [
        ("nginx", "docker.io/library/nginx"),
        ("nginx:1", "docker.io/library/nginx"),
        ("team/nginx", "docker.io/team/nginx"),
        ("docker.io/nginx", "docker.io/library/nginx"),
        ("index.docker.io/team/x", "docker.io/team/x"),
        ("localhost/x", "localhost/x"),
        ("localhost:5000/x:1", "localhost:5000/x"),
        ("127.0.0.1:5000/x/y", "127.0.0.1:5000/x/y"),
        ("[::1]:5000/x", "[::1]:5000/x"),
        ("Registry.Example.com/a.b/c__d/e--f:T_1", "registry.example.com/a.b/c__d/e--f"),
        ("registry.example.com/x@sha256:" + "a" * 64, "registry.example.com/x"),
        ("registry.example.com/X", None),
        ("registry.example.com//x", None),
        ("registry.example.com/x/", None),
        ("registry.example.com/x y", None),
        ("https://registry.example.com/x", None),
        ("registry.example.com:port/x", None),
        ("registry.example.com:443@evil.org/x", None),
        ("a" * 1100, None),
    ],
)
def test_a_reference_is_read_as_registries_do(reference: str, repository: str | None) -> None:
    assert repository_of(reference) == repository


@pytest.mark.parametrize(
    ("reference", "rule", "answer"),
    [
        ("registry.example.com/team/x", "registry.example.com/team", True),
        ("registry.example.com/teams/x", "registry.example.com/team", False),
        ("registry.example.com/team", "registry.example.com/team/", True),
        ("registry.example.com/x", "registry.example.com/team", False),
        ("registry.example.com.evil.org/x", "registry.example.com", False),
        ("nginx", "docker.io", True),
        ("nginx", "docker.io/library", True),
        ("other/nginx", "docker.io/library", False),
        ("nginx", "index.docker.io", True),
        ("nginx", "", False),
    ],
)
def test_a_prefix_ends_at_a_slash(reference: str, rule: str, answer: bool) -> None:
    assert is_allowed(reference, (prefix_of(rule),)) is answer


def test_no_prefixes_allow_every_image() -> None:
    assert is_allowed("anything at all", ())
