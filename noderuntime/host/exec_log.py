"""What the OCI runtime itself says during an exec, apart from what the process says.

Both crun and runc write errors of their own to ``--log`` as JSON lines, besides to their stderr,
and both end with 255 where they could not start the process: only the log tells that from a
process that ended with 255. The log is a memory file: nothing is left on disk.
"""

from __future__ import annotations

import json
import os
import re
from typing import Final, cast

_LIMIT_BYTES: Final = 64 * 1024
_MESSAGE_LIMIT: Final = 1000
_BAD: Final = frozenset({"error", "fatal", "panic"})
_NOT_FOUND: Final = re.compile(r"executable file `(.*)` not found in \$PATH(?:: .*)?")
_WHERE: Final = "exec failed: unable to start container process: "


class ExecLog:
    """The log of one exec."""

    def __init__(self) -> None:
        """Make the file."""
        self.descriptor: Final = os.memfd_create("oci.log", os.MFD_CLOEXEC)
        self._failure: str | None = None

    def failure(self) -> str:
        """Return why the process was not started; empty when there is nothing of the kind."""
        if self._failure is not None:
            return self._failure
        if not os.fstat(self.descriptor).st_size:
            return ""
        return failure_in(os.pread(self.descriptor, _LIMIT_BYTES, 0))

    def close(self) -> None:
        """Keep what it says and close the file; again is nothing."""
        if self._failure is None:
            self._failure = self.failure()
            os.close(self.descriptor)


def log_arguments(number: int) -> tuple[str, ...]:
    """Return the global options of a runtime that has the log open under this number."""
    return (f"--log=/proc/self/fd/{number}", "--log-format=json")


def failure_in(log: bytes) -> str:
    """Return the last error among JSON lines, in the words that the Go runtimes have for it."""
    said = ""
    for line in log.decode(errors="replace").splitlines():
        try:
            record: object = json.loads(line)
        except (ValueError, RecursionError):
            continue
        if isinstance(record, dict):
            fields = cast("dict[str, object]", record)
            if fields.get("level") in _BAD and isinstance(fields.get("msg"), str):
                said = str(fields["msg"])
    if not said:
        return ""
    if match := _NOT_FOUND.fullmatch(said):
        said = f"exec: {json.dumps(match[1])}: executable file not found in $PATH"
    said = " ".join("".join(c if c.isprintable() else " " for c in said).split())
    return _WHERE + said.removeprefix(_WHERE).removeprefix("exec failed: ")[:_MESSAGE_LIMIT]
