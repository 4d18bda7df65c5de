"""The seccomp section of a profile to what filters are built from; raises ValueError with the field.

Rules about one call must exclude each other where they do different things: a filter has no order,
and which of two rules that both hold would win is up to the library. What cannot be seen to exclude
another is refused; that is so where on one argument both conditions cannot hold at once.
"""

from __future__ import annotations

from collections.abc import Iterator
from itertools import combinations
from typing import Final

from noderuntime.api import seccomp as api
from noderuntime.policy import seccomp
from noderuntime.policy.denial import printable
from noderuntime.policy.rules import SeccompArgument, SeccompRule, SeccompRules

_LARGEST: Final = 2**64 - 1
_MASKED: Final = "MASKED_EQ"
_EPERM: Final = 1


def compiled(section: api.Seccomp, *, audit: bool) -> SeccompRules:
    """Check a section and return it for decisions. Raises ValueError."""
    if section.artifact is not None and (
        section.allow or section.deny or section.rules or section.architectures
    ):
        raise ValueError(
            "seccomp.artifact: an artifact is the whole filter; leave out allow, deny, rules and "
            "architectures"
        )
    rules = tuple(sorted(_rule(rule, n) for n, rule in enumerate(section.rules)))
    _require_exclusive(rules)
    return SeccompRules(
        deny_all=section.base == "DenyAll",
        allow=_names(section.allow, "seccomp.allow"),
        deny=_names(section.deny, "seccomp.deny"),
        rules=rules,
        architectures=frozenset(section.architectures),
        artifact=section.artifact or "",
        audit=audit,
    )


def _names(lists: tuple[api.SeccompNames, ...], field: str) -> frozenset[str]:
    return _known(frozenset(name for each in lists for name in each.names), field)


def _known(names: frozenset[str], field: str) -> frozenset[str]:
    unknown = names - seccomp.KNOWN
    if unknown:
        raise ValueError(f"{field}: {printable(min(unknown), 40)} is not a system call")
    return names


def _rule(rule: api.SeccompRule, number: int) -> SeccompRule:
    field = f"seccomp.rules[{number}]"
    if rule.errno is not None and rule.action != "Errno":
        raise ValueError(f"{field}.errno: it is for action Errno")
    indexes = [argument.index for argument in rule.args]
    if len(set(indexes)) < len(indexes):
        raise ValueError(
            f"{field}.args: an argument is named twice; write a rule for each alternative"
        )
    if whole := sorted(seccomp.MULTIPLEXED.keys() & set(rule.names)):
        raise ValueError(
            f"{field}.names: {whole[0]} is many calls behind one; name it in allow or deny, and "
            "write rules about those"
        )
    action = "KILL_PROCESS" if rule.action == "Kill" else rule.action.upper()
    return SeccompRule(
        names=tuple(sorted(_known(frozenset(rule.names), f"{field}.names"))),
        action=action,
        errno=(rule.errno or _EPERM) if action == "ERRNO" else 0,
        args=tuple(sorted(_argument(a, f"{field}.args[{n}]") for n, a in enumerate(rule.args))),
    )


def _argument(argument: api.SeccompArgument, field: str) -> SeccompArgument:
    if (argument.value_two is not None) != (argument.op == _MASKED):
        raise ValueError(f"{field}.valueTwo: it is for op {_MASKED}, and needed there")
    result = SeccompArgument(
        index=argument.index,
        op=argument.op,
        value=argument.value,
        value_two=argument.value_two or 0,
    )
    never = result.value_two & ~result.value if result.op == _MASKED else not _ranges(result)
    if never:
        raise ValueError(f"{field}: no number fulfils this condition")
    return result


def _require_exclusive(rules: tuple[SeccompRule, ...]) -> None:
    for one, other in combinations(rules, 2):
        both = set(one.names) & set(other.names)
        is_same = (one.action, one.errno) == (other.action, other.errno)
        if both and not is_same and not _exclude(one, other):
            raise ValueError(
                f"seccomp.rules: {min(both)} has rules with action {_word(one)} and "
                f"{_word(other)} that can both hold; on one argument their conditions "
                "must exclude each other"
            )


def _exclude(one: SeccompRule, other: SeccompRule) -> bool:
    return any(a.index == b.index and _disjoint(a, b) for a in one.args for b in other.args)


def _disjoint(one: SeccompArgument, other: SeccompArgument) -> bool:
    """Tell whether no number fulfils both; False also where that is not easily seen."""
    if one.op == other.op == _MASKED:
        return bool((one.value_two ^ other.value_two) & one.value & other.value)
    if one.op == _MASKED:
        one, other = other, one
    ranges = tuple(_ranges(one))
    if other.op == _MASKED:
        return all(low == high and low & other.value != other.value_two for low, high in ranges)
    return not any(
        low <= high_ and low_ <= high for low, high in ranges for low_, high_ in _ranges(other)
    )


def _ranges(argument: SeccompArgument) -> tuple[tuple[int, int], ...]:
    """Return the numbers that fulfil a condition without a mask, as inclusive ranges."""

    def candidates() -> Iterator[tuple[int, int]]:
        value = argument.value
        if argument.op in {"NE", "LT", "LE"}:
            yield 0, value if argument.op == "LE" else value - 1
        if argument.op in {"NE", "GT", "GE"}:
            yield value if argument.op == "GE" else value + 1, _LARGEST
        if argument.op == "EQ":
            yield value, value

    return tuple((low, high) for low, high in candidates() if low <= high)


def _word(rule: SeccompRule) -> str:
    return "Kill" if rule.action == "KILL_PROCESS" else rule.action.capitalize()
