from __future__ import annotations

from typing import Any

import pytest

from noderuntime.policy.capabilities import KNOWN as CAPABILITIES
from noderuntime.policy.rules import SeccompRules
from noderuntime.policy.seccomp import GROUPS, IN_LIBSECCOMP, KNOWN, filter_of

NONE: frozenset[str] = frozenset()


def verdict(
    name: str,
    rules: SeccompRules | None = None,
    capabilities: frozenset[str] = NONE,
) -> str:
    """Return allow, refuse, ENOSYS or 'args' for a system call under a filter."""
    built: Any = filter_of(rules or SeccompRules(), capabilities, "x86_64")
    found = [entry for entry in built["syscalls"] if name in entry["names"]]
    if not found:
        return {"SCMP_ACT_ERRNO": "refuse", "SCMP_ACT_LOG": "log"}[str(built["defaultAction"])]
    if "args" in found[0]:
        return "args"
    assert len(found) == 1
    return "ENOSYS" if found[0].get("errnoRet") == 38 else "allow"


@pytest.mark.parametrize(
    "name", ["read", "execve", "clock_gettime", "futex_waitv", "ptrace", "rseq"]
)
def test_the_default_allows_what_programs_need(name: str) -> None:
    assert verdict(name) == "allow"


@pytest.mark.parametrize(
    "name",
    [
        *("mount", "umount2", "setns", "unshare", "bpf", "perf_event_open", "reboot", "kexec_load"),
        *("init_module", "open_by_handle_at", "keyctl", "add_key", "io_uring_setup", "userfaultfd"),
        *("swapon", "settimeofday", "iopl", "chroot", "move_mount", "process_madvise", "mbind"),
    ],
)
def test_the_default_refuses_what_reaches_the_node(name: str) -> None:
    assert verdict(name) == "refuse"


@pytest.mark.parametrize(
    ("name", "capability"),
    [
        ("mount", "SYS_ADMIN"),
        ("clone", "SYS_ADMIN"),
        ("clone3", "SYS_ADMIN"),
        ("bpf", "BPF"),
        ("perf_event_open", "PERFMON"),
        ("chroot", "SYS_CHROOT"),
        ("process_madvise", "SYS_PTRACE"),
        ("syslog", "SYSLOG"),
        ("settimeofday", "SYS_TIME"),
        ("init_module", "SYS_MODULE"),
        ("mbind", "SYS_NICE"),
        ("open_by_handle_at", "DAC_READ_SEARCH"),
        ("reboot", "SYS_BOOT"),
    ],
)
def test_a_capability_brings_its_calls(name: str, capability: str) -> None:
    assert verdict(name) != "allow"
    assert verdict(name, capabilities=frozenset((capability,))) == "allow"
    assert verdict(name, SeccompRules(deny=frozenset((name,))), CAPABILITIES) in (
        "refuse",
        "ENOSYS",
    )


def test_arguments_are_judged_where_they_decide() -> None:
    for name in ("clone", "personality", "socket"):
        assert verdict(name) == "args"
    assert verdict("clone3") == "ENOSYS"
    entries: Any = filter_of(SeccompRules(), NONE, "x86_64")["syscalls"]
    args = {
        (e["names"][0], e["args"][0]["value"], e["args"][0]["op"]) for e in entries if "args" in e
    }
    assert args == {
        ("clone", 0x7E020000, "SCMP_CMP_MASKED_EQ"),
        *(("socket", 2**32 - n, "SCMP_CMP_MASKED_EQ") for n in (1, 2, 4, 32)),
        *(("personality", v, "SCMP_CMP_EQ") for v in (0, 8, 0x20000, 0x20008, 0xFFFFFFFF)),
    }


@pytest.mark.parametrize(
    ("rules", "name", "expected"),
    [
        pytest.param(SeccompRules(deny=frozenset(("read",))), "read", "refuse", id="deny"),
        pytest.param(
            SeccompRules(deny=frozenset(("socket",))), "socket", "refuse", id="deny socket"
        ),
        pytest.param(
            SeccompRules(deny=frozenset(("clone3",))), "clone3", "ENOSYS", id="deny clone3"
        ),
        pytest.param(SeccompRules(allow=frozenset(("keyctl",))), "keyctl", "allow", id="allow"),
        pytest.param(SeccompRules(allow=frozenset(("clone",))), "clone", "allow", id="allow lifts"),
        pytest.param(
            SeccompRules(allow=frozenset(("clone3",))), "clone3", "allow", id="allow clone3"
        ),
        pytest.param(
            SeccompRules(allow=frozenset(("keyctl",)), deny=frozenset(("keyctl",))),
            "keyctl",
            "refuse",
            id="deny wins",
        ),
        pytest.param(SeccompRules(deny_all=True), "read", "refuse", id="DenyAll"),
        pytest.param(SeccompRules(deny_all=True), "clone", "refuse", id="DenyAll refuses clone"),
        pytest.param(SeccompRules(deny_all=True), "clone3", "ENOSYS", id="DenyAll and clone3"),
        pytest.param(
            SeccompRules(deny_all=True, allow=frozenset(("read",))),
            "read",
            "allow",
            id="allow list",
        ),
        pytest.param(
            SeccompRules(deny_all=True, allow=frozenset(("clone",))),
            "clone",
            "args",
            id="keeps args",
        ),
        pytest.param(SeccompRules(audit=True), "mount", "log", id="audit logs"),
        pytest.param(SeccompRules(audit=True), "clone3", "log", id="audit and clone3"),
        pytest.param(SeccompRules(allow=frozenset(("listns",))), "listns", "allow", id="new"),
    ],
)
def test_a_profile_changes_the_filter(rules: SeccompRules, name: str, expected: str) -> None:
    assert verdict(name, rules) == expected


@pytest.mark.parametrize(
    ("machine", "count"), [("x86_64", 3), ("aarch64", 2), ("riscv64", None), ("", None)]
)
def test_the_architectures_are_those_of_the_machine(machine: str, count: int | None) -> None:
    found: Any = filter_of(SeccompRules(), NONE, machine).get("architectures")
    assert (None if found is None else len(found)) == count


def test_each_group_of_the_default_says_why_and_names_known_calls() -> None:
    for group in GROUPS:
        assert len(group.reason) > 10
        assert group.names <= KNOWN, sorted(group.names - KNOWN)
        assert {group.capability, group.unless} - {""} <= CAPABILITIES


def test_no_call_without_condition_is_in_two_groups() -> None:
    plain = [
        name for group in GROUPS if not group.args and not group.capability for name in group.names
    ]
    assert sorted(plain) == sorted(set(plain))


def test_libseccomp_knows_every_name_of_a_filter() -> None:
    pyseccomp: Any = pytest.importorskip("pyseccomp", exc_type=ImportError)
    machines = [
        pyseccomp.Arch.X86_64,
        pyseccomp.Arch.X86,
        pyseccomp.Arch.AARCH64,
        pyseccomp.Arch.ARM,
    ]
    unknown = {
        name
        for name in IN_LIBSECCOMP
        if not any(_is_known(pyseccomp, machine, name) for machine in machines)
    }
    assert unknown == set()
    assert len(KNOWN) > len(IN_LIBSECCOMP) > 400


def _is_known(module: Any, machine: object, name: str) -> bool:
    try:
        module.resolve_syscall(machine, name)
    except (ValueError, OSError):
        return False
    return True
