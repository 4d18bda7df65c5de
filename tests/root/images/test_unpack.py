"""Real layers, good and hostile, through the real jail."""

from __future__ import annotations

import gzip
import os
import random
import stat
import struct
import tarfile
from pathlib import Path

import pytest
import zstandard

from noderuntime.errors import ImageError
from tests.fakes.registry import File, digest_of, folder, make_tar
from tests.root.images.conftest import Unpack

NOISE = random.Random(1).randbytes(3 << 20)
CAPABILITY = struct.pack("<IIIII", 0x02000001, 1 << 10, 0, 0, 0)


def is_whiteout(path: Path) -> bool:
    found = path.lstat()
    return stat.S_ISCHR(found.st_mode) and found.st_rdev == 0


def test_every_kind_of_entry_keeps_what_the_archive_says(unpack: Unpack, tmp_path: Path) -> None:
    tar = make_tar(
        [
            folder("./", mode=0o750, uid=3),
            folder("bin", mode=0o2755, gid=7),
            File("bin/su", b"x" * 1000, mode=0o4755, uid=5, gid=6),
            File("bin/sh", kind=tarfile.SYMTYPE, link="/usr/bin/dash", uid=9),
            File("bin/su2", kind=tarfile.LNKTYPE, link="bin/su"),
            File("null", kind=tarfile.CHRTYPE, device=(1, 3), mode=0o666),
            File("disk", kind=tarfile.BLKTYPE, device=(8, 1), mode=0o600),
            File("pipe", kind=tarfile.FIFOTYPE, mode=0o622, uid=2),
            File("empty", mtime=1_500_000_000.25),
        ]
    )

    layer = unpack(tar)

    root = tmp_path / "diff"
    assert layer.diff_id == digest_of(tar)
    assert (root.stat().st_mode & 0o7777, root.stat().st_uid) == (0o750, 3)
    assert (root / "bin").stat().st_mode & 0o7777 == 0o2755
    assert (root / "bin").stat().st_mtime == 1_600_000_000
    su = (root / "bin/su").stat()
    assert (su.st_mode & 0o7777, su.st_uid, su.st_gid, su.st_nlink) == (0o4755, 5, 6, 2)
    assert su.st_size == 1000
    assert os.readlink(root / "bin/sh") == "/usr/bin/dash"  # noqa: PTH115
    assert (root / "bin/sh").lstat().st_uid == 9
    assert (root / "null").stat().st_rdev == os.makedev(1, 3)
    assert stat.S_ISBLK((root / "disk").stat().st_mode)
    assert stat.S_ISFIFO((root / "pipe").stat().st_mode)
    assert (root / "pipe").stat().st_mode & 0o7777 == 0o622
    assert (root / "empty").stat().st_mtime_ns == 1_500_000_000_250_000_000
    assert layer.implied == ()
    assert layer.inodes == 8  # the root and seven; a hard link is none


def test_attributes_that_belong_to_the_file_are_set_and_labels_of_a_host_are_not(
    unpack: Unpack, tmp_path: Path
) -> None:
    pax = {
        "SCHILY.xattr.security.capability": CAPABILITY.decode("utf-8", "surrogateescape"),
        "SCHILY.xattr.user.colour": "blue",
        "SCHILY.xattr.security.selinux": "system_u:object_r:x:s0",
        "SCHILY.xattr.trusted.secret": "x",
    }
    unpack(
        make_tar(
            [File("ping", b"x", uid=4, pax=pax), File("l", kind=tarfile.SYMTYPE, link="p", pax=pax)]
        )
    )

    path = tmp_path / "diff/ping"
    assert os.getxattr(path, "security.capability")[:8] == CAPABILITY[:8]
    assert os.getxattr(path, "user.colour") == b"blue"
    assert not {"security.selinux", "trusted.secret"} & set(os.listxattr(path))


@pytest.mark.parametrize("pack", ["plain", "gzip", "gzip members", "zstd", "zstd frames"])
def test_layers_unpack_the_same_in_every_compression(
    unpack: Unpack, tmp_path: Path, pack: str
) -> None:
    data = NOISE
    tar = make_tar([File("a", data), folder("d"), File("d/b", data[:777])])
    half = len(tar) // 2
    zstd = zstandard.ZstdCompressor().compress
    packed = {
        "plain": tar,
        "gzip": gzip.compress(tar, 1),
        "gzip members": gzip.compress(tar[:half], 1) + gzip.compress(tar[half:], 1),
        "zstd": zstd(tar),
        "zstd frames": zstd(tar[:half]) + zstd(tar[half:]),
    }[pack]

    assert unpack(packed).diff_id == digest_of(tar)
    assert (tmp_path / "diff/a").read_bytes() == data
    assert (tmp_path / "diff/d/b").read_bytes() == data[:777]


def test_whiteouts_become_overlays_marks(unpack: Unpack, tmp_path: Path) -> None:
    unpack(
        make_tar(
            [
                folder("etc"),
                File("etc/.wh.gone"),
                folder("opt"),
                File("opt/.wh.inside"),
                File("opt/.wh..wh..opq"),
                File("opt/new", b"1"),
                File(".wh..wh.plnk"),
            ]
        )
    )

    root = tmp_path / "diff"
    assert is_whiteout(root / "etc/gone")
    assert os.getxattr(root / "opt", "trusted.overlay.opaque") == b"y"
    assert sorted(p.name for p in (root / "opt").iterdir()) == ["new"]
    assert sorted(p.name for p in root.iterdir()) == ["etc", "opt"]


def test_the_base_layer_has_no_whiteouts(unpack: Unpack, tmp_path: Path) -> None:
    unpack(make_tar([folder("etc"), File("etc/.wh.gone"), File("etc/.wh..wh..opq")]), is_base=True)

    assert list((tmp_path / "diff/etc").iterdir()) == []
    assert os.listxattr(tmp_path / "diff/etc") == []


@pytest.mark.parametrize("first", ["whiteout", "entry"])
def test_a_layers_whiteout_does_not_hide_its_own_entries(
    unpack: Unpack, tmp_path: Path, first: str
) -> None:
    entries = [File("a", b"new"), folder("d"), File("d/x", b"1")]
    whiteouts = [File(".wh.a"), File(".wh.d")]
    unpack(make_tar([*whiteouts, *entries] if first == "whiteout" else [*entries, *whiteouts]))

    root = tmp_path / "diff"
    assert (root / "a").read_bytes() == b"new"
    assert (root / "d/x").read_bytes() == b"1"
    assert os.getxattr(root / "d", "trusted.overlay.opaque") == b"y"


def test_folders_without_an_entry_are_made_and_reported(unpack: Unpack, tmp_path: Path) -> None:
    layer = unpack(make_tar([File("usr/share/doc", b"1"), folder("usr/lib")]))

    assert layer.implied == (b".", b"usr", b"usr/share")
    assert (tmp_path / "diff/usr/share").stat().st_mode & 0o7777 == 0o755


def test_the_later_of_two_entries_counts_and_does_not_write_through(
    unpack: Unpack, tmp_path: Path
) -> None:
    unpack(
        make_tar(
            [
                File("a", b"first"),
                File("b", kind=tarfile.LNKTYPE, link="a"),
                File("a", b"second"),
                File("s", kind=tarfile.SYMTYPE, link="b"),
                File("s", b"third"),
            ]
        )
    )

    root = tmp_path / "diff"
    assert [(root / n).read_bytes() for n in "abs"] == [b"second", b"first", b"third"]


def test_long_and_odd_names_stay_as_they_are(unpack: Unpack, tmp_path: Path) -> None:
    names = [
        "n" * 200,
        "d" * 120 + "/" + "f" * 120,
        "with\nnewline",
        "sp ace",
        "ü",
        "a/./b//c",
        "/abs",
    ]
    unpack(make_tar([File(name, name.encode()) for name in names]))

    root = tmp_path / "diff"
    for name in names:
        assert (root / name.lstrip("/")).read_bytes() == name.encode()


HOSTILE = {
    "leaves by ..": ([File("../evil", b"x")], r"entry '\.\./evil' of the layer leaves"),
    "leaves by a/../../..": ([File("a/../../evil")], "leaves the layer"),
    "is just ..": ([folder("..")], "leaves the layer"),
    "hard link by ..": ([File("l", kind=tarfile.LNKTYPE, link="../../etc/passwd")], "leaves"),
    "hard link to an absolute name": (
        [File("l", kind=tarfile.LNKTYPE, link="/etc/passwd")],
        "entry 'l' .* '/etc/passwd', which is not in the layer",
    ),
    "hard link to itself's folder": (
        [folder("d"), File("l", kind=tarfile.LNKTYPE, link="d")],
        "which is no file",
    ),
    "through a symbolic link": (
        [File("up", kind=tarfile.SYMTYPE, link="../.."), File("up/evil", b"x")],
        r"entry 'up/evil' .* goes through 'up', which is no folder",
    ),
    "hard link through a symbolic link": (
        [
            File("up", kind=tarfile.SYMTYPE, link="/etc"),
            File("l", kind=tarfile.LNKTYPE, link="up/passwd"),
        ],
        "not in the layer",
    ),
    "through a file": ([File("f", b"x"), File("f/g", b"x")], "goes through 'f'"),
    "over a folder": ([folder("d"), File("d/x"), File("d", b"x")], "takes the place of a folder"),
    "file as root": ([File("./", b"x", kind=tarfile.SYMTYPE, link="/")], "place of the root"),
    "overlay's redirect": (
        [File("d", pax={"SCHILY.xattr.trusted.overlay.redirect": "/etc"})],
        "which is overlay's own",
    ),
    "overlay's user mark": (
        [folder("d", pax={"SCHILY.xattr.user.overlay.opaque": "y"})],
        "which is overlay's own",
    ),
    "device 0:0": ([File("w", kind=tarfile.CHRTYPE)], "which overlay takes as a whiteout"),
    "device out of range": (
        [File("w", kind=tarfile.CHRTYPE, device=(5000, 1))],
        "which no kernel has",
    ),
    "a kind that is none": ([File("w", kind=b"Z")], "of a kind that no layer has"),
    "sparse": ([File("w", b"x", pax={"GNU.sparse.major": "1"})], "sparse"),
    "whiteout of nothing": ([File(".wh.")], "hides nothing"),
    "whiteout of ..": ([File(".wh...")], "hides nothing"),
    "too deep": ([File("d/" * 300 + "f", b"x")], "folders deep"),
    "too long a part": ([File("x" * 300, b"x")], "name too long"),
    "too long a name": ([File("d/" * 2500 + "f", b"x")], "4095 bytes"),
    "names with escapes": ([File("\x1b[31m/../../x")], r"'\\x1b\[31m/"),
    "an owner that is none": ([File("f", pax={"uid": "4294967295"})], "which no user can be"),
    "a time that is none": ([File("f", pax={"mtime": "soon"})], "time that is none"),
    "a link to nothing": ([File("f", kind=tarfile.SYMTYPE, link="")], "symbolic link to nothing"),
}


@pytest.mark.parametrize("name", HOSTILE)
def test_a_hostile_entry_is_refused_by_name(unpack: Unpack, tmp_path: Path, name: str) -> None:
    files, message = HOSTILE[name]
    outside = sorted(p for p in tmp_path.parent.iterdir())

    with pytest.raises(ImageError, match=f"(?i){message}"):
        unpack(make_tar(files))

    assert sorted(p for p in tmp_path.parent.iterdir()) == outside


def test_a_zip_bomb_is_stopped_by_its_declared_size(unpack: Unpack) -> None:
    with pytest.raises(ImageError, match="entry 'zeros' of the layer has 67108865 bytes"):
        unpack(gzip.compress(make_tar([File("zeros", bytes((1 << 26) + 1))]), 1))


def test_a_zip_bomb_that_declares_nothing_is_stopped_by_what_comes_out(unpack: Unpack) -> None:
    data = make_tar([File("a")]) + bytes(1 << 26)
    with pytest.raises(ImageError, match="unpacks to more than 67108864 bytes"):
        unpack(gzip.compress(data, 1))


def test_a_bomb_of_entries_is_stopped(unpack: Unpack) -> None:
    with pytest.raises(ImageError, match="more than 100 entries"):
        unpack(make_tar([File(f"f{i}") for i in range(101)]), max_entries=100)


def test_a_bomb_of_extended_headers_is_stopped(unpack: Unpack) -> None:
    with pytest.raises(ImageError, match=r"extended header of .* at most"):
        unpack(make_tar([File("f", pax={"comment": "x" * (1 << 21)})]))


@pytest.mark.parametrize("cut", [700, 1000, 1300, 100])
def test_an_archive_that_is_cut_off_is_refused(unpack: Unpack, cut: int) -> None:
    tar = make_tar([File("a", b"x" * 900)])
    with pytest.raises(ImageError, match="cut off"):
        unpack(tar[:cut])


def test_broken_compression_is_told(unpack: Unpack) -> None:
    packed = bytearray(gzip.compress(make_tar([File("a", NOISE[:9000])])))
    packed[5000] ^= 0xFF
    with pytest.raises(ImageError, match=r"(compressed data is broken|checksum|cut off)"):
        unpack(bytes(packed))


def test_what_is_no_archive_is_told(unpack: Unpack) -> None:
    with pytest.raises(ImageError, match="no tar archive"):
        unpack(b"this is not a tar archive" * 100)


def test_a_module_inside_an_image_is_never_imported(unpack: Unpack, tmp_path: Path) -> None:
    """CVE-2019-14271: what is loaded after the chroot comes from the image."""
    evil = b"import os; open('/pwned', 'w')"
    prefix = Path(os.__file__).parent.as_posix().lstrip("/")
    files = [File(f"{prefix}/{name}.py", evil) for name in ("traceback", "linecache", "tokenize")]
    with pytest.raises(ImageError):
        unpack(make_tar([*files, File("bad", kind=b"Z")]))

    assert not (tmp_path / "diff/pwned").exists()
