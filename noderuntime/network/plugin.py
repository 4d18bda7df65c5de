"""Running one CNI plugin: the request in the environment, configuration on stdin, answer on stdout.

Source: CNI spec 1.1, section 2 (execution protocol) and 5 (results, error codes).
"""

from __future__ import annotations

import json
import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Final, cast

from noderuntime.errors import DeadlineExceededError, HostError, NetworkError
from noderuntime.host.process import PATH, Command, Output, run
from noderuntime.network.conflist import Document

TIMEOUT_S: Final = 60.0
_OUTPUT_LIMIT_BYTES: Final = 1024 * 1024


@dataclass(frozen=True, slots=True, kw_only=True)
class Call:
    """What does not change from plugin to plugin within one verb."""

    verb: str
    container_id: str = ""
    netns: str = ""
    interface: str = ""
    arguments: str = ""
    timeout_s: float = TIMEOUT_S


class Plugins:
    """The plugins in ``bin_dirs``, the first folder that has one wins."""

    def __init__(self, bin_dirs: Sequence[Path]) -> None:
        """Keep the folders; they may be filled later."""
        self._bin_dirs = tuple(bin_dirs)

    def find(self, kind: str) -> Path:
        """Return the program; raises NetworkError that says where it was looked for."""
        for directory in self._bin_dirs:
            program = directory / kind
            if program.is_file() and os.access(program, os.X_OK):
                return program
        where = ", ".join(map(str, self._bin_dirs)) or "no folder at all"
        raise NetworkError(f"CNI plugin {kind!r} is not in {where}: install it there")

    async def run(self, kind: str, call: Call, config: Document) -> Document | None:
        """Run one plugin; returns its result, None where it gives none. Raises NetworkError."""
        program = self.find(kind)
        env = {
            "PATH": PATH,
            "CNI_COMMAND": call.verb,
            "CNI_CONTAINERID": call.container_id,
            "CNI_NETNS": call.netns,
            "CNI_IFNAME": call.interface,
            "CNI_ARGS": call.arguments,
            "CNI_PATH": ":".join(map(str, self._bin_dirs)),
        }
        command = Command(
            argv=(str(program),),
            stdin=json.dumps(config).encode(),
            env={name: value for name, value in env.items() if value},
            timeout_s=call.timeout_s,
            output_limit_bytes=_OUTPUT_LIMIT_BYTES,
        )
        try:
            output = await run(command)
        except (HostError, DeadlineExceededError) as error:
            raise NetworkError(f"CNI plugin {kind!r} {call.verb}: {error}") from error
        answer = _object(output.stdout)
        if output.exit_code != 0:
            raise NetworkError(f"CNI plugin {kind!r} {call.verb} failed: {_why(output, answer)}")
        return answer


def _object(data: bytes) -> Document | None:
    try:
        answer: object = json.loads(data)
    except ValueError:
        return None
    return cast("Document", answer) if isinstance(answer, dict) else None


def _why(output: Output, answer: Mapping[str, object] | None) -> str:
    """Return msg and details of the plugin's error, else what it wrote last."""
    said = ""
    if answer is not None:
        words = (answer.get("msg"), answer.get("details"))
        said = " ".join(": ".join(str(word) for word in words if word).split())
    elif answer is None:
        said = output.last_line()
    return said or f"status {output.exit_code} and no word"
