from __future__ import annotations

import pytest

from noderuntime.api.yaml_text import documents


def test_documents_are_read_and_empty_ones_are_none() -> None:
    assert documents(b"a: 1\n---\n---\n[b]\n") == [{"a": 1}, ["b"]]
    assert documents(b"") == []


def test_a_time_stays_a_text_as_in_kubernetes() -> None:
    assert documents(b"expires: 2026-12-31T00:00:00Z\nday: 2026-12-31") == [
        {"expires": "2026-12-31T00:00:00Z", "day": "2026-12-31"}
    ]


@pytest.mark.parametrize(
    ("text", "why"),
    [
        (b"a: &x [1]\nb: *x", "alias"),
        (b"a: 1\nb: 2\na: 3", "line 3: 'a' is given twice"),
        (b"x: {a: 1, a: 2}", "'a' is given twice"),
        (b"a: !!python/object:os.system x", "could not determine a constructor"),
        (b"\xff\xfe\xff", "unacceptable character"),
        (b"? [a]\n: 1", "unhashable"),
    ],
)
def test_what_is_not_taken_says_why(text: bytes, why: str) -> None:
    with pytest.raises(ValueError, match=why):
        documents(text)
