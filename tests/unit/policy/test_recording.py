"""The filter of a recording: it lets through what it let through, after a question, and nothing more."""

from __future__ import annotations

from typing import Any

from noderuntime.policy import recording, spec
from noderuntime.policy.rules import SeccompRules
from noderuntime.policy.seccomp import filter_of


def test_only_what_is_done_anyway_is_asked_about() -> None:
    plain: Any = filter_of(SeccompRules(), frozenset(), "x86_64")
    asking: Any = recording.notifying(plain, "/run/recorder.sock")
    assert asking["defaultAction"] == plain["defaultAction"] == "SCMP_ACT_ERRNO"
    assert asking["architectures"] == plain["architectures"]
    actions = {"SCMP_ACT_ALLOW": "SCMP_ACT_NOTIFY", "SCMP_ACT_ERRNO": "SCMP_ACT_ERRNO"}
    assert asking["syscalls"] == [
        {**rule, "action": actions[rule["action"]]} for rule in plain["syscalls"]
    ]
    assert asking["listenerPath"] == "/run/recorder.sock"


def test_what_is_only_audited_is_asked_about_as_well() -> None:
    plain = filter_of(SeccompRules(audit=True), frozenset(), "x86_64")
    assert recording.notifying(plain, "/s")["defaultAction"] == "SCMP_ACT_NOTIFY"


def test_the_listener_stays_beside_the_compiled_filter() -> None:
    plain = filter_of(SeccompRules(), frozenset(), "x86_64")
    asking = recording.notifying(plain, "/s")
    sealed: Any = spec.sealed({"linux": {"seccomp": asking}}, b"program")
    assert sealed["linux"]["seccomp"] == {
        "defaultAction": "SCMP_ACT_KILL_PROCESS",
        "flags": asking["flags"],
        "listenerPath": "/s",
    }
