from __future__ import annotations

import pytest

from noderuntime.errors import InvalidArgumentError
from noderuntime.policy.model import ContainerConfig
from noderuntime.policy.process import DEFAULT_PATH
from tests.unit.policy.factories import admit, container, granted, image, sandbox


@pytest.mark.parametrize(
    ("command", "args", "entrypoint", "cmd", "expected"),
    [
        pytest.param("", "", "/e", "c", "/e c", id="the image's"),
        pytest.param("", "a b", "/e", "c", "/e a b", id="args replace cmd"),
        pytest.param("/k", "", "/e", "c", "/k", id="command replaces both"),
        pytest.param("/k", "a", "/e", "c", "/k a", id="both of the Pod"),
        pytest.param("", "", "", "c d", "c d", id="cmd alone"),
        pytest.param("", "a", "", "", "a", id="args alone"),
    ],
)
def test_arguments_are_joined_as_in_kubernetes(
    command: str, args: str, entrypoint: str, cmd: str, expected: str
) -> None:
    asked = container(command=tuple(command.split()), args=tuple(args.split()))
    facts = image(entrypoint=tuple(entrypoint.split()), cmd=tuple(cmd.split()))
    assert granted(None, asked, facts=facts).args == tuple(expected.split())


def test_nothing_to_run_is_an_invalid_argument() -> None:
    with pytest.raises(InvalidArgumentError, match=r"containers\[web\].command: there is nothing"):
        admit(None, container(command=()))


def test_the_containers_environment_covers_the_images() -> None:
    asked = container(env=(("B", "pod"), ("C", "x=y\nz"), ("B", "last")), tty=True)
    facts = image(env=("A=1", "B=image", "malformed", "=no", "N\0=1", "PATH=/x"))
    grant = granted(None, asked, facts=facts, pod=sandbox(hostname="web-0"))
    assert grant.env == ("PATH=/x", "HOSTNAME=web-0", "TERM=xterm", "A=1", "B=last", "C=x=y\nz")


def test_path_has_a_default() -> None:
    assert granted(None).env == (f"PATH={DEFAULT_PATH}",)


@pytest.mark.parametrize(
    ("name", "value"), [("", "x"), ("A=B", "x"), ("A\0", "x"), ("A", "x\0y"), ("=A", "x")]
)
def test_a_hostile_variable_is_an_invalid_argument(name: str, value: str) -> None:
    with pytest.raises(InvalidArgumentError, match=r"containers\[web\].env") as caught:
        admit(None, container(env=((name, value),)))
    assert caught.value.for_kubelet().isprintable()


@pytest.mark.parametrize(
    ("pod", "of_image", "expected"),
    [
        ("", "", "/"),
        ("", "/app", "/app"),
        ("/pod", "/app", "/pod"),
        ("rel", "", "/rel"),
        ("/a/../../b", "", "/b"),
        ("//x", "", "/x"),
    ],
)
def test_the_directory_is_absolute(pod: str, of_image: str, expected: str) -> None:
    grant = granted(None, container(working_dir=pod), facts=image(working_dir=of_image))
    assert grant.cwd == expected


@pytest.mark.parametrize(
    "asked",
    [container(command=("a\0b",)), container(working_dir="/a\0")],
    ids=["command", "directory"],
)
def test_a_nul_character_is_an_invalid_argument(asked: ContainerConfig) -> None:
    with pytest.raises(InvalidArgumentError, match="NUL"):
        admit(None, asked)
