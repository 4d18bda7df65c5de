"""Sections with rules by argument, in few words."""

from __future__ import annotations

from typing import Any, Final

from noderuntime.policy.rules import SeccompRules
from tests.unit.policy.factories import rules

Document = dict[str, Any]
LOW: Final = 2**32 - 1  # what a 32-bit entry compares


def section(**fields: object) -> SeccompRules:
    return rules({"seccomp": fields}).seccomp


def rule(name: str, action: str, *args: Document, **more: object) -> Document:
    return {"names": [name], "action": action, "args": list(args), **more}


def arg(op: str, value: int, two: int | None = None, index: int = 0) -> Document:
    return {"index": index, "op": op, "value": value, "valueTwo": two}
