from __future__ import annotations

from pathlib import Path

import pytest

from noderuntime.errors import ImageError
from noderuntime.images.records import Record, Records, encode
from noderuntime.images.reference import parse
from noderuntime.policy.model import ImageConfig

A, B = "sha256:" + "a" * 64, "sha256:" + "ab" * 32
DIGEST = "sha256:" + "d" * 64


def record(image_id: str) -> Record:
    config = ImageConfig(env=("A=b",), labels={"k": "v"})
    return Record(id=image_id, config=config, layers=("sha256:l",), blobs=(image_id,))


@pytest.fixture
def records(tmp_path: Path) -> Records:
    made = Records(tmp_path)
    made.create()
    return made


def reopen(tmp_path: Path) -> Records:
    again = Records(tmp_path)
    again.recover(lambda _: True)
    return again


def test_a_record_is_the_same_after_a_restart(records: Records, tmp_path: Path) -> None:
    put = records.put(record(A), parse("redis:7"), DIGEST)
    assert reopen(tmp_path).all() == (put,) == records.all()


def test_names_gather_and_a_tag_has_one_owner(records: Records, tmp_path: Path) -> None:
    records.put(record(A), parse("redis:7"), DIGEST)
    records.put(record(A), parse("quay.io/redis:7"), DIGEST)
    records.put(record(B), parse("redis:7"), DIGEST)
    for held in (records, reopen(tmp_path)):
        a, b = held.find(A), held.find(B)
        assert a is not None
        assert b is not None
        assert set(a.tags) == {"quay.io/redis:7"}
        assert set(b.tags) == {"docker.io/library/redis:7"}
        assert held.find("redis:7") == b


def test_a_tag_with_two_owners_after_a_crash_is_the_later_ones(
    records: Records, tmp_path: Path
) -> None:
    first = records.put(record(A), parse("redis:7"), DIGEST)
    records.put(record(B), parse("redis:7"), DIGEST)
    (tmp_path / "records" / f"{'a' * 64}.json").write_bytes(encode(first))
    again = reopen(tmp_path)
    found, old = again.find("redis:7"), again.find(A)
    assert found is not None
    assert found.id == B
    assert old is not None
    assert old.tags == {}


@pytest.mark.parametrize("data", [b"", b"{", b"{}", b'{"version": 99}', b"[]", b"null"])
def test_a_torn_record_is_set_aside(records: Records, tmp_path: Path, data: bytes) -> None:
    path = tmp_path / "records" / f"{'a' * 64}.json"
    path.write_bytes(data)
    (tmp_path / "records" / "x.json.tmp").write_bytes(b"")
    records.recover(lambda _: True)
    assert records.all() == ()
    assert [p.name for p in (tmp_path / "records").iterdir()] == [f"{path.name}.corrupt"]
    records.recover(lambda _: True)
    assert records.all() == ()


def test_a_record_without_its_layers_is_dropped(records: Records, tmp_path: Path) -> None:
    records.put(record(A), parse("redis"), DIGEST)
    again = Records(tmp_path)
    again.recover(lambda _: False)
    assert again.all() == ()


def test_a_prefix_finds_one_image_or_none(records: Records) -> None:
    records.put(record(A), parse("a"), DIGEST)
    twin = "sha256:" + "a" * 12 + "b" * 52
    records.put(record(twin), parse("b"), DIGEST)
    found = records.find("a" * 13)
    assert found is not None
    assert found.id == A
    assert records.find("a" * 12) is None
    assert records.find("sha256:" + "0" * 64) is None
    with pytest.raises(ImageError):
        records.find("No Reference")


def test_a_deleted_image_is_gone(records: Records, tmp_path: Path) -> None:
    records.put(record(A), parse("a"), DIGEST)
    records.delete(A)
    records.delete(A)
    assert records.all() == reopen(tmp_path).all() == ()
