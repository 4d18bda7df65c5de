"""Whatever a user writes is a reference in one normal form, or an ImageError of one line."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from noderuntime.errors import ImageError
from noderuntime.images.reference import Reference, parse

COMPONENT = st.from_regex(r"[a-z0-9]{1,8}([._-][a-z0-9]{1,8}){0,2}", fullmatch=True)
REGISTRY = st.from_regex(
    r"([a-z0-9]{1,5}\.[a-z]{2,3}|localhost)(:[1-9][0-9]{0,3})?", fullmatch=True
)
TAG = st.from_regex(r"[A-Za-z0-9_][A-Za-z0-9_.-]{0,20}", fullmatch=True)
DIGEST = st.from_regex(r"sha256:[0-9a-f]{64}", fullmatch=True)


@given(st.text(max_size=300) | st.text(alphabet="aA0./:@-_[]sha256", max_size=120))
def test_any_text_parses_or_is_refused_in_one_line(text: str) -> None:
    try:
        parsed = parse(text)
    except ImageError as error:
        assert "\n" not in str(error)
        assert str(error).isprintable()
        return
    assert parse(str(parsed)) == parsed
    assert ".." not in parsed.repository
    assert not parsed.repository.startswith("/")
    assert str(parsed).isascii()


@given(REGISTRY, st.lists(COMPONENT, min_size=1, max_size=4), TAG, st.none() | DIGEST)
def test_a_well_formed_reference_keeps_its_parts(
    registry: str, path: list[str], tag: str, digest: str | None
) -> None:
    repository = "/".join(path)
    parsed = parse(f"{registry}/{repository}:{tag}" + (f"@{digest}" if digest else ""))
    assert parsed == Reference(
        registry=registry,
        repository=repository,
        tag="" if digest else tag,
        digest=digest or "",
    )
