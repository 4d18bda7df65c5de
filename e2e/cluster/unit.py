"""What the systemd unit of ``deploy/`` says of how the runtime runs.

Whoever starts ``noderuntime serve`` without systemd takes it from here: so what is tested and
measured is what runs on nodes.
"""

from __future__ import annotations

import shlex
from pathlib import Path
from typing import Final

UNIT: Final = Path(__file__).resolve().parents[2] / "deploy" / "noderuntime.service"


def environment(unit: Path = UNIT) -> dict[str, str]:
    """Return the variables that it sets. systemd.exec(5), ``Environment=``."""
    assignments = [
        word
        for line in unit.read_text().splitlines()
        if line.startswith("Environment=")
        for word in shlex.split(line.removeprefix("Environment="))
    ]
    return {name: value for name, _, value in (word.partition("=") for word in assignments)}
