"""A runtime that kills itself: ``-m tests.root.engine_driver ROOT TOKEN PLACE NAMESPACES``.

A place is ``verb/step:before`` or ``:after``, or ``after:SECONDS``. With the last a Pod lives its
whole life, and the kill comes in the middle of whatever is under way then.
"""

from __future__ import annotations

import asyncio
import os
import signal
import sys
import threading
from pathlib import Path

from pydantic import TypeAdapter

from noderuntime.policy.model import Namespaces
from tests.root.engine_kit import RealNode
from tests.root.engine_scene import Scene

LIFE = (
    "run_sandbox",
    "create_container",
    "start_container",
    "stop_container",
    "remove_container",
    "stop_sandbox",
    "remove_sandbox",
)


def kill_me() -> None:
    os.kill(os.getpid(), signal.SIGKILL)


async def main(root: str, token: str, place: str, namespaces: str) -> None:
    verb, _, seconds = place.partition(":")

    async def kill_here(called: str, step: str) -> None:
        if f"{called}/{step}" == place:
            kill_me()

    own = TypeAdapter(Namespaces).validate_json(namespaces)
    node = RealNode(root=Path(root), token=token, namespaces=own)
    engine = node.engine(kill_here)
    await engine.recover()
    scene = Scene(node, engine)
    if verb == "after":
        threading.Timer(float(seconds), kill_me).start()
        while True:
            for each in LIFE:
                await scene.call(each)
    await scene.call(place.partition("/")[0])
    raise SystemExit(f"{place} was never reached")


asyncio.run(main(*sys.argv[1:]))
