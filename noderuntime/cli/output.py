"""Output whose reader may go away (``| head``): who reads has enough, and that is no error.

What the failed write left in Python's buffer would be written again when the process ends, and its
exit code would then be 120 whatever we say; so it goes nowhere.
"""

from __future__ import annotations

import os
import sys
from typing import IO


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
