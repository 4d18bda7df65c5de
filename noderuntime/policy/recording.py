"""A filter that tells a recorder of each system call that it lets through (``noderuntime record``).

Nothing is let through that was refused before: only what is done anyway becomes "ask who listens",
and the recorder's answer is always to go on. So a filter that records is as strict as the one it is
made of. Where the answer does not come (the recorder is dead), the call fails with ENOSYS.

Source: OCI runtime-spec config-linux.md "seccomp" (``SCMP_ACT_NOTIFY``, ``listenerPath``);
seccomp_unotify(2).
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, Final, cast

NOTIFY: Final = "SCMP_ACT_NOTIFY"
# Without it a signal to a thread that waits for the recorder would end its call with EINTR, and a
# program that is signalled often (Go does it to itself) might never get through. Linux 5.19.
_FLAGS: Final = ("SECCOMP_FILTER_FLAG_SPEC_ALLOW", "SECCOMP_FILTER_FLAG_WAIT_KILLABLE_RECV")
_DONE: Final = frozenset({"SCMP_ACT_ALLOW", "SCMP_ACT_LOG"})


def notifying(document: Mapping[str, object], listener: str) -> dict[str, object]:
    """Return the filter that tells ``listener`` (the path of a Unix socket) what it lets through."""
    rules = cast("Sequence[Mapping[str, Any]]", document.get("syscalls") or ())
    default = document["defaultAction"]
    return {
        **document,
        "defaultAction": NOTIFY if default in _DONE else default,
        "syscalls": [
            {**rule, "action": NOTIFY} if rule["action"] in _DONE else rule for rule in rules
        ],
        "flags": list(_FLAGS),
        "listenerPath": listener,
    }
