"""Text in CEL: literals, and the sentence of a denial as an expression.

The items of a list must be of one type, so what comes from the Pod, whose type nobody knows, is made
text (``string``) or not known either (``dyn``) before it stands beside a literal.
Text of users (paths, registries, names) comes in only through ``text``, so it is never code.
Source: cel-spec, "Langdef", string literals; Kubernetes, "CEL in Kubernetes" (the string library).
"""

from __future__ import annotations

import json
from collections.abc import Iterable
from typing import Final, TypeAlias

from noderuntime.policy.denial import printable

_LONGEST: Final = 150  # of a part of a sentence, as in policy/denial.py

Sentence: TypeAlias = tuple[str | int, ...]
"""Text, with the numbers of those parts of an offence that stand in between."""


def text(value: str) -> str:
    """Return a string literal; JSON's escapes are CEL's too, but for surrogates: those are not used."""
    return json.dumps(value, ensure_ascii=False)


def texts(values: Iterable[str]) -> str:
    """Return a list literal."""
    return f"[{', '.join(map(text, values))}]"


def within(number: str, ranges: Iterable[tuple[int, int]]) -> str:
    """Return whether a number is in one of the inclusive ranges."""
    return " || ".join(f"{number} >= {low} && {number} <= {high}" for low, high in ranges)


def cut(value: str) -> str:
    """Return the value as text, cut so that a sentence stays one."""
    whole = f"string({value})"
    return f'({whole}.size() > {_LONGEST} ? {whole}.substring(0, {_LONGEST}) + "…" : {whole})'


def joined(parts: Sentence, offence: str) -> str:
    """Return a sentence as an expression; ``offence`` is the list that the numbers count in."""
    if all(isinstance(part, str) for part in parts):
        return text(printable("".join(map(str, parts))))
    return " + ".join(
        text(part) if isinstance(part, str) else f"{offence}[{part}]" for part in parts
    )


def plain(parts: Sentence) -> str:
    """Return a sentence without what only the Pod tells."""
    return printable("".join(part if isinstance(part, str) else "..." for part in parts))
