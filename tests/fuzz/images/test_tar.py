"""The tar reader: what tarfile writes it reads alike, garbage is an ImageError, never a hang."""

from __future__ import annotations

import tarfile
from collections.abc import Sequence

from hypothesis import given
from hypothesis import strategies as st

from noderuntime.errors import ImageError
from noderuntime.images.tarstream import BLOCK, Entry, TarReader
from noderuntime.images.unpack import clean
from tests.fakes.registry import File, make_tar

LIMIT = 1 << 30


class Buffers:
    """A source that hands the data out in pieces of so many blocks."""

    def __init__(self, data: bytes, blocks: int) -> None:
        step = blocks * BLOCK
        self._pieces = [data[i : i + step] for i in range(0, len(data), step)][::-1]

    def next_buffer(self) -> memoryview | None:
        return memoryview(self._pieces.pop()) if self._pieces else None


def read(data: bytes, blocks: int) -> list[tuple[Entry, bytes]]:
    reader = TarReader(Buffers(data, blocks), limit_bytes=LIMIT)
    found: list[tuple[Entry, bytes]] = []
    while (entry := reader.entry()) is not None:
        found.append((entry, b"".join(bytes(piece) for piece in reader.data())))
    reader.drain()
    return found


NAME = st.text(
    st.characters(exclude_characters="\0", exclude_categories=["Cs"]), min_size=1, max_size=150
).filter(lambda name: not name.endswith("/"))
FILES = st.builds(
    File,
    name=NAME,
    data=st.binary(max_size=3 * BLOCK),
    kind=st.just(tarfile.REGTYPE),
    mode=st.integers(0, 0o7777),
    uid=st.integers(0, 1 << 31),
    gid=st.integers(0, 1 << 31),
    mtime=st.integers(0, 1 << 32).map(float),
    pax=st.dictionaries(st.sampled_from(["SCHILY.xattr.user.a", "comment"]), st.text(max_size=9)),
)


@given(st.lists(FILES, max_size=5), st.integers(1, 8))
def test_what_tarfile_writes_is_read_the_same(files: Sequence[File], blocks: int) -> None:
    found = read(make_tar(files), blocks)
    assert len(found) == len(files)
    for (entry, data), file in zip(found, files, strict=True):
        assert (entry.name, data) == (file.name.encode(), file.data)
        assert (entry.mode, entry.uid, entry.gid) == (file.mode, file.uid, file.gid)
        assert entry.mtime_ns == int(file.mtime) * 1_000_000_000
        if "SCHILY.xattr.user.a" in file.pax:
            assert entry.xattrs == {"user.a": file.pax["SCHILY.xattr.user.a"].encode()}


@given(
    st.lists(FILES, min_size=1, max_size=3),
    st.lists(st.tuples(st.integers(0, 5000), st.integers(0, 255)), max_size=12),
    st.integers(0, 5000),
    st.integers(1, 4),
)
def test_damaged_archives_are_read_or_refused(
    files: Sequence[File], damage: list[tuple[int, int]], cut: int, blocks: int
) -> None:
    data = bytearray(make_tar(files))
    for at, value in damage:
        data[at % len(data)] = value
    try:
        read(bytes(data[: len(data) - cut % len(data)]), blocks)
    except ImageError as error:
        assert "\n" not in str(error)


@given(st.binary(max_size=4 * BLOCK), st.integers(1, 3))
def test_garbage_is_read_or_refused(data: bytes, blocks: int) -> None:
    try:
        read(data, blocks)
    except ImageError as error:
        assert str(error).isprintable()


@given(st.binary(max_size=64) | st.lists(st.sampled_from([b"..", b".", b"", b"a"])).map(b"/".join))
def test_a_clean_name_stays_inside(name: bytes) -> None:
    try:
        cleaned = clean(name, name)
    except ImageError:
        assert b".." in name.split(b"/") or len(name) > 4095
        return
    assert not cleaned.startswith(b"/")
    assert not {b"..", b"."} & set(cleaned.split(b"/"))
    assert cleaned == b"" or b"" not in cleaned.split(b"/")
