import os
import socket
from pathlib import Path

import pytest

from e2e.cluster import build, preflight
from e2e.cluster.layout import Layout


@pytest.mark.parametrize(
    ("version", "toolchain", "problem"),
    [
        pytest.param("go version go1.26.8 linux/amd64", "local", None, id="new enough"),
        pytest.param("go version go1.27.1 linux/amd64", "", None, id="newer"),
        pytest.param("go version go1.22.1 linux/amd64", "", None, id="fetches its toolchain"),
        pytest.param("go version go1.22.1 linux/amd64", "local", "too old", id="may not fetch"),
        pytest.param("go version go1.19.8 linux/amd64", "", "too old", id="cannot fetch"),
        pytest.param("", "", "install Go", id="no answer"),
    ],
)
def test_a_go_that_cannot_build_is_told(version: str, toolchain: str, problem: str | None) -> None:
    found = preflight.go_problem(version, toolchain)

    assert (found is None) == (problem is None)
    assert (problem or "") in (found or "")


def test_the_holder_of_a_port_is_named_with_its_pid() -> None:
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        listener.listen()

        holder = preflight.holder_of(listener.getsockname()[1])

    assert f"(PID {os.getpid()})" in holder


def test_the_programs_are_not_built_in_an_empty_folder(tmp_path: Path) -> None:
    assert not build.is_built(Layout(tmp_path))


def test_the_stamp_changes_with_the_flags() -> None:
    other = build.GoModule(build.KUBERNETES.name, build.KUBERNETES.programs, "-s")

    assert other.digest() != build.KUBERNETES.digest()
