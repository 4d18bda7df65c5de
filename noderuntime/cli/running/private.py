"""The runtime of one run: a process that serves until who started it is gone, then leaves nothing.

``python -m noderuntime.cli.running.private CONFIG FD LOCK`` (``session.py`` starts it). It is gone when
its standard input ends, which the kernel sees to when the starter is killed. Then, and at the start,
for what a run that was killed with its runtime left, every Pod is removed, at the end also the
bridge, the cgroup, the mounts and the folders; the images stay. To ``FD`` goes one line: ``ready``, or
the sentence that says why not.
"""

from __future__ import annotations

import asyncio
import logging
import os
import shutil
import signal
import sys
from contextlib import suppress
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Final

from noderuntime.api.config import load_config
from noderuntime.cli import places, serve
from noderuntime.cli.parts import bridge_of, parts_of
from noderuntime.cli.running.apparmor import SharedAppArmor
from noderuntime.cli.running.places import Place
from noderuntime.engine.engine import Engine
from noderuntime.errors import HostError, NodeRuntimeError
from noderuntime.host import mountinfo
from noderuntime.host.cgroups import expand_slice, hierarchies
from noderuntime.host.mounts import KernelMounts
from noderuntime.host.ports import CgroupDriver
from noderuntime.telemetry import log

if TYPE_CHECKING:
    from noderuntime.api.config import Config

READY: Final = "ready"
_log = logging.getLogger(__name__)


def main(arguments: list[str]) -> int:
    """Serve, and clean up. Returns 1 where something is left, which the log then names."""
    path, told, lock = Path(arguments[0]), int(arguments[1]), int(arguments[2])
    for descriptor in (told, lock):
        os.set_inheritable(descriptor, False)
    log.setup(logging.INFO)
    try:
        config = load_config(path)
        with places.only_one(config):
            place = _place_of(config, lock)
            code = asyncio.run(_run(config, place, told))
    except NodeRuntimeError as error:
        tell(told, " ".join(str(error).split()))
        return 1
    place.let_go()
    return code


def _place_of(config: Config, lock: int) -> Place:
    run = config.run_dir
    return Place(number=int(run.name), run=run, state=config.state_dir.parent, lock=lock)


def tell(descriptor: int, line: str) -> None:
    """Say the one line, and close."""
    with suppress(OSError):  # nobody is there to hear it
        os.write(descriptor, line.encode() + b"\n")
    os.close(descriptor)


async def _run(config: Config, place: Place, told: int) -> int:
    gone = _gone()
    parts = parts_of(config)
    apparmor = SharedAppArmor(parts.apparmor)
    engine = Engine(replace(parts, apparmor=apparmor))
    driver = parts.cgroups.driver()
    await engine.recover()
    left = await _remove_pods(engine)
    async with asyncio.TaskGroup() as group:
        running = group.create_task(engine.run(), name="engine")
        answering = group.create_task(serve.answer(config, engine, driver), name="answer")
        while not gone.is_set() and not answering.done():
            if config.socket.exists() and told >= 0:
                tell(told, READY)
                told = -1
            with suppress(TimeoutError):
                async with asyncio.timeout(0.02 if told >= 0 else None):
                    await gone.wait()
        answering.cancel()
        with suppress(asyncio.CancelledError):
            await answering
        left += await _remove_pods(engine)
        running.cancel()
    left += await apparmor.unload_all()
    left += await _remove_rest(config, place, driver)
    for each in left:
        _log.error("something is left", extra={"error": each})
    return 1 if left else 0


def _gone() -> asyncio.Event:
    """Return what is set when standard input ends, or at a signal."""
    gone, loop = asyncio.Event(), asyncio.get_running_loop()

    def read() -> None:
        if not os.read(sys.stdin.fileno(), 4096):
            loop.remove_reader(sys.stdin.fileno())
            gone.set()

    loop.add_reader(sys.stdin.fileno(), read)
    for number in (signal.SIGTERM, signal.SIGINT, signal.SIGHUP):
        loop.add_signal_handler(number, gone.set)
    return gone


async def _remove_pods(engine: Engine) -> list[str]:
    """Remove every Pod; returns what could not be done."""
    left: list[str] = []
    for sandbox in engine.sandboxes():
        try:
            await engine.stop_sandbox(sandbox.id)
            await engine.remove_sandbox(sandbox.id)
        except NodeRuntimeError as error:
            left.append(f"sandbox {sandbox.id}: {error}")
    return left


async def _remove_rest(config: Config, place: Place, driver: CgroupDriver) -> list[str]:
    """Remove what is not a Pod's; the folder with the settings last, and only if all else went."""
    left: list[str] = []
    bridge = bridge_of(config)
    try:
        if bridge is not None:
            await bridge.remove()
    except NodeRuntimeError as error:
        left.append(str(error))
    try:
        _remove_cgroup(place.cgroup(systemd=driver is CgroupDriver.SYSTEMD))
        await remove_folder(place.pods)
        if not left:
            await remove_folder(place.run)
    except (NodeRuntimeError, OSError) as error:
        left.append(str(error))
    return left


def _remove_cgroup(name: str) -> None:
    """Remove the Pod's cgroup, which on a node is the kubelet's to remove."""
    relative = expand_slice(name) if name.endswith(".slice") else name.lstrip("/")
    for mount in set(hierarchies().values()):
        with suppress(FileNotFoundError):  # systemd removes an empty slice by itself
            (mount / relative).rmdir()


async def remove_folder(path: Path) -> None:
    """Remove a folder and what is mounted in it. Raises HostError where a mount stays, and OSError."""
    await KernelMounts().unmount(path)
    stay = mountinfo.mounts_at(path)
    if stay:
        raise HostError(f"{stay[0].target} is still mounted: umount it")
    with suppress(FileNotFoundError):
        shutil.rmtree(path)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
