"""Whether one filter of system calls lets more through than another, argument by argument.

Both are compared as OCI has them, for the capabilities that make a difference to them. A call is done
silently, done and logged, or not done; a child that turns one into an earlier one of these is wider.
The arguments of a call are cut into cases, in each of which every condition is either true or false;
a child's rule may hold only in cases in which the base does at least as much. There may be cases that no number
fulfils, so what is told narrower is, and what is too large to be cut counts as wider.
Source: OCI runtime-spec config-linux.md "seccomp"; libseccomp compares 32 bits for 32-bit entries.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass, replace
from functools import lru_cache
from itertools import pairwise, product
from math import prod
from typing import Any, Final, NamedTuple, TypeAlias, cast

from noderuntime.policy import seccomp
from noderuntime.policy.capabilities import KNOWN
from noderuntime.policy.rules import SeccompRules

_DONE, _LOGGED, _NOT_DONE = range(3)
_RANKS: Final = {"SCMP_ACT_ALLOW": _DONE, "SCMP_ACT_LOG": _LOGGED}
_MASKED: Final = "SCMP_CMP_MASKED_EQ"
_WIDTHS: Final = (2**64 - 1, 2**32 - 1)
_MOST_MASKS: Final = 8  # conditions with a mask on one argument: each doubles the cases
_MOST_CASES: Final = 4096


class _Condition(NamedTuple):
    """A condition on the argument at a position; for a mask ``value`` is the mask and ``wanted`` what is left."""

    position: int
    op: str
    value: int
    wanted: int

    def holds(self, argument: int) -> bool:
        """Tell whether a number fulfils it."""
        value = self.value
        return {
            "SCMP_CMP_NE": argument != value,
            "SCMP_CMP_LT": argument < value,
            "SCMP_CMP_LE": argument <= value,
            "SCMP_CMP_EQ": argument == value,
            "SCMP_CMP_GE": argument >= value,
            "SCMP_CMP_GT": argument > value,
            _MASKED: argument & value == self.wanted,
        }[self.op]


class _Verdict(NamedTuple):
    """One of OCI's ``syscalls`` as one call has it: it holds where all conditions do."""

    rank: int
    conditions: frozenset[_Condition]


_Verdicts: TypeAlias = frozenset[_Verdict]  # of one call
_Case: TypeAlias = frozenset[_Condition]  # the conditions on one argument that are true in it


@dataclass(frozen=True, slots=True)
class _Filter:
    """A filter, taken apart: what it says of each call, and by which entries."""

    entries: frozenset[str]
    verdicts: dict[str, _Verdicts]


def is_wider(base: SeccompRules, child: SeccompRules) -> bool:
    """Tell whether ``child`` lets a call through that ``base`` does not, or without its log.

    What an artifact holds and what mode Audit makes of it are not looked at.
    """
    theirs, mine = (replace(rules, audit=False, artifact="") for rules in (base, child))
    return mine != theirs and _is_wider_somewhere(theirs, mine)


@lru_cache(maxsize=128)
def _is_wider_somewhere(base: SeccompRules, child: SeccompRules) -> bool:
    cases = [("x86_64", names) for names in _capability_sets()]
    cases.append(("aarch64", KNOWN))  # its entries alone differ
    return any(
        _is_wider(_taken_apart(base, names, machine), _taken_apart(child, names, machine))
        for machine, names in cases
    )


def _capability_sets() -> Iterator[frozenset[str]]:
    """Yield sets in which each call's groups hold in every combination that there is.

    What a group depends on is one capability, to be there or not: so none, one, all, and all but one.
    """
    gates = frozenset(name for g in seccomp.GROUPS for name in (g.capability, g.unless) if name)
    yield frozenset()
    yield gates
    for gate in sorted(gates):
        yield frozenset((gate,))
        yield gates - {gate}


def _taken_apart(rules: SeccompRules, capabilities: frozenset[str], machine: str) -> _Filter:
    document = seccomp.filter_of(rules, capabilities, machine)
    found: dict[str, _Verdicts] = {}
    for entry in cast("list[dict[str, Any]]", document["syscalls"]):
        conditions = frozenset(
            _Condition(each["index"], each["op"], each["value"], each.get("valueTwo") or 0)
            for each in entry.get("args") or ()
        )
        verdict = _Verdict(_RANKS.get(entry["action"], _NOT_DONE), conditions)
        for name in entry["names"]:
            found[name] = found.get(name, frozenset()) | {verdict}
    return _Filter(frozenset(cast("Iterable[str]", document["architectures"])), found)


def _is_wider(base: _Filter, child: _Filter) -> bool:
    if not child.entries <= base.entries:
        return True
    widths = _WIDTHS if len(child.entries) > 1 else _WIDTHS[:1]  # the node's own is of 64 bits
    return any(
        not _is_covered(verdict, base.verdicts.get(name, frozenset()), width)
        for name, found in child.verdicts.items()
        if found != base.verdicts.get(name)
        for verdict in found
        if verdict.rank < _NOT_DONE
        for width in widths
    )


@lru_cache(maxsize=4096)
def _is_covered(verdict: _Verdict, base: _Verdicts, width: int) -> bool:
    """Tell whether the base does as much in every case in which ``verdict`` holds."""
    wanted = _cut(verdict.conditions, width)
    theirs = [_Verdict(each.rank, _cut(each.conditions, width)) for each in base]
    found = wanted.union(*(each.conditions for each in theirs))
    by_argument: list[list[_Case]] = []
    for position in sorted({each.position for each in found}):
        conditions = frozenset(each for each in found if each.position == position)
        if sum(each.op == _MASKED for each in conditions) > _MOST_MASKS:
            return False
        own = frozenset(each for each in wanted if each.position == position)
        by_argument.append([case for case in _cases(conditions, width) if own <= case])
    if prod(len(cases) for cases in by_argument) > _MOST_CASES:
        return False
    return all(
        _rank(theirs, frozenset[_Condition]().union(*case)) <= verdict.rank
        for case in product(*by_argument)
    )


def _rank(verdicts: list[_Verdict], case: _Case) -> int:
    """Return what is done in a case; where more than one verdict holds, the strictest."""
    return max((each.rank for each in verdicts if each.conditions <= case), default=_NOT_DONE)


def _cut(conditions: frozenset[_Condition], width: int) -> frozenset[_Condition]:
    return frozenset(
        each._replace(value=each.value & width, wanted=each.wanted & width) for each in conditions
    )


def _cases(conditions: frozenset[_Condition], width: int) -> Iterator[_Case]:
    """Yield which conditions on one argument can be true together; perhaps others, too."""
    masks = sorted(each for each in conditions if each.op == _MASKED)
    compared = conditions.difference(masks)
    # Between these numbers no comparison changes.
    edges = sorted({0, *(n for each in compared for n in (each.value, each.value + 1))})
    for low, after in pairwise([*(edge for edge in edges if edge <= width), width + 1]):
        true = frozenset(each for each in compared if each.holds(low))
        if after - low == 1:
            yield true.union(mask for mask in masks if mask.holds(low))
        else:
            yield from (true | under for under in _under_masks(masks))


def _under_masks(masks: list[_Condition]) -> Iterator[_Case]:
    for chosen in product((True, False), repeat=len(masks)):
        true = [mask for mask, is_true in zip(masks, chosen, strict=True) if is_true]
        false = [mask for mask, is_true in zip(masks, chosen, strict=True) if not is_true]
        if all(mask.wanted & ~mask.value == 0 for mask in true) and not any(
            _exclude(one, other) for one in true for other in true
        ):
            if any(_follows(mask, true) for mask in false):
                continue
            yield frozenset(true)


def _exclude(one: _Condition, other: _Condition) -> bool:
    return bool((one.wanted ^ other.wanted) & one.value & other.value)


def _follows(mask: _Condition, true: list[_Condition]) -> bool:
    """Tell whether a condition is true where these are: all its bits are said by them."""
    said = wanted = 0
    for each in true:
        said, wanted = said | each.value, wanted | each.wanted
    return mask.value & ~said == 0 and wanted & mask.value == mask.wanted
