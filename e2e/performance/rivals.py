"""The two runtimes: how each is configured and started, on the same OCI runtime and CNI plugins.

Both keep what must last on the disk below ``root`` and the rest on a tmpfs, as on a real node.
"""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
from dataclasses import dataclass, field
from pathlib import Path
from typing import Final

from e2e.cluster import unit
from e2e.performance.figures import OURS, THEIRS
from e2e.performance.groups import Group
from e2e.performance.registry import BUSYBOX, PAUSE, TAG

REPOSITORY: Final = Path(__file__).resolve().parents[2]
PLUGINS: Final = (Path("/usr/lib/cni"), Path("/opt/cni/bin"))
END_S: Final = 30.0


@dataclass(frozen=True, slots=True, kw_only=True)
class Places:
    """What one runtime has of its own. ``root`` is on a disk, ``run`` on a tmpfs."""

    root: Path
    run: Path
    certs: Path
    bridge: str
    subnet: str
    oci_runtime: Path
    registry: str
    containerd: Path  # the folder with its two programs

    @property
    def socket(self) -> Path:
        return self.run / "cri.sock"

    @property
    def cni(self) -> Path:
        return self.root / "cni"

    @property
    def image(self) -> str:
        return f"{self.registry}/{BUSYBOX}:{TAG}"

    def write_network(self) -> None:
        """A bridge with host-local addresses and port mappings, as clusters have it."""
        self.conflist(self.cni, self.bridge, self.subnet, self.root / "leases")

    @staticmethod
    def conflist(folder: Path, name: str, subnet: str, leases: Path) -> Path:
        """Write the configuration of such a network into ``folder``; ``name`` is its bridge's too."""
        folder.mkdir(parents=True)
        bridge = {
            "type": "bridge",
            "bridge": name,
            "isGateway": True,
            "ipMasq": True,
            "hairpinMode": True,
            "ipam": {
                "type": "host-local",
                "ranges": [[{"subnet": subnet}]],
                "routes": [{"dst": "0.0.0.0/0"}],
                "dataDir": str(leases),
            },
        }
        portmap = {"type": "portmap", "capabilities": {"portMappings": True}}
        document = {"cniVersion": "1.0.0", "name": name, "plugins": [bridge, portmap]}
        written = folder / "10-bench.conflist"
        written.write_text(json.dumps(document))
        return written


@dataclass(slots=True)
class Rival:
    """A runtime that can be started, killed and started again."""

    name: str
    places: Places
    argv: tuple[str, ...]
    environment: dict[str, str]
    group: Group
    process: subprocess.Popen[bytes] | None = field(default=None)

    @property
    def log(self) -> Path:
        return self.places.root / "log"

    def start(self) -> None:
        join = 'echo 0 > "$0"; exec "$@"'  # the cgroup first, then the runtime
        with self.log.open("ab") as log:
            self.process = subprocess.Popen(
                ("/bin/sh", "-c", join, str(self.group.daemon / "cgroup.procs"), *self.argv),
                stdout=log,
                stderr=log,
                env=os.environ | self.environment,
                cwd=self.places.root,
                start_new_session=True,
            )

    def kill(self) -> None:
        """The hard way, as a crash is: what it left is there for the next start."""
        if self.process is not None:
            self.process.send_signal(signal.SIGKILL)
            self.process.wait(END_S)
            self.process = None

    def end(self) -> None:
        if self.process is not None:
            self.process.terminate()
            try:
                self.process.wait(END_S)
            except subprocess.TimeoutExpired:
                self.kill()
            self.process = None

    def said(self) -> str:
        return "\n".join(self.log.read_text(errors="replace").splitlines()[-15:])


def ours(places: Places, group: Group, *, built_in: bool = False) -> Rival:
    """``built_in``: with no CNI configuration, on the bridge network that is our own."""
    network = f'bridge = "{places.bridge}"\nbridge_subnets = ["{places.subnet}"]\n'
    name = places.oci_runtime.name
    config = places.root / "config.toml"
    config.write_text(
        f'socket = "{places.socket}"\n'
        f'state_dir = "{places.root / "state"}"\n'
        f'run_dir = "{places.run}"\n'
        f'revision = "{places.root / "current"}"\n'
        f'default_handler = "{name}"\n'
        f'[handlers.{name}]\noci_runtime = "{places.oci_runtime}"\n'
        f'[cni]\nconf_dir = "{places.cni}"\nbin_dirs = {_toml(PLUGINS)}\n'
        f"{network if built_in else ''}"
        f'[images]\nhosts_dir = "{places.certs}"\n'
        '[metrics]\naddress = "127.0.0.1:9475"\n'
    )
    argv = (sys.executable, "-m", "noderuntime", "serve", "--config", str(config))
    environment = {
        **unit.environment(),
        "PYTHONPATH": str(REPOSITORY),
        "PYTHONDONTWRITEBYTECODE": "",
    }
    return Rival(OURS, places, argv, environment, group)


def containerd(places: Places, group: Group) -> Rival:
    config = places.root / "config.toml"
    cri = "plugins.'io.containerd.cri.v1"
    config.write_text(
        f"version = 3\nroot = '{places.root / 'state'}'\nstate = '{places.run}'\n"
        f"[grpc]\naddress = '{places.socket}'\n"
        f"[{cri}.images']\nsnapshotter = 'overlayfs'\n"
        f"[{cri}.images'.pinned_images]\nsandbox = '{places.registry}/{PAUSE}:{TAG}'\n"
        f"[{cri}.images'.registry]\nconfig_path = '{places.certs}'\n"
        f"[{cri}.runtime']\nrestrict_oom_score_adj = true\nnetns_mounts_under_state_dir = true\n"
        "tolerate_missing_hugetlb_controller = true\n"
        f"[{cri}.runtime'.cni]\nbin_dirs = {_toml(PLUGINS)}\nconf_dir = '{places.cni}'\n"
        f"[{cri}.runtime'.containerd]\ndefault_runtime_name = 'oci'\n"
        f"[{cri}.runtime'.containerd.runtimes.oci]\n"
        "runtime_type = 'io.containerd.runc.v2'\n"
        f"[{cri}.runtime'.containerd.runtimes.oci.options]\n"
        f"BinaryName = '{places.oci_runtime}'\n"
    )
    path = f"{places.containerd}:{os.environ['PATH']}"
    argv = (str(places.containerd / "containerd"), "--config", str(config), "--log-level", "warn")
    return Rival(THEIRS, places, argv, {"PATH": path}, group)


def _toml(paths: tuple[Path, ...]) -> str:
    return "[" + ", ".join(f'"{path}"' for path in paths) + "]"
