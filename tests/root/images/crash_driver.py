"""Pulls one image and is killed at the Nth thing it does to the disk; run by test_crash.

``WHO`` parent: this process is killed; worker: the worker kills itself; above: the worker kills
this process and so is killed by the kernel. Things done to the disk are audit events of Python
(open for writing, mkdir, rename, remove, ...) on paths below the state folder: they come with every
step, also with those written after this test.
"""

from __future__ import annotations

import asyncio
import os
import signal
import sys
from pathlib import Path
from typing import cast

EVENTS = {
    "os.mkdir",
    "os.rename",
    "os.remove",
    "os.rmdir",
    "os.chmod",
    "os.chroot",
    "socket.sendmsg",
}


def kill_at(number: int, state: str, victim: int) -> None:
    """Kill ``victim`` before the ``number``-th thing this process does to the disk."""
    count = 0

    def hook(event: str, arguments: tuple[object, ...]) -> None:
        nonlocal count
        if event == "open":
            if (
                len(arguments) < 3
                or not isinstance(arguments[2], int)
                or not arguments[2] & os.O_CREAT
            ):
                return
        elif event not in EVENTS:
            return
        if event != "socket.sendmsg":
            if isinstance(arguments[0], int):
                return
            path = cast("str | bytes | os.PathLike[str]", arguments[0])
            if not os.fsdecode(path).startswith(state):
                return
        count += 1
        if count == number:
            os.kill(victim, signal.SIGKILL)

    sys.addaudithook(hook)


async def pull(state: Path, reference: str) -> None:
    from noderuntime.images.store import ImageStore

    store = ImageStore(state, state / "certs.d")
    await store.recover()
    if os.environ["WHO"] == "parent":
        kill_at(int(os.environ["AT"]), str(state), os.getpid())
    await store.pull(reference)
    sys.stdout.write("whole\n")
    sys.stdout.flush()
    os._exit(0)


def main() -> None:
    from noderuntime.images import client

    if os.environ["WHO"] != "parent":
        # The worker is started with an environment of its own: give it this test's sitecustomize.
        plain = client._environment  # pyright: ignore[reportPrivateUsage]

        def environment() -> dict[str, str]:
            values = plain()
            here = os.environ["SITE"]
            kept = {k: os.environ[k] for k in ("WHO", "AT", "STATE")}
            return {**values, **kept, "PYTHONPATH": f"{here}:{values['PYTHONPATH']}"}

        client._environment = environment  # pyright: ignore[reportPrivateUsage]
    asyncio.run(pull(Path(os.environ["STATE"]), sys.argv[1]))


if __name__ == "__main__":
    main()
