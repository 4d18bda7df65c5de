"""A node of its own in a temporary folder, with the real parts, and a census of what it leaves."""

from __future__ import annotations

import hashlib
import io
import json
import os
import re
import shutil
import signal
import subprocess
import tarfile
import time
from collections.abc import Mapping
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path

from noderuntime.api.config import CniConfig, Config, HandlerConfig, ImagesConfig
from noderuntime.cli.parts import parts_of
from noderuntime.engine.engine import Engine
from noderuntime.engine.node import Faults, Parts
from noderuntime.host.cgroups import KernelCgroups, hierarchies
from noderuntime.host.ports import CgroupDriver
from noderuntime.images.store import ImageStore
from noderuntime.policy.model import (
    ContainerConfig,
    ContainerSecurity,
    IdMapping,
    Mount,
    NamespaceMode,
    Namespaces,
    PodIdentity,
    SandboxConfig,
    UserNamespace,
)

IMAGE = "registry.example.com/busybox:1"
RUNC = Path(shutil.which("runc") or "/usr/sbin/runc")
BUSYBOX = Path("/usr/bin/busybox")
SETTLE_S = 30.0
# Within an image or a container: that is the container's, mount points made at its start too.
SHARED_PID = Namespaces(pid=NamespaceMode.POD)
MAPPING = IdMapping(container_id=0, host_id=1_000_000, length=65536)
USERS = UserNamespace(uids=MAPPING, gids=MAPPING)
OWN_USERS = Namespaces(user=USERS)
# Of the node, as its bridge is, and what was decided.
STAYS = re.compile(r"/(run/programs|state/decisions)(/|$)")
INSIDE = re.compile(r"^state/images/|/rootfs/|/volumes/|/mapped/|^state/snapshots/[^/]+/[^/]+/")


@dataclass(frozen=True, slots=True, kw_only=True)
class RealNode:
    """Where the node is. ``token`` is in the name of everything that is not below ``root``."""

    root: Path
    token: str
    namespaces: Namespaces = field(default_factory=Namespaces)

    @property
    def bridge(self) -> str:
        return f"nre{self.token}"

    @property
    def bridge_subnet(self) -> str:
        return f"10.{100 + int(self.token[:2], 16) % 100}.{int(self.token[2:4], 16)}.0/24"

    @property
    def cgroup_parent(self) -> str:
        if KernelCgroups().driver() is CgroupDriver.SYSTEMD:
            return f"nrengine{self.token}.slice"
        return f"/nr-engine-{self.token}"

    @property
    def config(self) -> Config:
        return Config(
            socket=self.root / "run" / "noderuntime.sock",
            state_dir=self.root / "state",
            run_dir=self.root / "run",
            revision=self.root / "current",
            cni=CniConfig(
                conf_dir=self.root / "cni",
                bin_dirs=(Path("/usr/lib/cni"),),
                bridge=self.bridge,  # used where there is no configuration
                bridge_subnets=(self.bridge_subnet,),
            ),
            handlers={"crun": HandlerConfig(), "runc": HandlerConfig(oci_runtime=RUNC)},
            images=ImagesConfig(hosts_dir=self.root / "certs.d"),
        )

    def parts(self) -> Parts:
        """Return real parts."""
        config = self.config
        # runc makes its root at the first start, and leaves it.
        (config.run_dir / "oci" / RUNC.name).mkdir(parents=True, exist_ok=True)
        return parts_of(config)

    def engine(self, faults: Faults | None = None) -> Engine:
        """Return an engine on real parts; call it inside the event loop."""
        return Engine(self.parts(), faults=faults)

    def sandbox(self, attempt: int = 0) -> SandboxConfig:
        """Return a Pod with a network of its own."""
        return SandboxConfig(
            pod=PodIdentity(name="web", namespace="shop", uid=self.token, attempt=attempt),
            hostname="web",
            log_directory=str(self.root / "logs"),
            cgroup_parent=self.cgroup_parent,
            namespaces=self.namespaces,
        )

    def container(self, attempt: int = 0, script: str = "") -> ContainerConfig:
        """Return a container that ends at once on SIGTERM; its command line has the token."""
        loop = "trap 'exit 0' TERM; while :; do sleep 0.05; done"
        return ContainerConfig(
            name="app",
            attempt=attempt,
            image=IMAGE,
            command=("/bin/busybox", "sh", "-c", script or loop, f"nr-engine-{self.token}"),
            log_path=f"app_{attempt}.log",
            mounts=(Mount(container_path="/image", image=IMAGE, readonly=True),),
            security=ContainerSecurity(namespaces=self.namespaces),
        )

    def prepare(self, subnet: str) -> None:
        """Write the network's configuration and the image; nothing is made in the kernel."""
        conf_dir = self.root / "cni"
        conf_dir.mkdir(parents=True)
        bridge = {
            "type": "bridge",
            "bridge": self.bridge,
            "isGateway": True,
            "ipam": {
                "type": "host-local",
                "ranges": [[{"subnet": subnet}]],
                "dataDir": str(self.root / "leases"),
            },
        }
        document = {"cniVersion": "1.0.0", "name": self.token, "plugins": [bridge]}
        (conf_dir / "10-test.conflist").write_text(json.dumps(document))
        write_layout(self.root / "layout")

    async def load_image(self) -> None:
        """Put the image into the store, as no registry is needed for this."""
        store = ImageStore(self.config.state_dir, self.config.images.hosts_dir)
        await store.recover()
        await store.load(self.root / "layout", IMAGE)

    def clean(self) -> None:
        """Remove what stays as long as the node is: bridge, cgroup parent, the private mount.

        And what a test that failed has left running: nobody else knows it.
        """
        self._kill_processes()
        subprocess.run(("ip", "link", "delete", self.bridge), check=False, capture_output=True)
        for directory in self.cgroups():
            with suppress(FileNotFoundError):  # systemd takes an empty slice away by itself
                Path(directory).rmdir()
        subprocess.run(("umount", "-R", self.config.run_dir), check=False, capture_output=True)

    def cgroups(self) -> list[str]:
        """Return our cgroups in every hierarchy, deepest first."""
        tops = {mount / self.cgroup_parent.lstrip("/") for mount in hierarchies().values()}
        below = [p for top in tops if top.is_dir() for p in (top, *top.rglob("*")) if p.is_dir()]
        return sorted(map(str, below), key=len, reverse=True)

    def census(self) -> dict[str, list[str]]:
        """Return everything of this node that is there now."""
        mine = str(self.root)
        mounts = [line.split()[4] for line in Path("/proc/self/mountinfo").read_text().splitlines()]
        ignored = ("boot_id", "last_reserved_ip.0", "lock")
        folders = ("run", "state", "leases")
        return {
            "mounts": sorted(m for m in mounts if m.startswith(mine) and not STAYS.search(m)),
            # Others may make links of their own meanwhile: only those on our bridge.
            "links": sorted(p.name for p in Path("/sys/class/net", self.bridge).glob("brif/*")),
            "cgroups": [path for path in self.cgroups() if not path.endswith(self.cgroup_parent)],
            "processes": self.processes(),
            "files": sorted(
                name
                for folder in folders
                for path in (self.root / folder).rglob("*")
                if path.name not in ignored
                and not INSIDE.search(name := str(path.relative_to(self.root)))
                and not STAYS.search(f"/{name}")
            ),
        }

    def _kill_processes(self) -> None:
        """End all, until none is left: a monitor, or a runtime, may be starting more."""
        until = time.monotonic() + SETTLE_S
        while (found := self._processes()) and time.monotonic() < until:
            for pid in found:
                with suppress(ProcessLookupError):
                    os.kill(pid, signal.SIGKILL)
            time.sleep(0.02)

    def processes(self) -> list[str]:
        """Return the command lines that name the node's folder or token, ours left out."""
        return sorted(self._processes().values())

    def _processes(self) -> dict[int, str]:
        found: dict[int, str] = {}
        for entry in Path("/proc").iterdir():
            if not entry.name.isdigit() or entry.name == str(os.getpid()):
                continue
            try:
                line = (entry / "cmdline").read_bytes().replace(b"\0", b" ").decode()
            except OSError:
                continue
            if str(self.root) in line or f"nr-engine-{self.token}" in line:
                found[int(entry.name)] = line.strip()
        return found

    def leftovers(self, wanted: dict[str, list[str]]) -> list[str]:
        """Return what differs from ``wanted`` still after a while; the kernel takes its time."""
        until = time.monotonic() + SETTLE_S
        while (found := self.census()) != wanted and time.monotonic() < until:
            time.sleep(0.02)
        return difference(found, wanted)


def difference(found: dict[str, list[str]], wanted: dict[str, list[str]]) -> list[str]:
    """Return what is there and should not be (+), or the other way round (-)."""
    lines: list[str] = []
    for kind, names in wanted.items():
        lines += [f"+ {kind} {name}" for name in found[kind] if name not in names]
        lines += [f"- {kind} {name}" for name in names if name not in found[kind]]
    return lines


def write_layout(folder: Path, *more: bytes, settings: Mapping[str, object] | None = None) -> None:
    """Write an OCI image layout: busybox, and ``more`` layers on it. image-spec, image-layout.md.

    ``settings`` are of the image's config, beside those that there are.
    """
    blobs = folder / "blobs" / "sha256"
    blobs.mkdir(parents=True)

    def blob(data: bytes, media_type: str) -> dict[str, object]:
        digest = hashlib.sha256(data).hexdigest()
        (blobs / digest).write_bytes(data)
        return {"mediaType": media_type, "digest": f"sha256:{digest}", "size": len(data)}

    layers = (_layer(), *more)
    diff_ids = [f"sha256:{hashlib.sha256(layer).hexdigest()}" for layer in layers]
    config = {
        "architecture": "amd64",
        "os": "linux",
        "config": {"Cmd": ["/bin/busybox", "sh"], "StopSignal": "SIGTERM", **(settings or {})},
        "rootfs": {"type": "layers", "diff_ids": diff_ids},
    }
    kind = "application/vnd.oci.image"
    manifest = {
        "schemaVersion": 2,
        "mediaType": f"{kind}.manifest.v1+json",
        "config": blob(json.dumps(config).encode(), f"{kind}.config.v1+json"),
        "layers": [blob(layer, f"{kind}.layer.v1.tar") for layer in layers],
    }
    top = blob(json.dumps(manifest).encode(), f"{kind}.manifest.v1+json")
    (folder / "index.json").write_text(json.dumps({"schemaVersion": 2, "manifests": [top]}))
    (folder / "oci-layout").write_text('{"imageLayoutVersion": "1.0.0"}')


def _layer() -> bytes:
    data = io.BytesIO()
    with tarfile.open(fileobj=data, mode="w") as tar:
        for name in ("bin", "etc", "proc", "sys", "dev", "tmp"):
            entry = tarfile.TarInfo(name)
            entry.type, entry.mode = tarfile.DIRTYPE, 0o755
            tar.addfile(entry)
        program = tarfile.TarInfo("bin/busybox")
        program.mode, program.size = 0o755, BUSYBOX.stat().st_size
        with BUSYBOX.open("rb") as file:
            tar.addfile(program, file)
        for applet in ("sh", "sleep", "cat", "hostname", "id"):
            link = tarfile.TarInfo(f"bin/{applet}")
            link.type, link.linkname = tarfile.SYMTYPE, "busybox"
            tar.addfile(link)
    return data.getvalue()
