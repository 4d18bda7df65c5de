"""A SecurityProfile as YAML for people: in the model's order, without what is left as it is by default.

Sentences stand above their field as comments; what a container named its files cannot end one.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from textwrap import wrap
from typing import Any, Final, cast

from noderuntime.api.model import API_VERSION
from noderuntime.cli.recording.profile import Made
from noderuntime.policy.denial import printable

_WIDTH: Final = 92
_LONGEST: Final = 1000  # characters of a comment
# Always written: what a recording says of them is a result, also where it is the default.
_ALWAYS: Final[Mapping[str, object]] = {
    "noNewPrivileges": "Required",
    "rootFilesystem": "ReadWrite",
    "capabilities": {"default": []},
}


def as_yaml(name: str, made: Made, heading: Iterable[str]) -> str:
    """Return the document; ``heading`` are sentences above it."""
    return "".join(f"{line}\n" for line in _document(name, made, heading))


def _document(name: str, made: Made, heading: Iterable[str]) -> Iterator[str]:
    for sentence in heading:
        yield from _comment(sentence, "")
    yield f"apiVersion: {API_VERSION}"
    yield "kind: SecurityProfile"
    yield "metadata:"
    yield f"  name: {_scalar(name)}"
    yield "spec:"
    whole = made.spec.model_dump(by_alias=True, mode="json", exclude_none=True)
    said = made.spec.model_dump(
        by_alias=True, mode="json", exclude_none=True, exclude_defaults=True
    )
    for key in whole:
        value = said.get(key, _ALWAYS.get(key))
        if value is None:
            continue
        for sentence in made.why.get(key, ()):
            yield from _comment(sentence, "  ")
        yield from _field(key, value, "  ")


def _comment(sentence: str, indent: str) -> Iterator[str]:
    for line in wrap(printable(sentence, _LONGEST), _WIDTH - len(indent)):
        yield f"{indent}# {line}"


def _field(key: str, value: Any, indent: str) -> Iterator[str]:  # noqa: ANN401 - JSON
    if isinstance(value, dict) and value:
        yield f"{indent}{key}:"
        for name, inner in cast("Mapping[str, Any]", value).items():
            yield from _field(name, inner, f"{indent}  ")
    elif isinstance(value, list) and value and isinstance(value[0], dict):
        yield f"{indent}{key}:"
        for item in cast("Sequence[Mapping[str, Any]]", value):
            lines = [line for name, inner in item.items() for line in _field(name, inner, "")]
            yield f"{indent}  - {lines[0]}"
            yield from (f"{indent}    {line}" for line in lines[1:])
    elif isinstance(value, list):
        yield from _list(key, cast("Sequence[Any]", value), indent)
    else:
        plain = "{}" if isinstance(value, dict) else _scalar(value)
        yield f"{indent}{key}: {plain}"


def _list(key: str, values: Sequence[Any], indent: str) -> Iterator[str]:
    words = [_scalar(value) for value in values]
    line = f"{indent}{key}: [{', '.join(words)}]"
    if len(line) <= _WIDTH:
        yield line
        return
    yield f"{indent}{key}:"
    lines = wrap(", ".join(words), _WIDTH - len(indent) - 3, break_long_words=False)
    for number, text in enumerate(lines):
        start, end = "[" if number == 0 else " ", "]" if number == len(lines) - 1 else ""
        yield f"{indent}  {start}{text}{end}"


def _scalar(value: object) -> str:
    """Return a plain scalar, or a quoted one that YAML reads as the same text."""
    import json

    if isinstance(value, str):
        plain = value.replace("/", "").replace("_", "").replace("-", "").replace(".", "")
        words = {"true", "false", "null", "yes", "no", "on", "off", "y", "n"}
        if (
            plain.isalnum()
            and value[0].isalpha()
            and value.isascii()
            and value.lower() not in words
        ):
            return value
    return json.dumps(value)
