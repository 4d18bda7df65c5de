"""A filter is narrower than another by what the kernel does under both, argument by argument."""

from __future__ import annotations

from functools import lru_cache
from typing import Final

import pytest
from hypothesis import HealthCheck, assume, given, settings
from hypothesis import strategies as st

from noderuntime.errors import ConfigError
from noderuntime.host.seccomp import LibSeccomp
from noderuntime.policy.rules import SeccompRules
from noderuntime.policy.seccomp import filter_of, names_of, without
from noderuntime.policy.tighter_seccomp import is_wider
from tests.bpf import ALLOW, LOG, Call, Names, run
from tests.unit.policy.factories import rules
from tests.unit.policy.seccomp_kit import LOW, Document, arg, rule, section

SYS_ADMIN: Final = frozenset({"SYS_ADMIN"})
FREE: Final = "getpid"  # the runtime default allows it whatever its arguments are
CLOSED: Final = "keyctl"  # the runtime default does not allow it


def only(name: str, *args: Document) -> SeccompRules:
    return section(rules=[rule(name, "Allow", *args)])


NARROWER: Final = {
    "a deny more": ({}, {"deny": [{"names": ["mount", FREE]}]}),
    "an allow less": ({"allow": [{"names": [CLOSED]}]}, {}),
    "one entry less": ({}, {"architectures": ["X86_64"]}),
    "a kill of what was allowed": ({}, {"rules": [rule(FREE, "Kill")]}),
    "an errno of what was allowed": ({}, {"rules": [rule(FREE, "Errno", errno=38)]}),
    "a log of what was allowed": ({}, {"rules": [rule(FREE, "Log")]}),
    "an errno for a part, the rest allowed": (
        {},
        {
            "rules": [
                rule(FREE, "Errno", arg("EQ", 16)),
                rule(FREE, "Allow", arg("NE", 16)),
            ]
        },
    ),
    "one family of those that the default allows": (
        {},
        {"rules": [rule("socket", "Allow", arg("MASKED_EQ", LOW, 2))]},
    ),
    "one family by its number": ({}, {"rules": [rule("socket", "Allow", arg("EQ", 2))]}),
    "a part less of a rule": (
        {"rules": [rule(CLOSED, "Allow", arg("LT", 8))]},
        {"rules": [rule(CLOSED, "Allow", arg("LE", 4), arg("EQ", 1, index=1))]},
    ),
    "a range in two parts": (
        {"rules": [rule(CLOSED, "Allow", arg("LT", 4)), rule(CLOSED, "Allow", arg("GE", 4))]},
        {"rules": [rule(CLOSED, "Allow")]},
    ),
    "a kill instead of an errno": (
        {"rules": [rule(CLOSED, "Errno", arg("EQ", 1)), rule(CLOSED, "Allow", arg("NE", 1))]},
        {"rules": [rule(CLOSED, "Kill", arg("EQ", 1)), rule(CLOSED, "Allow", arg("NE", 1))]},
    ),
    "a rule of the base is left out": (
        {"rules": [rule(CLOSED, "Errno", arg("EQ", 1)), rule(CLOSED, "Allow", arg("NE", 1))]},
        {"rules": [rule(CLOSED, "Allow", arg("GT", 1))]},
    ),
    "deny all, and the default's own allowed": (
        {},
        {"base": "DenyAll", "allow": [{"names": ["read", "clone", "personality"]}]},
    ),
}


@pytest.mark.parametrize(("base", "child"), list(NARROWER.values()), ids=list(NARROWER))
def test_a_filter_is_narrower(base: Document, child: Document) -> None:
    assert not is_wider(section(**base), section(**child))


WIDER: Final = {
    "an allow more": ({}, {"allow": [{"names": [CLOSED]}]}),
    "a deny less": ({"deny": [{"names": [FREE]}]}, {}),
    "an entry more": ({"architectures": ["X86_64"]}, {}),
    "a family more": ({}, {"rules": [rule("socket", "Allow", arg("MASKED_EQ", LOW, 40))]}),
    "every family but one": ({}, {"rules": [rule("socket", "Allow", arg("NE", 40))]}),
    "an allow instead of a log": ({"rules": [rule(FREE, "Log")]}, {"rules": [rule(FREE, "Allow")]}),
    "a number more": (
        {"rules": [rule(CLOSED, "Allow", arg("LT", 8))]},
        {"rules": [rule(CLOSED, "Allow", arg("LE", 8))]},
    ),
    "an argument less": (
        {"rules": [rule(CLOSED, "Allow", arg("EQ", 8), arg("EQ", 1, index=1))]},
        {"rules": [rule(CLOSED, "Allow", arg("EQ", 8))]},
    ),
    "another argument": (
        {"rules": [rule(CLOSED, "Allow", arg("EQ", 8))]},
        {"rules": [rule(CLOSED, "Allow", arg("EQ", 8, index=1))]},
    ),
    "wide numbers that 32-bit programs cut": (
        {"rules": [rule(CLOSED, "Allow", arg("LT", 2**32 + 8))]},
        {"rules": [rule(CLOSED, "Allow", arg("LT", 2**32 - 1))]},
    ),
    "more masks than can be looked at": (
        {"rules": [rule(CLOSED, "Allow", arg("MASKED_EQ", 1 << n, 1 << n)) for n in range(9)]},
        {"rules": [rule(CLOSED, "Allow", arg("MASKED_EQ", 3, 3))]},
    ),
    "rules of sockets less, by which socketcall is open again": (
        {"rules": [rule("connect", "Allow")]},
        {},
    ),
}


@pytest.mark.parametrize(("base", "child"), list(WIDER.values()), ids=list(WIDER))
def test_a_filter_is_wider(base: Document, child: Document) -> None:
    assert is_wider(section(**base), section(**child))


def test_wide_numbers_are_compared_as_such_where_32_bit_programs_are_killed() -> None:
    plain = {"architectures": ["X86_64"]}
    base = section(rules=[rule(CLOSED, "Allow", arg("LT", 2**32 + 8))], **plain)
    assert not is_wider(base, section(rules=[rule(CLOSED, "Allow", arg("LT", LOW))], **plain))


def test_the_mode_of_the_section_is_not_looked_at() -> None:
    audited = rules({"mode": "Audit", "seccomp": {"deny": [{"names": ["mount"]}]}}).seccomp
    assert not is_wider(audited, section(deny=[{"names": ["mount"]}]))


VALUES: Final = (0, 1, 2, 3, 8, 16, 40, LOW, 2**32 + 2, 2**62)
CALLS: Final = (FREE, "socket", CLOSED, "personality", "connect")
_conditions = st.one_of(
    st.builds(
        arg,
        st.sampled_from(["EQ", "NE", "LT", "LE", "GT", "GE"]),
        st.sampled_from(VALUES),
        index=st.integers(0, 1),
    ),
    st.builds(
        arg,
        st.just("MASKED_EQ"),
        st.sampled_from((0, 1, 3, LOW)),
        st.sampled_from((0, 1, 2)),
        index=st.integers(0, 1),
    ),
)
_rules = st.builds(
    lambda name, action, args: rule(name, action, *args),
    st.sampled_from(CALLS),
    st.sampled_from(["Allow", "Allow", "Errno", "Log", "Kill"]),
    st.lists(_conditions, max_size=2, unique_by=lambda each: each["index"]),
)
_names = st.lists(st.sampled_from(CALLS), max_size=2, unique=True).map(
    lambda found: [{"names": found}] if found else []
)
sections = st.fixed_dictionaries(
    {
        "base": st.sampled_from(["RuntimeDefault", "RuntimeDefault", "DenyAll"]),
        "allow": _names,
        "deny": _names,
        "rules": st.lists(_rules, max_size=3),
        "architectures": st.sampled_from([[], [], ["X86_64"], ["X86"]]),
    }
)


@lru_cache
def library() -> tuple[LibSeccomp, Names]:
    return LibSeccomp(), Names()


def answers(of: SeccompRules) -> list[int]:
    """Return what the kernel would do for calls with the numbers that conditions are about."""
    compiler, names = library()
    document = filter_of(of, SYS_ADMIN, "x86_64")
    program = compiler.compile(without(document, compiler.unknown(names_of(document))))
    around = sorted({n for v in VALUES for n in (v - 1, v, v + 1) if n >= 0})
    calls = [
        Call(entry, names.number(entry, name), (first, second, 0, 0, 0, 0))
        for entry in ("X86_64", "X86", "X32")
        for name in (*CALLS, "socketcall")
        if names.number(entry, name) >= 0
        for first in around
        for second in (0, 1, 2, 16, 2**32 + 2)
    ]
    return [{ALLOW: 0, LOG: 1}.get(run(program, call), 2) for call in calls]


@pytest.mark.slow
@settings(
    max_examples=60,
    deadline=None,
    derandomize=True,
    database=None,
    suppress_health_check=[HealthCheck.too_slow, HealthCheck.filter_too_much],
)
@given(base=sections, child=sections, is_near=st.booleans())
def test_what_is_not_wider_lets_no_call_through_that_the_other_does_not(
    base: Document, child: Document, is_near: bool
) -> None:
    if is_near:  # two that have nothing in common are seldom narrower
        child = {**base, "rules": child["rules"], "deny": [*base["deny"], *child["deny"]]}
    try:
        theirs, mine = section(**base), section(**child)
    except ConfigError:
        assume(False)
        return
    if is_wider(theirs, mine):
        return
    allowed = zip(answers(theirs), answers(mine), strict=True)
    assert all(before <= after for before, after in allowed)
