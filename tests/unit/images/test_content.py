from __future__ import annotations

from pathlib import Path

import pytest

from noderuntime.errors import ImageError
from noderuntime.host import durable
from noderuntime.images.content import Content, digest_of


@pytest.fixture
def content(tmp_path: Path) -> Content:
    made = Content(tmp_path)
    made.create()
    return made


def test_a_blob_is_whole_or_not_there(content: Content) -> None:
    digest = digest_of(b"abc")
    assert content.get(digest) is None
    with pytest.raises(ImageError, match="is damaged"):
        content.put(digest, b"abd")
    assert content.get(digest) is None
    content.put(digest, b"abc")
    content.put(digest, b"abc")
    assert content.get(digest) == b"abc"


def test_a_blob_that_the_disk_damaged_is_dropped(content: Content) -> None:
    digest = digest_of(b"abc")
    content.put(digest, b"abc")
    (content.blobs / digest[7:]).write_bytes(b"abd")
    assert content.get(digest) is None
    assert list(content.blobs.iterdir()) == []


def test_an_ingest_stops_at_its_size(content: Content) -> None:
    ingest = content.receive("x", digest_of(b"abc"), 3)
    ingest.write(b"ab")
    with pytest.raises(ImageError, match="longer than the 3 bytes"):
        ingest.write(b"cd")
    ingest.discard()
    assert list(content.ingest.iterdir()) == []


@pytest.mark.parametrize(
    ("data", "message"), [(b"ab", "has 2 of 3 bytes"), (b"abd", "has digest sha256:")]
)
def test_an_ingest_that_is_not_the_blob_is_forgotten(
    content: Content, data: bytes, message: str
) -> None:
    ingest = content.receive("x", digest_of(b"abc"), 3)
    ingest.write(data)
    with pytest.raises(ImageError, match=message):
        ingest.verify()
    assert ingest.written == 0
    ingest.write(b"abc")
    ingest.verify()
    assert ingest.path.read_bytes() == b"abc"


def test_recovery_and_collection_leave_what_is_wanted(content: Content) -> None:
    one, two = digest_of(b"1"), digest_of(b"2")
    content.put(one, b"1")
    content.put(two, b"2")
    (content.blobs / "x.7.tmp").touch()
    (content.ingest / "half").touch()
    content.recover()
    content.retain(frozenset({one}))
    assert [path.name for path in content.blobs.iterdir()] == [one[7:]]
    assert list(content.ingest.iterdir()) == []


def test_a_file_is_replaced_whole(tmp_path: Path) -> None:
    path = tmp_path / "file"
    durable.write(path, b"1")
    durable.write(path, b"22", mode=0o644)
    assert path.read_bytes() == b"22"
    assert [p.name for p in tmp_path.iterdir()] == ["file"]
