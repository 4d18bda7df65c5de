"""What every command says in the same way: its exit codes, its sentences, and an end without a reader.

When who reads goes away (``| head``) it has enough, and that is no error. What the failed write left
in Python's buffer would be written again when the process ends, and its exit code would then be 120
whatever we say; so it goes nowhere.
"""

from __future__ import annotations

import os
import sys
from contextlib import suppress
from typing import IO, Final

from noderuntime.policy.denial import printable

WRONG: Final = 2  # the files or the command line are
REFUSED: Final = 3  # a profile refuses a Pod
_LONGEST: Final = 2000  # characters of a sentence


def tell(sentence: str, longest: int = _LONGEST) -> None:
    """Say something to the person, on stderr; no escape in it reaches the terminal."""
    with suppress(OSError):
        sys.stderr.write(f"noderuntime: {printable(sentence, longest)}\n")
        sys.stderr.flush()


def show(text: str) -> None:
    """Print the text; the exit code stays what it is when nobody reads."""
    try:
        print(text, flush=True)
    except BrokenPipeError:
        let_go(sys.stdout)


def let_go(file: IO[str] | IO[bytes]) -> None:
    """Let what is, and will be, written to the file go nowhere."""
    nowhere = os.open(os.devnull, os.O_WRONLY | os.O_CLOEXEC)
    try:
        os.dup2(nowhere, file.fileno())
    finally:
        os.close(nowhere)
