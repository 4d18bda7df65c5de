"""A container whose filter asks a recorder, run by the OCI runtime itself, without an engine."""

from __future__ import annotations

import asyncio
import json
import shutil
import subprocess
from dataclasses import dataclass, field
from pathlib import Path
from typing import IO, Any
from uuid import uuid4

from noderuntime.cli.recording.seen import Seen
from noderuntime.engine.disk import Disk
from noderuntime.engine.filters import Filters
from noderuntime.host.notifications import Names
from noderuntime.host.seccomp import LibSeccomp
from noderuntime.policy import spec
from tests.root.test_policy_spec import granted

CAPABILITIES = ("CHOWN", "KILL", "MKNOD", "NET_RAW", "SETGID", "SETUID")
PROFILE: dict[str, object] = {
    "noNewPrivileges": "Optional",
    "capabilities": {"default": list(CAPABILITIES)},
}
CGROUP = "nr-recording"


@dataclass(slots=True)
class Box:
    """A root with busybox, and what runs in it."""

    folder: Path
    ids: list[str] = field(default_factory=list[str])

    @property
    def socket(self) -> Path:
        return self.folder / "recorder.sock"

    def prepare(self) -> None:
        for name in ("bin", "etc", "tmp", "proc", "dev", "sys"):
            (self.folder / "rootfs" / name).mkdir(parents=True)
        shutil.copy(shutil.which("busybox") or "", self.folder / "rootfs/bin/busybox")

    def start(self, script: str, *, uid: int = 0) -> tuple[str, subprocess.Popen[bytes]]:
        """Run a shell script as a container; return its ID and the OCI runtime's process."""
        container_id = f"nr-recording-{uuid4().hex[:12]}"
        bundle = self.folder / container_id
        bundle.mkdir()
        layout = spec.SpecLayout(
            rootfs=str(self.folder / "rootfs"), cgroups_path=f"/{CGROUP}/{container_id}"
        )
        built: Any = spec.build(
            granted(PROFILE, "/bin/busybox", "sh", "-c", script, uid=uid), layout
        )
        built["linux"]["namespaces"] += [{"type": kind} for kind in ("network", "ipc", "uts")]
        (bundle / "config.json").write_text(json.dumps(asyncio.run(self._seal(built))))
        self.ids.append(container_id)
        argv = ("run", "--bundle", str(bundle), container_id)
        with (bundle / "output").open("wb") as output:
            return container_id, self._popen(*argv, output=output)

    def run(self, script: str, *, uid: int = 0) -> tuple[str, int, str]:
        """Run it to its end; return its ID, its exit code and what it printed."""
        container_id, process = self.start(script, uid=uid)
        code = process.wait(timeout=60)
        return container_id, code, (self.folder / container_id / "output").read_text()

    def exec(self, container_id: str, script: str) -> int:
        """Run a script in a container."""
        bundle = self.folder / container_id
        process: Any = json.loads((bundle / "config.json").read_text())["process"]
        path = bundle / "process.json"
        argv = ["/bin/busybox", "sh", "-c", script]
        path.write_text(json.dumps(spec.exec_process(process, argv, tty=False)))
        return self.call("exec", "--process", str(path), container_id)

    def call(self, *arguments: str) -> int:
        """Call the OCI runtime to its end."""
        return self._popen(*arguments).wait(timeout=60)

    def clean(self) -> None:
        for container_id in self.ids:
            self.call("delete", "--force", container_id)
        root = Path("/sys/fs/cgroup")
        for cgroup in (root / CGROUP, *root.glob(f"*/{CGROUP}")):
            if cgroup.exists():
                cgroup.rmdir()

    async def _seal(self, built: dict[str, object]) -> dict[str, object]:
        disk = Disk()
        try:
            runtime = Path(shutil.which("crun") or "")
            return dict(await Filters(LibSeccomp(), self.socket).seal(built, runtime, disk))
        finally:
            disk.close()

    def _popen(self, *arguments: str, output: IO[bytes] | None = None) -> subprocess.Popen[bytes]:
        return subprocess.Popen(
            ["crun", "--root", str(self.folder / "state"), *arguments],
            stdin=subprocess.DEVNULL,
            stdout=subprocess.DEVNULL if output is None else output,
            stderr=subprocess.STDOUT,
        )


def names(seen: Seen | None, *, of_runtime: bool = False) -> set[str]:
    """Return the names of the calls that were seen."""
    assert seen is not None
    table = Names()
    calls = seen.of_runtime if of_runtime else seen.calls
    return {table.name(call) or "" for call in list(calls)}  # the recorder goes on meanwhile
