from __future__ import annotations

import random
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from noderuntime.errors import ConfigError
from noderuntime.policy.rules import SeccompRules
from noderuntime.policy.seccomp import filter_of
from tests.unit.policy.factories import rules
from tests.unit.policy.seccomp_kit import LOW, Document, arg, rule, section

NONE: frozenset[str] = frozenset()


def entries(of: SeccompRules, name: str) -> list[Document]:
    """Return what a filter says about a call."""
    built: Any = filter_of(of, NONE, "x86_64")
    return [
        {k: v for k, v in entry.items() if k != "names"}
        for entry in built["syscalls"]
        if name in entry["names"]
    ]


@pytest.mark.parametrize(
    ("given_rules", "text"),
    [
        ([rule("mkdri", "Allow")], r"rules\[0\]\.names: mkdri is not a system call"),
        ([rule("read", "Allow", errno=1)], r"rules\[0\]\.errno: it is for action Errno"),
        (
            [rule("read", "Log"), rule("kill", "Allow", arg("EQ", 1), arg("NE", 3))],
            r"rules\[1\]\.args: an argument is named twice",
        ),
        ([rule("kill", "Allow", arg("EQ", 1, 2))], r"args\[0\]\.valueTwo: it is for op MASKED_EQ"),
        ([rule("kill", "Allow", arg("MASKED_EQ", 1))], r"args\[0\]\.valueTwo: it is for op"),
        ([rule("kill", "Allow", arg("MASKED_EQ", 1, 2))], "no number fulfils this condition"),
        ([rule("kill", "Allow", arg("LT", 0))], "no number fulfils this condition"),
        ([rule("socketcall", "Allow")], "socketcall is many calls behind one"),
        (
            [rule("kill", "Allow"), rule("kill", "Kill", arg("EQ", 1))],
            "kill has rules with action Allow and Kill that can both hold",
        ),
        (
            [rule("kill", "Errno", arg("LE", 5)), rule("kill", "Log", arg("GE", 5))],
            "can both hold",
        ),
        (
            [rule("kill", "Errno", errno=1), rule("kill", "Errno", errno=2)],
            "can both hold",
        ),
        (
            [
                rule("kill", "Errno", arg("MASKED_EQ", 1, 1)),
                rule("kill", "Log", arg("MASKED_EQ", 2, 2)),
            ],
            "can both hold",
        ),
        (
            [rule("kill", "Errno", arg("EQ", 1)), rule("kill", "Log", arg("EQ", 2, index=1))],
            "can both hold",
        ),
    ],
)
def test_rules_that_cannot_be_meant_are_an_error(given_rules: list[Document], text: str) -> None:
    with pytest.raises(ConfigError, match=text):
        section(rules=given_rules)


@pytest.mark.parametrize(
    "beside",
    [
        {"deny": [{"names": ["read"]}]},
        {"allow": [{"names": ["read"]}]},
        {"rules": [rule("read", "Log")]},
        {"architectures": ["X86"]},
    ],
)
def test_an_artifact_is_the_whole_filter(beside: Document) -> None:
    artifact = "registry.example.com/profiles/web@sha256:" + "a" * 64
    assert section(artifact=artifact).artifact == artifact
    with pytest.raises(ConfigError, match=r"seccomp\.artifact: an artifact is the whole filter"):
        section(artifact=artifact, **beside)


@pytest.mark.parametrize(
    ("one", "other"),
    [
        (arg("EQ", 1), arg("EQ", 2)),
        (arg("EQ", 1), arg("NE", 1)),
        (arg("LT", 5), arg("GE", 5)),
        (arg("LE", 5), arg("GT", 5)),
        (arg("MASKED_EQ", 3, 1), arg("MASKED_EQ", 1, 0)),
        (arg("EQ", 6), arg("MASKED_EQ", LOW, 5)),
    ],
)
def test_rules_that_exclude_each_other_may_do_different_things(
    one: Document, other: Document
) -> None:
    for first, second in ((one, other), (other, one)):
        found = section(rules=[rule("kill", "Allow", first), rule("kill", "Errno", second)])
        assert len(entries(found, "kill")) == 2


def test_rules_stand_in_place_of_base_and_allow_and_below_deny() -> None:
    given_rules = [rule("socket", "Errno", arg("EQ", 1), errno=97), rule("read", "Log")]
    found = section(
        rules=given_rules, allow=[{"names": ["read"]}], deny=[{"names": ["write", "clone3"]}]
    )
    condition = {"index": 0, "value": 1, "valueTwo": 0, "op": "SCMP_CMP_EQ"}
    assert entries(found, "socket") == [
        {"action": "SCMP_ACT_ERRNO", "errnoRet": 97, "args": [condition]}
    ]
    assert entries(found, "read") == [{"action": "SCMP_ACT_LOG"}]
    assert entries(found, "write") == []
    assert entries(section(rules=[rule("clone3", "Allow")]), "clone3") == [
        {"action": "SCMP_ACT_ALLOW"}
    ]
    denied = section(rules=[rule("mount", "Allow")], deny=[{"names": ["mount"]}])
    assert entries(denied, "mount") == []


def test_many_calls_behind_one_number_are_closed_with_one_of_them() -> None:
    enosys = [{"action": "SCMP_ACT_ERRNO", "errnoRet": 38}]
    free = [{"action": "SCMP_ACT_ALLOW"}]
    assert entries(section(), "socketcall") == free
    for closed in (
        section(deny=[{"names": ["bind"]}]),
        section(deny=[{"names": ["socketcall"]}]),
        section(rules=[rule("socket", "Kill")]),
        section(base="DenyAll", allow=[{"names": ["bind"]}]),
    ):
        assert entries(closed, "socketcall") == enosys
    built: Any = filter_of(section(deny=[{"names": ["bind"]}]), NONE, "x86_64")
    assert built["syscalls"][0]["names"] == ["socketcall"]
    whole = section(allow=[{"names": ["socketcall"]}], deny=[{"names": ["bind"]}])
    assert entries(whole, "socketcall") == free
    assert entries(section(deny=[{"names": ["shmat"]}]), "ipc") == enosys


def test_audit_logs_where_a_rule_would_not_allow() -> None:
    given_rules = [
        rule("kill", "Allow", arg("EQ", 1)),
        rule("read", "Kill"),
        rule("write", "Errno"),
    ]
    found = rules({"mode": "Audit", "seccomp": {"rules": given_rules}}).seccomp
    assert len(entries(found, "kill")) == 1
    assert entries(found, "read") == entries(found, "write") == []


@pytest.mark.parametrize(
    ("chosen", "expected"),
    [
        ([], ["X86_64", "X86", "X32"]),
        (["X86_64"], ["X86_64"]),
        (["X32", "ARM"], ["X86_64", "X32"]),
        (["AARCH64"], ["X86_64"]),
    ],
)
def test_the_nodes_own_entry_is_always_there(chosen: list[str], expected: list[str]) -> None:
    built: Any = filter_of(section(architectures=chosen), NONE, "x86_64")
    assert built["architectures"] == [f"SCMP_ARCH_{name}" for name in expected]


@settings(max_examples=30, deadline=None)
@given(order=st.randoms())
def test_the_order_of_rules_changes_nothing(order: random.Random) -> None:
    given_rules = [
        rule("kill", "Allow", arg("EQ", 1)),
        rule("kill", "Allow", arg("EQ", 2), arg("NE", 7, index=1)),
        rule("socket", "Errno", errno=97),
        rule("read", "Log"),
    ]
    shuffled = given_rules.copy()
    order.shuffle(shuffled)
    assert section(rules=shuffled) == section(rules=given_rules)
