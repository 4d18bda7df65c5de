from __future__ import annotations

from pathlib import Path

import pytest

from noderuntime.errors import ConfigError
from noderuntime.images.hosts import PULL, RESOLVE, endpoints_of


def write(folder: Path, text: str) -> None:
    folder.mkdir(parents=True)
    (folder / "hosts.toml").write_text(text)


@pytest.mark.parametrize(
    ("registry", "base"),
    [
        ("docker.io", "https://registry-1.docker.io/v2"),
        ("quay.io", "https://quay.io/v2"),
        ("localhost:5000", "http://localhost:5000/v2"),
        ("127.0.0.1", "http://127.0.0.1/v2"),
        ("[::1]:5000", "http://[::1]:5000/v2"),
        ("127.0.0.1.example.com", "https://127.0.0.1.example.com/v2"),
    ],
)
def test_without_a_file_the_registry_itself_is_asked(
    tmp_path: Path, registry: str, base: str
) -> None:
    (endpoint,) = endpoints_of(tmp_path / "none", registry)
    assert endpoint.base == base
    assert endpoint.is_upstream


def test_mirrors_come_in_the_files_order_and_the_upstream_last(tmp_path: Path) -> None:
    write(
        tmp_path / "docker.io",
        """
        server = "https://registry-1.docker.io"
        [host."https://b.example:8443"]
        capabilities = ["pull"]
        ca = "b.crt"
        [host."http://a.example/proxy"]
        skip_verify = true
        header = {X-Token = ["1", "2"]}
        [host."https://c.example/artifactory/api/docker"]
        override_path = true
        ca = ["/etc/c.crt"]
        client = [["c.cert", "c.key"]]
        """,
    )

    b, a, c, upstream = endpoints_of(tmp_path, "docker.io")

    assert (b.base, b.capabilities) == ("https://b.example:8443/v2", frozenset({PULL}))
    assert b.ca_files == (tmp_path / "docker.io/b.crt",)
    assert (a.base, a.skip_verify) == ("http://a.example/proxy/v2", True)
    assert a.headers == {"X-Token": ("1", "2")}
    assert a.capabilities == {PULL, RESOLVE}
    assert c.base == "https://c.example/artifactory/api/docker"
    assert c.ca_files == (Path("/etc/c.crt"),)
    assert c.client_certs == ((tmp_path / "docker.io/c.cert", tmp_path / "docker.io/c.key"),)
    assert upstream.base == "https://registry-1.docker.io/v2"
    assert [e.is_upstream for e in (b, a, c, upstream)] == [False, False, False, True]


def test_the_default_serves_registries_without_a_folder(tmp_path: Path) -> None:
    write(tmp_path / "_default", '[host."http://mirror:5000"]\n')
    write(tmp_path / "quay.io", 'server = "http://quay.internal"\n')

    assert [e.base for e in endpoints_of(tmp_path, "ghcr.io")] == [
        "http://mirror:5000/v2",
        "https://ghcr.io/v2",
    ]
    assert [e.base for e in endpoints_of(tmp_path, "quay.io")] == ["http://quay.internal/v2"]


def test_a_port_may_be_written_with_underscores(tmp_path: Path) -> None:
    write(tmp_path / "reg.io_5000_", 'server = "https://other"\n')
    assert endpoints_of(tmp_path, "reg.io:5000")[0].base == "https://other/v2"


def test_a_folder_of_certificates_is_read_as_docker_does(tmp_path: Path) -> None:
    folder = tmp_path / "localhost:5443"
    folder.mkdir()
    for name in ("ca.crt", "me.cert", "me.key"):
        (folder / name).touch()
    (endpoint,) = endpoints_of(tmp_path, "localhost:5443")
    assert endpoint.base == "https://localhost:5443/v2"
    assert endpoint.ca_files == (folder / "ca.crt",)
    assert endpoint.client_certs == ((folder / "me.cert", folder / "me.key"),)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("server = 1", "server is not a URL"),
        ('sever = "x"', "unknown key sever"),
        ("= 1", "is not TOML"),
        ('host = "x"', "host is not a table"),
        ('[host."ftp://a"]', "is not an http:// or https:// URL"),
        ('[host."https://u:p@a"]', "is not an http:// or https:// URL"),
        ('[host."https://a?b=c"]', "ends with its path"),
        ('[host."https://a"]\ncapabilities = ["fly"]', "fly is not one"),
        ('[host."https://a"]\nskip_verify = "yes"', "skip_verify is neither true nor false"),
        ('[host."https://a"]\nca = 3', "ca is not a text"),
        ('[host."https://a"]\ncolour = 3', 'unknown key host."https://a".colour'),
    ],
)
def test_a_wrong_file_is_refused_by_its_key(tmp_path: Path, text: str, message: str) -> None:
    write(tmp_path / "quay.io", text)
    with pytest.raises(ConfigError) as caught:
        endpoints_of(tmp_path, "quay.io")
    assert message in str(caught.value)
    assert str(tmp_path / "quay.io" / "hosts.toml") in str(caught.value)
