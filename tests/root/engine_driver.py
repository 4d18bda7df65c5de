"""A runtime that kills itself at one step: ``-m tests.root.engine_driver ROOT TOKEN PLACE``."""

from __future__ import annotations

import asyncio
import os
import signal
import sys
from pathlib import Path

from tests.root.engine_kit import RealNode
from tests.root.engine_scene import Scene


async def main(root: str, token: str, place: str) -> None:
    verb = place.partition("/")[0]

    async def kill_here(called: str, step: str) -> None:
        if f"{called}/{step}" == place:
            os.kill(os.getpid(), signal.SIGKILL)

    node = RealNode(root=Path(root), token=token)
    engine = node.engine(kill_here)
    await engine.recover()
    await Scene(node, engine).call(verb)
    raise SystemExit(f"{place} was never reached")


asyncio.run(main(*sys.argv[1:]))
