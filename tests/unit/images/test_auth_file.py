"""The node's credentials: which of a docker config.json are meant, and what is refused without saying them."""

from __future__ import annotations

import base64
import json
import os
from pathlib import Path

import pytest

from noderuntime.errors import ConfigError
from noderuntime.images.auth_file import LIMIT_BYTES, credentials_for
from noderuntime.images.reference import parse

SECRET = "s3cr3t:with:colons"
WEB = "registry.example.com:5000/team/profiles/web@sha256:" + "a" * 64


def auth(user: str) -> dict[str, str]:
    return {"auth": base64.b64encode(f"{user}:{SECRET}".encode()).decode()}


def write(folder: Path, document: object, mode: int = 0o600) -> Path:
    path = folder / "config.json"
    path.write_text(document if isinstance(document, str) else json.dumps(document))
    path.chmod(mode)
    return path


def user_for(path: Path, reference: str) -> str | None:
    found = credentials_for(path, parse(reference))
    return None if found is None else found.username


@pytest.mark.parametrize(
    ("keys", "reference", "expected"),
    [
        (["registry.example.com:5000"], WEB, "registry.example.com:5000"),
        (["https://registry.example.com:5000"], WEB, "https://registry.example.com:5000"),
        (["registry.example.com"], WEB, None),
        (["registry.example.com:5001", "example.com:5000"], WEB, None),
        (["*.example.com:5000"], WEB, "*.example.com:5000"),
        (["*.com:5000", "*:5000", "reg*.example.com:5000/x"], WEB, None),
        (["*.example.com:5000", "registry.example.com:5000"], WEB, "registry.example.com:5000"),
        (
            ["registry.example.com:5000", "registry.example.com:5000/team"],
            WEB,
            "registry.example.com:5000/team",
        ),
        (["registry.example.com:5000/tea"], WEB, None),
        (["https://index.docker.io/v1/"], "nginx", "https://index.docker.io/v1/"),
        (["docker.io/library"], "nginx", "docker.io/library"),
        (["index.docker.io"], WEB, None),
        ([], WEB, None),
    ],
)
def test_the_entry_that_fits_best_is_used(
    tmp_path: Path, keys: list[str], reference: str, expected: str | None
) -> None:
    entries = {key: {"username": key, "password": SECRET} for key in keys}
    assert user_for(write(tmp_path, {"auths": entries}), reference) == expected


def test_a_pair_is_cut_at_its_first_colon_and_tokens_are_kept(tmp_path: Path) -> None:
    entry = {**auth("robot"), "identitytoken": "i", "registrytoken": "r", "email": "a@b"}
    path = write(tmp_path, {"auths": {"registry.example.com:5000": entry}, "psFormat": "x"})
    found = credentials_for(path, parse(WEB))
    assert found is not None
    assert (found.username, found.password) == ("robot", SECRET)
    assert (found.identity_token, found.registry_token) == ("i", "r")
    assert SECRET not in repr(found)


@pytest.mark.parametrize(
    ("document", "text"),
    [
        ("{", "is not JSON"),
        ('{"auths": {"a": {}, "a": {}}}', "is not JSON with each key once"),
        ("[" * 100_000, "is not JSON"),
        ([SECRET], "input should be"),
        ({"auths": {"a": {"auth": {"x": SECRET}}}}, r"auths\.a\.auth: input should be"),
        ({"auths": {"a": {"pass": SECRET}}}, r"auths\.a\.pass: extra inputs are not"),
        ({"auths": {"registry.example.com:5000": {"auth": SECRET}}}, "is not base64 of user:"),
        (
            {
                "auths": {
                    "registry.example.com:5000": {"auth": base64.b64encode(b"s3cr3t").decode()}
                }
            },
            "is not base64 of user:password",
        ),
        ({"credsStore": "desktop"}, "credsStore: no program is run"),
        ({"credHelpers": {"a": "b"}}, "credHelpers: no program is run"),
        (" " * (LIMIT_BYTES + 1), "is larger than"),
    ],
)
def test_what_is_not_as_docker_has_it_is_refused_without_its_secrets(
    tmp_path: Path, document: object, text: str
) -> None:
    with pytest.raises(ConfigError, match=text) as caught:
        user_for(write(tmp_path, document), WEB)
    said = str(caught.value)
    assert "images.auth_file" in said
    assert "s3cr3t" not in said
    assert caught.value.__cause__ is None or "s3cr3t" not in str(caught.value.__cause__)


@pytest.mark.parametrize("mode", [0o644, 0o604, 0o620, 0o602])
def test_a_file_that_others_reach_is_refused(tmp_path: Path, mode: int) -> None:
    with pytest.raises(ConfigError, match=rf"has mode 0{mode:o}: .*chmod 0600"):
        user_for(write(tmp_path, {}, mode), WEB)


def test_what_is_no_file_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="cannot be read: No such file"):
        user_for(tmp_path / "none", WEB)
    os.mkfifo(tmp_path / "fifo", 0o600)
    with pytest.raises(ConfigError, match="is not a regular file"):
        user_for(tmp_path / "fifo", WEB)
