"""The project's images: the same digest from the same input, and nothing to escalate with."""

from __future__ import annotations

import shutil
import stat
import tarfile
from collections.abc import Iterator
from pathlib import Path

import pytest

from e2e.cluster import build, debian
from e2e.cluster.image import oci, recipes
from e2e.cluster.layout import Layout

pytestmark = pytest.mark.timeout(600)


@pytest.fixture(scope="module")
def fresh(layout: Layout, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Layout]:
    """Another repository's layout with the same sources and packages, where nothing is built."""
    other = Layout(tmp_path_factory.mktemp("repository"))
    other.root.mkdir()
    for name in ("noderuntime", "operator", "requirements"):
        (other.repository / name).symlink_to(layout.repository / name)
    debian.fetch(layout, recipes.all_packages())
    layout.wheels.mkdir(exist_ok=True)
    build.build_go(layout, build.KUBERNETES, print)
    other.debs.symlink_to(layout.debs)
    other.wheels.symlink_to(layout.wheels)
    other.bin.symlink_to(layout.bin)
    yield other
    shutil.rmtree(other.root)


@pytest.mark.parametrize("recipe", recipes.RECIPES, ids=lambda recipe: recipe.name)
def test_an_image_has_the_same_digest_when_made_again(
    layout: Layout, fresh: Layout, recipe: recipes.Recipe
) -> None:
    first, _ = recipes.build(layout, recipe)
    again, made = recipes.build(fresh, recipe)

    assert made
    assert oci.read_manifest(again)[0] == oci.read_manifest(first)[0]


def test_our_image_runs_as_nobody_and_has_no_shell_and_no_setuid_file(layout: Layout) -> None:
    folder, _ = recipes.build(layout, recipes.RECIPES[0])
    _, manifest = oci.read_manifest(folder)
    config = oci.blob_path(folder, manifest["config"]["digest"]).read_text()

    entries = [entry for blob in manifest["layers"] for entry in _entries(folder, blob["digest"])]

    assert '"User":"65532:65532"' in config
    assert not [e.name for e in entries if e.mode & (stat.S_ISUID | stat.S_ISGID)]
    assert not {"usr/bin/sh", "usr/bin/bash", "usr/bin/busybox"} & {e.name for e in entries}
    assert sum(blob["size"] for blob in manifest["layers"]) < 45e6


def _entries(folder: Path, digest: str) -> list[tarfile.TarInfo]:
    with tarfile.open(oci.blob_path(folder, digest)) as tar:
        return tar.getmembers()
