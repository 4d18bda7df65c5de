"""Localhost profiles: all that a file says holds, or it is refused."""

from __future__ import annotations

import json

import pytest

from noderuntime.errors import InvalidArgumentError
from noderuntime.policy.seccomp_file import parse

WHOLE: dict[str, object] = {
    "defaultAction": "SCMP_ACT_ERRNO",
    "defaultErrnoRet": 38,
    "architectures": ["SCMP_ARCH_X86_64"],
    "flags": ["SECCOMP_FILTER_FLAG_LOG"],
    "syscalls": [
        {
            "names": ["chmod", "fchmod"],
            "action": "SCMP_ACT_ALLOW",
            "args": [{"index": 1, "value": 2**63, "op": "SCMP_CMP_MASKED_EQ", "valueTwo": 0}],
        }
    ],
}


def test_a_whole_profile_is_handed_over_as_it_is() -> None:
    assert parse("/x", json.dumps(WHOLE)) == WHOLE


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"archMap": []}, "archMap"),
        ({"listenerPath": "/run/evil.sock"}, "listenerPath"),
        ({"defaultAction": "SCMP_ACT_NOTIFY"}, "defaultAction"),
        ({"defaultAction": "allow"}, "defaultAction"),
        ({"syscalls": [{"names": ["a"], "action": "SCMP_ACT_ALLOW", "includes": {}}]}, "includes"),
        ({"syscalls": [{"names": [], "action": "SCMP_ACT_ALLOW"}]}, r"syscalls\.0\.names"),
        ({"syscalls": [{"names": ["a b"], "action": "SCMP_ACT_ALLOW"}]}, r"syscalls\.0\.names"),
        ({"defaultErrnoRet": -1}, "defaultErrnoRet"),
        ({"flags": ["SECCOMP_FILTER_FLAG_NEW_LISTENER"]}, "flags"),
    ],
)
def test_what_would_be_lost_on_the_way_is_refused(change: dict[str, object], words: str) -> None:
    with pytest.raises(InvalidArgumentError, match=f"seccomp profile /x: .*{words}"):
        parse("/x", json.dumps({**WHOLE, **change}))


@pytest.mark.parametrize("text", ["", "[]", "{", "null", "{}", '{"defaultAction": 1}', "\0"])
def test_what_is_no_profile_is_refused_on_one_line(text: str) -> None:
    with pytest.raises(InvalidArgumentError) as caught:
        parse("/x", text)
    assert str(caught.value).isprintable()
