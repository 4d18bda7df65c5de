"""What the kernel's files and the parser say is taken as it is, and an error has their words."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import pytest

from noderuntime.errors import HostError
from noderuntime.host.apparmor import KernelAppArmor

TEXT = "profile web {\n}\n"
# A parser that writes down what it is told, and defines what PROFILES beside it has.
PARSER = """#!/bin/sh
here=$(dirname "$0")
echo "$@" >>"$here/arguments"
cat >"$here/source"
test ! -e "$here/fails" || { echo "AppArmor parser error, line 3: syntax error" >&2; exit 1; }
test "$1" != --names || cat "$here/names"
"""


@dataclass(frozen=True, slots=True)
class Machine:
    """A kernel in a folder."""

    root: Path

    def kernel(self) -> KernelAppArmor:
        """Return the part that looks at it."""
        return KernelAppArmor(
            self.root / "enabled",
            self.root / "securityfs",
            self.root / "proc",
            str(self.root / "parser"),
        )

    def write(self, name: str, text: str) -> Path:
        """Make a file and its folders."""
        path = self.root / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text)
        return path


@pytest.fixture
def machine(tmp_path: Path) -> Machine:
    made = Machine(tmp_path)
    made.write("enabled", "Y\n")
    made.write("securityfs/profiles", "web (enforce)\n/usr/bin/a b (complain)\n")
    made.write("proc/12/attr/current", "web (enforce)\n")
    made.write("proc/13/attr/current", "unconfined\n")
    made.write("names", "web\n")
    made.write("parser", PARSER).chmod(0o755)
    return made


def test_apparmor_is_enabled_where_the_kernel_says_so(machine: Machine) -> None:
    assert machine.kernel().is_enabled()


@pytest.mark.parametrize("name", ["enabled", "securityfs/profiles"])
def test_apparmor_is_not_enabled_where_a_file_of_the_kernel_is_missing(
    machine: Machine, name: str
) -> None:
    (machine.root / name).unlink()
    assert not machine.kernel().is_enabled()


def test_apparmor_is_not_enabled_where_it_is_turned_off(machine: Machine) -> None:
    machine.write("enabled", "N\n")
    assert not machine.kernel().is_enabled()


def test_the_loaded_profiles_are_read_by_their_whole_names(machine: Machine) -> None:
    assert machine.kernel().profiles() == {"web", "/usr/bin/a b"}


async def test_a_profile_is_looked_at_before_it_is_loaded(machine: Machine) -> None:
    await machine.kernel().load("web", TEXT)
    told = [line.split()[0] for line in (machine.root / "arguments").read_text().splitlines()]
    assert told == ["--names", "--replace"]
    assert (machine.root / "source").read_text() == TEXT


@pytest.mark.parametrize("names", ["", "other\n", "web\nother\n", "web\nweb//child\n"])
async def test_a_text_that_defines_anything_else_is_not_loaded(
    machine: Machine, names: str
) -> None:
    machine.write("names", names)
    with pytest.raises(HostError, match="must define itself alone"):
        await machine.kernel().load("web", TEXT)
    assert "--replace" not in (machine.root / "arguments").read_text()


async def test_what_the_parser_refuses_is_told_in_its_words(machine: Machine) -> None:
    machine.write("fails", "")
    with pytest.raises(HostError, match="line 3: syntax error"):
        await machine.kernel().load("web", TEXT)


async def test_a_profile_that_confines_a_process_is_not_removed(machine: Machine) -> None:
    written = machine.write("securityfs/.remove", "")
    with pytest.raises(HostError, match="confines a running process"):
        await machine.kernel().unload("web")
    assert written.read_text() == ""
    await machine.kernel().unload("other")
    assert written.read_text() == "other"


async def test_a_profile_that_is_not_there_counts_as_removed(machine: Machine) -> None:
    await machine.kernel().unload("other")


async def test_a_node_without_the_parser_says_what_to_install(machine: Machine) -> None:
    kernel = KernelAppArmor(parser="")
    assert not kernel.can_load()
    with pytest.raises(HostError, match="install the package apparmor"):
        await kernel.load("web", TEXT)
