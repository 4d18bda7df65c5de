"""The run itself, in namespaces of its own: network, mounts and processes, which all end with it.

So no link, no address, no rule, no mount and no process of a run can be left on the machine.
"""

from __future__ import annotations

import asyncio
import json
import os
import subprocess
import sys
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from pathlib import Path

from e2e.performance import groups, registry, rivals
from e2e.performance.chain import chain_in
from e2e.performance.cri import Client
from e2e.performance.figures import Samples
from e2e.performance.floor import Floor
from e2e.performance.groups import Group
from e2e.performance.measure import FULL, SHORT, Measurement, Side
from e2e.performance.page import which
from e2e.performance.rivals import Places, Rival


@dataclass(frozen=True, slots=True, kw_only=True)
class Run:
    """What is run, and where. ``token`` names the run's cgroups."""

    folder: Path
    token: str
    oci_runtime: Path
    containerd: Path
    short: bool
    built_in: bool


def main(run: Run) -> None:
    """Measure, and write ``samples.json`` into the folder."""
    _prepare(run.folder)
    server = registry.Registry(registry.write_images(run.folder, which("busybox")))
    certs = run.folder / "certs.d" / server.address
    certs.mkdir(parents=True)
    (certs / "hosts.toml").write_text(
        f'[host."http://{server.address}"]\ncapabilities = ["pull", "resolve"]\n'
    )
    samples = Samples()
    sides = [
        _side(run, index, name, server.address, make)
        for index, (name, make) in enumerate((("ours", rivals.ours), ("theirs", rivals.containerd)))
    ]
    floor = Floor(
        folder=Path("/run/bench/floor"),
        rootfs=run.folder / "busybox-root",
        oci_runtime=run.oci_runtime,
        cgroup_parent=f"/{run.token}/floor",
        chain=chain_in(run.folder / "floor-cni", "10.91.0.0/16"),
    )
    try:
        measurement = Measurement(SHORT if run.short else FULL, sides, samples, _tell)
        asyncio.run(measurement.run(floor.once))
        if run.built_in:
            sides[0].rival.end()
            make = partial(rivals.ours, built_in=True)
            sides.append(_side(run, 2, "built-in", server.address, make))
            asyncio.run(_built_in(measurement, sides))
    except BaseException:
        for side in sides:
            _tell(f"{side.name} said: {side.rival.said()}")
        raise
    finally:
        for side in sides:
            side.rival.end()
        server.close()
    (run.folder / "samples.json").write_text(json.dumps(samples.of))


async def _built_in(measurement: Measurement, sides: list[Side]) -> None:
    theirs = sides[1]
    theirs.client = Client(theirs.rival.places.socket)  # the other belongs to a loop that has ended
    await measurement.built_in(sides[2])


def _side(
    run: Run, index: int, name: str, address: str, make: Callable[[Places, Group], Rival]
) -> Side:
    """Lay out one runtime's folders, network and cgroup."""
    places = Places(
        root=run.folder / name,
        run=Path("/run/bench") / name,
        certs=run.folder / "certs.d",
        bridge=f"bench{index}",
        subnet=f"10.{88 + index}.0.0/16",
        oci_runtime=run.oci_runtime,
        registry=address,
        containerd=run.containerd,
    )
    places.root.mkdir()
    places.run.mkdir(parents=True)
    if name == "built-in":
        places.cni.mkdir()  # and nothing in it
    else:
        places.write_network()
    group = groups.group(run.token, name)
    group.make()
    return Side(make(places, group), Client(places.socket))


def _tell(text: str) -> None:
    print(f"bench: {text}", file=sys.stderr, flush=True)


def _prepare(folder: Path) -> None:
    """Volatile folders on a tmpfs, as on a node; what plugins keep is the run's own."""
    cache = folder / "cni-cache"
    cache.mkdir()
    for argv in (
        ("mount", "-t", "tmpfs", "-o", "mode=755", "tmpfs", "/run"),
        ("mount", "--bind", str(cache), "/var/lib/cni"),
        ("ip", "link", "set", "lo", "up"),
    ):
        subprocess.run(argv, check=True)
    Path("/run/lock").mkdir(exist_ok=True)
    os.environ["TMPDIR"] = str(folder)


if __name__ == "__main__":
    _folder, _token, _runtime, _containerd, _mode, *_more = sys.argv[1:]
    main(
        Run(
            folder=Path(_folder),
            token=_token,
            oci_runtime=Path(_runtime),
            containerd=Path(_containerd),
            short=_mode == "short",
            built_in="built-in" in _more,
        )
    )
