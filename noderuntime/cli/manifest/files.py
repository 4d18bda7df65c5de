"""A manifest's bytes, bounded, for the commands that read some."""

from __future__ import annotations

import sys
from pathlib import Path

from noderuntime.cli.manifest.workloads import LARGEST
from noderuntime.errors import ConfigError


def content(name: str) -> bytes:
    """Return a file's bytes, up to one more than is taken; ``-`` is standard input.

    Raises ConfigError.
    """
    try:
        if name == "-":
            return sys.stdin.buffer.read(LARGEST + 1)
        with Path(name).open("rb") as file:
            return file.read(LARGEST + 1)
    except (OSError, ValueError) as error:
        said = getattr(error, "strerror", None) or error
        raise ConfigError(f"cannot read {name}: {said}") from error
