"""A SecurityProfile as YAML for people: in the model's order, without what is left as it is by default.

Sentences stand above their field as comments; what a container named its files cannot end one.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from textwrap import wrap
from typing import Final

import yaml

from noderuntime.api.model import API_VERSION
from noderuntime.cli.recording.profile import Made
from noderuntime.policy.denial import printable

_WIDTH: Final = 92
_INDENT: Final = "  "
_BREAK: Final = 68  # a line ends with the word that passes it, and names of calls are long
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
    yield from _field("name", name)
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
            yield from _comment(sentence, _INDENT)
        yield from _field(key, value)


def _comment(sentence: str, indent: str) -> Iterator[str]:
    for line in wrap(printable(sentence, _LONGEST), _WIDTH - len(indent)):
        yield f"{indent}# {line}"


def _field(key: str, value: object) -> Iterator[str]:
    """Yield the lines of a field; what holds nothing but scalars is on one line, if that is long enough."""
    is_scalar = not isinstance(value, dict | list)
    text = yaml.safe_dump(
        {key: value},
        sort_keys=False,
        default_flow_style=False if is_scalar else None,
        width=_BREAK,
    )
    yield from (f"{_INDENT}{line}" for line in text.splitlines())
