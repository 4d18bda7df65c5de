"""A compiled filter is the filter: every call of every entry gets what OCI's object says."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any, Final

import pytest

from noderuntime.api.seccomp import Seccomp
from noderuntime.errors import HostError, InvalidArgumentError
from noderuntime.host.seccomp import LibSeccomp, OnlyTable, compiler
from noderuntime.policy.rules import SeccompRules
from noderuntime.policy.seccomp import filter_of, names_of, without
from noderuntime.policy.seccomp_rules import compiled
from tests.bpf import ALLOW, ERRNO, KILL, LOG, Call, Names, meant, run

NONE: frozenset[str] = frozenset()
ENTRIES: Final = ("X86_64", "X86", "X32")
NUMBERS: Final = (*range(480), 511, 512, 547, 1000, 0x3FFFFFFF)
_SECOND: Final = {"index": 1, "value": 0}
_LOW: Final = {"op": "MASKED_EQ", "value": 2**32 - 1}
FIRST_ARGUMENTS: Final = (0, 38, 0x10000, 0x1_0000_0026, 0x10000000, 0xFFFFFFFF, 2**64 - 1)


def _rule(name: str, action: str, *args: dict[str, object], **more: object) -> dict[str, object]:
    return {"names": [name], "action": action, "args": list(args), **more}


# One of each operator, in rules that exclude each other.
FAMILIES: Final[list[dict[str, object]]] = [
    _rule("socket", "Errno", {"index": 0, "op": "EQ", "value": 38}, errno=97),
    _rule("socket", "Log", {"index": 0, "op": "LT", "value": 38}),
    _rule("socket", "Allow", {"index": 0, "op": "GT", "value": 38}, {**_SECOND, "op": "EQ"}),
    _rule("socketpair", "Allow", {**_SECOND, "op": "NE"}),
    _rule("bind", "Trap", {"index": 0, "op": "GE", "value": 38}),
    _rule("bind", "Kill", {"index": 0, "op": "LE", "value": 0}),
    _rule("connect", "Log"),
]
PERSONALITIES: Final[list[dict[str, object]]] = [
    _rule("personality", "Allow", {"index": 0, **_LOW, "valueTwo": 38}),
    _rule("personality", "Errno", {"index": 0, **_LOW, "valueTwo": 0}, errno=22),
]


def load(section: dict[str, Any]) -> SeccompRules:
    return compiled(Seccomp.model_validate(section), audit=False)


@pytest.fixture(scope="module")
def library() -> LibSeccomp:
    return LibSeccomp()


@pytest.fixture(scope="module")
def names() -> Names:
    return Names()


def calls() -> Iterator[Call]:
    for entry in ENTRIES:
        for number in NUMBERS:
            for argument in FIRST_ARGUMENTS:
                yield Call(entry, number, (argument, 0, 0, 0, 0, 0))


def differences(library: LibSeccomp, names: Names, document: dict[str, Any]) -> list[str]:
    """Return the calls for which the program says something else than the document."""
    program = library.compile(document)
    return [
        f"{call}: {said:#x}, not {wanted:#x}"
        for call in calls()
        if (said := run(program, call)) != (wanted := meant(document, names, call))
    ]


@pytest.mark.slow
@pytest.mark.parametrize(
    ("rules", "capabilities"),
    [
        pytest.param(SeccompRules(), NONE, id="the default"),
        pytest.param(SeccompRules(), frozenset(("SYS_ADMIN", "SYS_PTRACE")), id="for an admin"),
        pytest.param(SeccompRules(audit=True), NONE, id="audit"),
        pytest.param(SeccompRules(deny=frozenset(("mkdir", "socket", "clone"))), NONE, id="deny"),
        pytest.param(
            SeccompRules(deny_all=True, allow=frozenset(("read", "write", "clone"))),
            NONE,
            id="an allow list",
        ),
        pytest.param(
            load({"rules": FAMILIES + PERSONALITIES, "deny": [{"names": ["shmget"]}]}),
            NONE,
            id="rules by arguments",
        ),
        pytest.param(
            load({"base": "DenyAll", "allow": [{"names": ["socket", "bind"]}]}),
            NONE,
            id="a condition that socketcall does not keep",
        ),
        pytest.param(
            load({"base": "DenyAll", "rules": FAMILIES, "architectures": ["X86_64", "X32"]}),
            NONE,
            id="rules alone, without int 0x80",
        ),
    ],
)
def test_a_program_says_what_the_filter_says(
    library: LibSeccomp, names: Names, rules: SeccompRules, capabilities: frozenset[str]
) -> None:
    document = filter_of(rules, capabilities, "x86_64")
    document = without(document, library.unknown(names_of(document)))
    assert differences(library, names, document) == []


@pytest.mark.slow
def test_a_filter_for_one_entry_ends_who_comes_by_another(
    library: LibSeccomp, names: Names
) -> None:
    document: dict[str, Any] = {
        "defaultAction": "SCMP_ACT_ERRNO",
        "defaultErrnoRet": 38,
        "architectures": ["SCMP_ARCH_X86_64"],
        "syscalls": [{"names": ["read", "unshare"], "action": "SCMP_ACT_ALLOW"}],
    }
    assert differences(library, names, document) == []
    program = library.compile(document)
    assert run(program, Call("X86_64", 0)) == ALLOW
    assert run(program, Call("X86_64", 1)) == ERRNO | 38
    assert run(program, Call("X86", 3)) == run(program, Call("X32", 0)) == KILL


def test_conditions_on_one_argument_are_alternatives_as_for_crun(
    library: LibSeccomp, names: Names
) -> None:
    conditions = [
        {"index": 0, "value": 1, "op": "SCMP_CMP_EQ"},
        {"index": 0, "value": 3, "op": "SCMP_CMP_EQ"},
        {"index": 1, "value": 4, "valueTwo": 4, "op": "SCMP_CMP_MASKED_EQ"},
    ]
    document: dict[str, Any] = {
        "defaultAction": "SCMP_ACT_LOG",
        "syscalls": [
            {"names": ["kill"], "action": "SCMP_ACT_ERRNO", "errnoRet": 5, "args": conditions}
        ],
    }
    program = library.compile(document)
    for first in (1, 2, 3):
        for second in (4, 8):
            call = Call("X86_64", names.number("X86_64", "kill"), (first, second, 0, 0, 0, 0))
            hit = first != 2 or second == 4
            assert run(program, call) == (ERRNO | 5 if hit else LOG) == meant(document, names, call)


def test_unknown_names_are_left_out_and_told(library: LibSeccomp) -> None:
    assert library.unknown(["read", "socketcall", "no_such_call"]) == {"no_such_call"}
    document = {
        "defaultAction": "SCMP_ACT_ERRNO",
        "syscalls": [{"names": ["no_such_call", "read"], "action": "SCMP_ACT_ALLOW"}],
    }
    assert run(library.compile(document), Call("X86_64", 0)) == ALLOW


def test_what_cannot_be_compiled_says_why(library: LibSeccomp) -> None:
    document: dict[str, Any] = {"defaultAction": "SCMP_ACT_ALLOW", "architectures": ["Z80"]}
    with pytest.raises(InvalidArgumentError, match="Z80 is not an architecture"):
        library.compile(document)
    rules = [
        {
            "names": ["ioctl"],
            "action": "SCMP_ACT_LOG",
            "args": [{"index": 1, "value": n << 32 | n, "op": "SCMP_CMP_EQ"}],
        }
        for n in range(2000)
    ]
    document = {"defaultAction": "SCMP_ACT_ALLOW", "syscalls": rules}
    with pytest.raises(InvalidArgumentError, match="too long for the kernel"):
        library.compile(document)


async def test_a_node_without_the_library_leaves_it_to_the_oci_runtime() -> None:
    with pytest.raises(HostError, match=r"libnothing\.so cannot be used"):
        LibSeccomp("libnothing.so")
    table = OnlyTable(frozenset(("read",)))
    assert table.unknown(("read", "mseal")) == {"mseal"}
    assert table.version == ""
    with pytest.raises(HostError):
        table.compile({})
    assert compiler(NONE).version.startswith("2.")
