"""The run itself, in namespaces of its own: network, mounts and processes, which all end with it.

So no link, no address, no rule, no mount and no process of a run can be left on the machine.
"""

from __future__ import annotations

import asyncio
import json
import os
import subprocess
import sys
from pathlib import Path

from e2e.performance import groups, registry, rivals
from e2e.performance.cri import Client
from e2e.performance.figures import Samples
from e2e.performance.floor import Floor
from e2e.performance.measure import FULL, SHORT, Measurement, Side
from e2e.performance.page import which
from e2e.performance.rivals import Places


def main(folder: Path, token: str, oci_runtime: Path, containerd: Path, *, short: bool) -> None:
    """Measure, and write ``samples.json`` into the folder."""
    _prepare(folder)
    layouts = registry.write_images(folder, which("busybox"))
    server = registry.Registry(layouts)
    certs = folder / "certs.d"
    (certs / server.address).mkdir(parents=True)
    (certs / server.address / "hosts.toml").write_text(
        f'[host."http://{server.address}"]\ncapabilities = ["pull", "resolve"]\n'
    )
    samples = Samples()
    sides: list[Side] = []
    for index, (name, make) in enumerate((("ours", rivals.ours), ("theirs", rivals.containerd))):
        places = Places(
            root=folder / name,
            run=Path("/run/bench") / name,
            certs=certs,
            bridge=f"bench{index}",
            subnet=f"10.{88 + index}.0.0/16",
            oci_runtime=oci_runtime,
            registry=server.address,
            containerd=containerd,
        )
        places.root.mkdir()
        places.run.mkdir(parents=True)
        places.write_network()
        group = groups.group(token, name)
        group.make()
        rival = make(places, group)
        sides.append(Side(rival, Client(places.socket)))
    floor = Floor(
        folder=Path("/run/bench/floor"),
        rootfs=folder / "busybox-root",
        oci_runtime=oci_runtime,
        cgroup_parent=f"/{token}/floor",
    )
    try:
        measurement = Measurement(SHORT if short else FULL, sides, samples, _tell)
        asyncio.run(measurement.run(floor.once))
    except BaseException:
        for side in sides:
            _tell(f"{side.name} said: {side.rival.said()}")
        raise
    finally:
        for side in sides:
            side.rival.end()
        server.close()
    (folder / "samples.json").write_text(json.dumps(samples.of))


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
    _folder, _token, _runtime, _containerd, _mode = sys.argv[1:]
    main(Path(_folder), _token, Path(_runtime), Path(_containerd), short=_mode == "short")
