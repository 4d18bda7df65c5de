"""A document whose commands are run: its blocks in order, and what it says that they print.

```` ```sh ```` is a script. In ```` ```console ```` a line after ``$ `` is a command, and the lines below it are what
it prints: each is found in that order, ``...`` stands for any text, and space is as in HTML. A block
below a comment ``<!-- shown only: why -->`` is not run.
"""

from __future__ import annotations

import os
import re
import secrets
import selectors
import signal
import subprocess
import time
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Final

_BLOCK: Final = re.compile(
    r"(?P<skip><!-- shown only: [^>]*-->\n)?^```(?P<kind>sh|console)\n(?P<body>.*?)^```$",
    re.MULTILINE | re.DOTALL,
)
# What only looks may look again: a person does, until it is there.
_LOOKS: Final = re.compile(r"kubectl get |grep |curl |noderuntime status")
LOOK_AGAIN_S: Final = 30.0


@dataclass(frozen=True, slots=True, kw_only=True)
class Step:
    """A command, the line of the document that it is on, and what it is said to print."""

    line: int
    command: str
    prints: tuple[str, ...] = ()


def steps(text: str) -> Iterator[Step]:
    """Yield what the document runs; a script is one step."""
    for block in _BLOCK.finditer(text):
        if block["skip"]:
            continue
        line = text.count("\n", 0, block.start("body")) + 1
        if block["kind"] == "sh":
            yield Step(line=line, command=f"set -e\n{block['body']}set +e")
            continue
        for part in re.split(r"^(?=\$ )", block["body"], flags=re.MULTILINE):
            if part:
                command, *prints = part.splitlines()
                yield Step(line=line, command=command.removeprefix("$ "), prints=tuple(prints))
            line += part.count("\n")


def missing(expected: tuple[str, ...], printed: str) -> str:
    """Return the first expected line that is not there in its order; "" where all are."""
    lines = [" ".join(line.split()) for line in printed.splitlines()]
    at = 0
    for each in expected:
        parts = [re.escape(" ".join(part.split())) for part in each.split("...")]
        if not any(parts):
            continue
        pattern = re.compile(r"\s*" + ".*".join(rf"\s*{part}\s*" for part in parts))
        while at < len(lines) and not pattern.fullmatch(lines[at]):
            at += 1
        if at == len(lines):
            return each
        at += 1
    return ""


class Shell:
    """A bash that keeps its folder, its variables and ``$?`` from one command to the next."""

    def __init__(self, folder: Path, environment: Mapping[str, str], prelude: str = "") -> None:
        self._mark = f"--{secrets.token_hex(8)}--"
        self._process = subprocess.Popen(
            ["bash", "--noprofile", "--norc"],
            cwd=folder,
            env=dict(environment),
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            start_new_session=True,
        )
        self.run(prelude or ":", 10)

    def run(self, command: str, limit_s: float) -> str:
        """Run and return what it printed; raises AssertionError when it is not done in time."""
        stdin, stdout = self._process.stdin, self._process.stdout
        assert stdin is not None
        assert stdout is not None
        # A command reads none of the script: what is to be run next is on this shell's stdin.
        script = f"{{ {command}\n}} </dev/null\n(s=$?; printf '\\n{self._mark}'; exit $s)\n"
        stdin.write(script.encode())
        stdin.flush()
        text, deadline = b"", time.monotonic() + limit_s
        with selectors.DefaultSelector() as selector:
            selector.register(stdout, selectors.EVENT_READ)
            while not text.endswith(self._mark.encode()):
                if not selector.select(max(0.0, deadline - time.monotonic())):
                    raise AssertionError(f"not done in {limit_s:.0f} s: {command}\n{text.decode()}")
                read = os.read(stdout.fileno(), 65536)
                assert read, f"the shell ended: {command}\n{text.decode()}"
                text += read
        return text.decode(errors="replace").removesuffix(self._mark)

    def close(self) -> None:
        """End it and all that it started."""
        os.killpg(self._process.pid, signal.SIGKILL)
        self._process.wait(timeout=10)
        for pipe in (self._process.stdin, self._process.stdout):
            if pipe is not None:
                pipe.close()


def walk(document: Path, shell: Shell, limit_s: float = 90) -> None:
    """Run the document; raises AssertionError that names the line where it is not as it says."""
    for step in steps(document.read_text()):
        deadline = time.monotonic() + LOOK_AGAIN_S
        while True:
            printed = shell.run(step.command, limit_s)
            absent = missing(step.prints, printed)
            again = _LOOKS.match(step.command) and time.monotonic() < deadline
            if not absent or not again:
                break
            time.sleep(0.3)
        where = f"{document.name}:{step.line}: $ {step.command}"
        assert not absent, f"{where}\nis said to print\n  {absent}\nbut printed\n{printed}"
