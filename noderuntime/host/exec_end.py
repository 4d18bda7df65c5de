"""The end of an exec: what runs inside, and what it started, goes with it.

The runtime in the foreground is its parent: killed first, it would leave a zombie in the container
until somebody else reaps it. So the processes inside are killed, then the runtime reaps and ends by
itself, and only one that does not is killed.
"""

from __future__ import annotations

import asyncio
import signal
from collections.abc import Callable, Coroutine
from contextlib import suppress
from pathlib import Path
from typing import Final

from noderuntime.host import pids
from noderuntime.host.ports import OciRuntime
from noderuntime.host.process import Child
from noderuntime.host.threads import in_pool

ROUNDS: Final = 20
ROUND_S: Final = 0.01
REAP_S: Final = 2.0


async def kill_tree(child: Child) -> None:
    """End the process inside with what it started, then the runtime; wait for its end."""
    if child.exit_code is not None:
        return
    await _end(child.pid, child.signal, child.wait)


async def sweep(runtime: OciRuntime) -> None:
    """End every exec of ``runtime`` that is there, whoever started it."""
    for pid in await in_pool(_execs, runtime.binary.name, runtime.global_arguments()):
        handle = await in_pool(pids.open_process, pid)
        if handle is None:
            continue

        async def ended(handle: pids.Handle = handle) -> None:
            await handle.wait_end(60.0)

        try:
            await _end(pid, handle.signal, ended)
        finally:
            handle.close()


async def _end(
    pid: int, send: Callable[[int], None], ended: Callable[[], Coroutine[object, object, object]]
) -> None:
    try:
        # One that has no child yet must not go on: it would start the process after all.
        if await _kill_inside(pid, send):
            send(signal.SIGCONT)
            with suppress(TimeoutError):
                async with asyncio.timeout(REAP_S):
                    await ended()
                    return
            await _kill_inside(pid, send)
    finally:
        send(signal.SIGKILL)
        await ended()


async def _kill_inside(pid: int, send: Callable[[int], None]) -> bool:
    """Stop the runtime and kill all below it; tells whether there was anything, dead or alive."""
    send(signal.SIGSTOP)  # so that its children keep their parent while they are looked for
    was_started = False
    for _ in range(ROUNDS):  # what is being started below it may be seen one round later
        found = await in_pool(pids.tree, pid)
        was_started = was_started or bool(found)
        alive = [process for process in found if pids.identify(process.pid) == process]
        if not alive:
            break
        pids.kill(frozenset(alive))
        await asyncio.sleep(ROUND_S)
    return was_started


def _execs(name: str, arguments: tuple[str, ...]) -> tuple[int, ...]:
    """Return those whose command is as ``RuntimeExec`` has it; what a person typed is another."""
    found: list[int] = []
    for entry in Path("/proc").iterdir():
        if entry.name.isdigit():
            program, *words = pids.command_line(int(entry.name)) or ("",)
            rest = words[len(arguments) :]
            is_ours = Path(program).name == name and words[: len(arguments)] == list(arguments)
            is_exec = "exec" in rest and rest[0].startswith("--log=/proc/self/fd/")
            if is_ours and is_exec:
                found.append(int(entry.name))
    return tuple(found)
