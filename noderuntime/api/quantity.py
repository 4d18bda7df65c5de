"""Kubernetes quantities (``500m``, ``2``, ``128Mi``) as whole millicores and bytes, and back.

Always exact: numbers are fractions until the last step, which rounds up as Kubernetes does. What
does not fit 63 bits is refused, so that no quantity can make a number of unbounded size.
Source: k8s.io/apimachinery ``pkg/api/resource/quantity.go``, the grammar in its comment.
"""

from __future__ import annotations

import re
from fractions import Fraction
from math import ceil
from typing import Final

_PATTERN: Final = re.compile(
    r"\+?(?P<whole>[0-9]{0,30})(?:\.(?P<part>[0-9]{0,30}))?"
    r"(?P<suffix>[numkMGTPE]|[KMGTPE]i|[eE][+-]?[0-9]{1,2})?"
)
_DECIMAL: Final = {
    "n": -9,
    "u": -6,
    "m": -3,
    "": 0,
    "k": 3,
    "M": 6,
    "G": 9,
    "T": 12,
    "P": 15,
    "E": 18,
}
_BINARY: Final = {"Ki": 10, "Mi": 20, "Gi": 30, "Ti": 40, "Pi": 50, "Ei": 60}
_MOST: Final = 2**63 - 1


def parse(text: str) -> Fraction:
    """Return the exact value; raises ValueError for what is no quantity or is negative."""
    match = _PATTERN.fullmatch(text)
    if match is None or not (match["whole"] or match["part"]):
        raise ValueError(f"{text[:40]!r} is not a quantity such as 500m, 2 or 128Mi")
    value = Fraction(int(match["whole"] or "0"))
    if match["part"]:
        value += Fraction(int(match["part"]), 10 ** len(match["part"]))
    value *= _scale(match["suffix"] or "")
    if value > _MOST:
        raise ValueError(f"{text[:40]!r} is larger than 2^63-1")
    return value


def milli_cpu(text: str) -> int:
    """Return CPU in thousandths of a core, rounded up."""
    value = ceil(parse(text) * 1000)
    if value > _MOST:
        raise ValueError(f"{text[:40]!r} is larger than 2^63-1 thousandths")
    return value


def size_bytes(text: str) -> int:
    """Return an amount of memory in bytes, rounded up."""
    return ceil(parse(text))


def show_cpu(millis: int) -> str:
    """Write millicores as a user would: ``500m``, ``2``."""
    return str(millis // 1000) if millis % 1000 == 0 else f"{millis}m"


def show_bytes(amount: int) -> str:
    """Write bytes with the largest binary unit that divides them: ``128Mi``."""
    for suffix, bits in reversed(_BINARY.items()):
        if amount and amount % (1 << bits) == 0:
            return f"{amount >> bits}{suffix}"
    return str(amount)


def _scale(suffix: str) -> Fraction:
    if suffix in _BINARY:
        return Fraction(1 << _BINARY[suffix])
    exponent = _DECIMAL[suffix] if suffix in _DECIMAL else int(suffix[1:])
    return Fraction(10) ** exponent
