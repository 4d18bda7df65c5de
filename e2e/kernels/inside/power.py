"""A runtime whose power is cut from outside: ``python -m e2e.kernels.inside.power``.

It lives on ``/disk``. First a Pod's whole life, and at each step that the code declares the outside
is asked to take what is on the disk (``cut``); then that of a Pod with a user namespace, at the steps
where that makes a difference. Then Pods and images come and go until the end.
"""

from __future__ import annotations

import asyncio
import os
import secrets
import subprocess
import time
from dataclasses import replace
from itertools import cycle
from pathlib import Path
from typing import Final

from e2e.performance.registry import BUSYBOX, TAG, Registry, write_images
from noderuntime.engine.engine import steps_of
from tests.root.engine_kit import OWN_USERS, RealNode
from tests.root.engine_scene import Scene

DISK: Final = Path("/disk")
CUTS: Final = Path("/share/cuts")
TOKEN: Final = "token"
LIFE: Final = (
    "run_sandbox",
    "create_container",
    "start_container",
    "stop_container",
    "remove_container",
    "stop_sandbox",
    "remove_sandbox",
)
FREE: Final = "free"  # the word for the outside: nothing waits for it any more
_LAST: Final = {place.partition("/")[0]: place for place in steps_of()}
# After a step is before the next one, but for the last.
PLACES: Final = frozenset(
    (*(f"{place}:before" for place in steps_of()), *(f"{p}:after" for p in _LAST.values()))
)
USERS: Final = ":users"  # the end of a cut's name: the Pod has a user namespace
PLACES_OF_USERS: Final = frozenset(
    place for place in PLACES if place.startswith(("run_sandbox/", "create_container/"))
)


def node_on(disk: Path, token: str) -> RealNode:
    """The node whose state is on a disk; what a boot takes away is on a tmpfs."""
    node = RealNode(root=disk / "node", token=token)
    node.config.run_dir.mkdir(parents=True, exist_ok=True)
    subprocess.run(["mount", "-t", "tmpfs", "run", node.config.run_dir], check=True)
    return node


def registry_for(node: RealNode) -> tuple[Registry, str]:
    """A registry on loopback, and the name of its image."""
    folder = Path("/tmp/registry")  # of this boot
    if not folder.exists():
        folder.mkdir()
        write_images(folder, Path("/usr/bin/busybox"))
    registry = Registry({BUSYBOX: folder / "layouts" / BUSYBOX})
    place = node.config.images.hosts_dir / registry.address
    place.mkdir(parents=True, exist_ok=True)
    (place / "hosts.toml").write_text(
        f'[host."http://{registry.address}"]\ncapabilities = ["pull", "resolve"]\n'
    )
    return registry, f"{registry.address}/{BUSYBOX}:{TAG}"


def cut(name: str) -> None:
    """Wait until the outside has taken the disk as it is now."""
    (CUTS / name).touch()
    while not (CUTS / f"{name}.done").exists():
        time.sleep(0.005)


async def main() -> None:
    token = secrets.token_hex(4)
    (DISK / TOKEN).write_text(token)
    node = node_on(DISK, token)
    node.prepare("10.247.0.0/24")
    await node.load_image()
    os.sync()

    await _live(node, PLACES, "")
    await _live(replace(node, namespaces=OWN_USERS), PLACES_OF_USERS, USERS)
    print(FREE, flush=True)
    await _for_ever(node)


async def _live(node: RealNode, places: frozenset[str], suffix: str) -> None:
    """Let a Pod live once, and ask for a cut at these places."""

    async def ask(verb: str, step: str) -> None:
        if f"{verb}/{step}" in places:
            cut(f"{verb}.{step}{suffix}")

    engine = node.engine(ask)
    await engine.recover()
    for verb in LIFE:
        await Scene(node, engine).call(verb)
    await engine.close()


async def _for_ever(node: RealNode) -> None:
    engine = node.engine()
    await engine.recover()
    _, name = registry_for(node)
    for living in cycle((node, replace(node, namespaces=OWN_USERS))):
        await engine.pull_image(name, None, handler="")
        for verb in LIFE:
            await Scene(living, engine).call(verb)
        await engine.remove_image(name)


if __name__ == "__main__":
    asyncio.run(main())
