"""OOM kills of scopes that are gone, from the count of the slice above."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest

from noderuntime.host.oom_kills import OomKills

SLICE = "kubepods.slice/kubepods-pod1.slice"


class Tree:
    """A slice whose count goes up with those of its scopes and stays when they go."""

    def __init__(self, root: Path) -> None:
        self.folder = root / SLICE
        self.folder.mkdir(parents=True)
        self.total = 0
        self.write(self.folder, 0)
        self.kills = OomKills(root)

    def write(self, folder: Path, count: int) -> None:
        (folder / "memory.events").write_text(f"low 0\noom_kill {count}\n")

    def start(self, name: str) -> None:
        self.kills.begin(f"{SLICE}/{name}.scope")
        (self.folder / f"{name}.scope").mkdir()
        self.write(self.folder / f"{name}.scope", 0)

    def kill(self, name: str, count: int) -> None:
        self.total += 1
        self.write(self.folder, self.total)
        self.write(self.folder / f"{name}.scope", count)

    def end(self, name: str, *, gone: bool = True) -> int:
        if gone:
            shutil.rmtree(self.folder / f"{name}.scope")
        return self.kills.of(f"{SLICE}/{name}.scope")


@pytest.fixture
def tree(tmp_path: Path) -> Tree:
    return Tree(tmp_path)


@pytest.mark.parametrize("gone", [True, False])
def test_a_kill_is_given_to_the_scope_that_ended(tree: Tree, *, gone: bool) -> None:
    for name in ("a", "b", "c"):
        tree.start(name)
    tree.kill("a", 1)
    tree.kill("b", 1)
    assert tree.end("c", gone=gone) == 0
    assert tree.end("a", gone=gone) == 1
    assert tree.end("a", gone=False) == 1
    assert tree.end("b", gone=gone) == 1


def test_a_kill_of_a_scope_that_lives_is_not_given_to_another(tree: Tree) -> None:
    tree.start("a")
    tree.start("b")
    tree.kill("a", 1)
    assert tree.end("b") == 0
    tree.kill("a", 2)
    assert tree.end("a") == 2


def test_kills_before_the_first_scope_are_nobodys(tree: Tree) -> None:
    tree.write(tree.folder, 5)
    tree.total = 5
    tree.start("a")
    assert tree.end("a") == 0


def test_a_slice_that_is_made_again_counts_anew(tree: Tree) -> None:
    tree.start("a")
    tree.kill("a", 1)
    assert tree.end("a") == 1
    tree.folder.rename(tree.folder.with_name("old"))  # so that its inode is not given out again
    tree.folder.mkdir()
    tree.total = 0
    tree.start("a")
    tree.kill("a", 1)
    assert tree.end("a") == 1


def test_a_scope_whose_slice_nobody_knows_is_asked_itself(tree: Tree) -> None:
    folder = tree.folder / "x.scope"
    folder.mkdir()
    tree.write(folder, 2)
    assert tree.kills.of(f"{SLICE}/x.scope") == 2
    assert tree.kills.of("other.slice/y.scope") == 0
