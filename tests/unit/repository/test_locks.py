"""The lock files hold everything that pyproject.toml asks for, by hash, and no address."""

from __future__ import annotations

import re
import tomllib
from pathlib import Path
from typing import Any

import pytest

ROOT = Path(__file__).resolve().parents[3]
REQUIREMENTS = ROOT / "requirements"
LOCKS = ("dev.lock", "image.lock")


def normal(name: str) -> str:
    return re.sub(r"[-_.]+", "-", name).lower()


def named(requirements: list[str]) -> set[str]:
    return {normal(re.split(r"[\[<>=!~; ]", text, maxsplit=1)[0]) for text in requirements}


def project() -> dict[str, Any]:
    return tomllib.loads((ROOT / "pyproject.toml").read_text())


def pins(lock: str) -> dict[str, str]:
    """Return the text behind each pinned name."""
    text = re.sub(r"^\s*#.*\n", "", (REQUIREMENTS / lock).read_text(), flags=re.MULTILINE)
    entries = re.findall(r"^(\S+?)==(.*?)(?=^\S|\Z)", text, flags=re.MULTILINE | re.DOTALL)
    return {normal(name): rest for name, rest in entries}


def test_dev_lock_holds_every_dependency() -> None:
    tables = project()
    wanted = named(tables["project"]["dependencies"])
    for group in (tables["project"]["optional-dependencies"], tables["dependency-groups"]):
        for requirements in group.values():
            wanted |= named(requirements)
    assert wanted - set(pins("dev.lock")) == set()


def test_image_lock_holds_every_dependency_that_runs_and_nothing_to_develop() -> None:
    tables = project()["project"]
    wanted = named(tables["dependencies"])
    for requirements in tables["optional-dependencies"].values():
        wanted |= named(requirements)
    held = set(pins("image.lock"))
    assert wanted - held == set()
    assert held & {"pytest", "mypy", "ruff", "pyright"} == set()


@pytest.mark.parametrize("lock", LOCKS)
def test_a_lock_pins_every_package_by_hash(lock: str) -> None:
    assert [name for name, rest in pins(lock).items() if "--hash=sha256:" not in rest] == []


@pytest.mark.parametrize("lock", LOCKS)
def test_a_lock_holds_no_address(lock: str) -> None:
    text = (REQUIREMENTS / lock).read_text()
    assert not re.search(r"https?://|--(extra-)?index|--find-links|--trusted-host| @ ", text)


def test_the_image_runs_the_versions_that_are_tested() -> None:
    def version(rest: str) -> str:
        return rest.split()[0]

    dev, image = pins("dev.lock"), pins("image.lock")
    assert {name: version(rest) for name, rest in image.items()} == {
        name: version(dev[name]) for name in image
    }
