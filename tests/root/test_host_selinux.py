"""Relabelling goes by descriptors: it stays in the volume, and follows no link."""

from __future__ import annotations

import errno
import os
import shutil
import subprocess
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest

from noderuntime.errors import HostError, InvalidArgumentError
from noderuntime.host.selinux import KernelSelinux
from tests.root.mounts_kit import unmount_below

LABEL = "system_u:object_r:container_file_t:s0:c1,c2"


@pytest.fixture
def volume() -> Iterator[Path]:
    """A tree with a link out of it and another file system in it, where labels can be stored."""
    top = Path(tempfile.mkdtemp(prefix="nr-selinux-", dir="/dev/shm"))
    folder = top / "volume"
    (folder / "a" / "b").mkdir(parents=True)
    (folder / "a" / "b" / "file").write_text("x")
    (folder / "mounted").mkdir()
    os.mkfifo(folder / "fifo")
    (top / "outside").write_text("not the volume's")
    (folder / "link").symlink_to(top / "outside")
    (folder / "up").symlink_to(top)
    subprocess.run(["mount", "-t", "tmpfs", "none", folder / "mounted"], check=True)
    (folder / "mounted" / "file").write_text("x")
    yield folder
    unmount_below(top)
    shutil.rmtree(top)


def label_of(path: Path) -> str:
    """The label that is stored, of a link itself; "" where there is none."""
    try:
        found = os.getxattr(path, "security.selinux", follow_symlinks=False)
    except OSError:
        return ""
    return found.rstrip(b"\0").decode()


async def test_everything_of_the_volume_is_labelled_and_nothing_else(volume: Path) -> None:
    await KernelSelinux().relabel(volume, LABEL)
    for name in (".", "a", "a/b", "a/b/file", "fifo", "link", "up", "mounted/.."):
        assert label_of(volume / name) == LABEL, name
    assert label_of(volume.parent) == ""
    assert label_of(volume.parent / "outside") == ""
    assert label_of(volume / "mounted" / "file") == ""


async def test_the_volume_itself_may_be_given_by_a_descriptor_or_be_a_file(volume: Path) -> None:
    descriptor = os.open(volume / "a" / "b" / "file", os.O_PATH)
    try:
        await KernelSelinux().relabel(Path(f"/proc/self/fd/{descriptor}"), LABEL)
    finally:
        os.close(descriptor)
    assert label_of(volume / "a" / "b" / "file") == LABEL
    assert label_of(volume / "a") == ""


@pytest.mark.parametrize("path", ["/", "/etc", "/usr", "/var/lib", "/proc/self/root", "/tmp/.."])
async def test_what_the_node_needs_is_not_labelled_however_it_is_named(path: str) -> None:
    before = label_of(Path(path))
    with pytest.raises(InvalidArgumentError, match="cannot be relabelled"):
        await KernelSelinux().relabel(Path(path), LABEL)
    assert label_of(Path(path)) == before


async def test_a_file_system_without_labels_is_no_error(
    volume: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(*_: object) -> None:
        raise OSError(errno.EOPNOTSUPP, "not supported")

    monkeypatch.setattr(os, "setxattr", refuse)
    await KernelSelinux().relabel(volume, LABEL)
    assert label_of(volume) == ""


async def test_one_file_is_labelled_and_a_link_is_not_followed(volume: Path) -> None:
    kernel = KernelSelinux()
    await kernel.label(volume / "link", LABEL)
    assert label_of(volume / "link") == LABEL
    assert label_of(volume.parent / "outside") == ""


def test_a_kernel_without_selinux_says_so(tmp_path: Path) -> None:
    kernel = KernelSelinux(tmp_path / "selinuxfs", tmp_path / "etc")
    assert not kernel.is_enabled()
    assert kernel.contexts() == ("", "")
    assert not kernel.is_valid(LABEL)


def test_the_policys_contexts_for_containers_are_read(tmp_path: Path) -> None:
    (tmp_path / "selinuxfs").mkdir()
    (tmp_path / "selinuxfs" / "enforce").write_text("1")
    contexts = tmp_path / "targeted" / "contexts"
    contexts.mkdir(parents=True)
    (tmp_path / "config").write_text("# SELINUXTYPE=mls\nSELINUX=enforcing\nSELINUXTYPE=targeted\n")
    (contexts / "lxc_contexts").write_text('process = "u:r:p_t:s0"\nfile = "u:r:f_t:s0"\n')
    kernel = KernelSelinux(tmp_path / "selinuxfs", tmp_path)
    assert kernel.is_enabled()
    assert kernel.contexts() == ("u:r:p_t:s0", "u:r:f_t:s0")


async def test_what_is_not_there_is_an_error_that_names_it(tmp_path: Path) -> None:
    with pytest.raises(HostError, match="missing: no such file"):
        await KernelSelinux().label(tmp_path / "missing", LABEL)
