"""``noderuntime serve`` as a systemd service of the guest, an image to run, and CRI's calls."""

from __future__ import annotations

import asyncio
import json
import shutil
import subprocess
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from e2e.cluster.image import oci
from e2e.cluster.image.layer import write_layer
from e2e.performance.cri import Client
from e2e.performance.registry import Registry
from noderuntime.cri.runtime_v1 import api_pb2 as pb

REPOSITORY: Final = Path(__file__).resolve().parents[3]
IMAGE: Final = "e2e-test-images/busybox"  # as the conformance suite calls it
TAG: Final = "1.29-2"
MIRRORED: Final = "registry.k8s.io"
UNIT: Final = "noderuntime.service"
UNITS: Final = Path("/run/systemd/system")
HANDLERS: Final = {"crun": "/usr/bin/crun", "runc": "/usr/sbin/runc"}
ROOT: Final = Path("/sys/fs/cgroup")
DEADLINE_S: Final = 20.0
_BRIDGE: Final = "nr-guest"
_CONFIG: Final = """\
socket = "/run/noderuntime/noderuntime.sock"
state_dir = "{folder}/state"
run_dir = "/run/noderuntime"
revision = "{folder}/current"
default_handler = "crun"
[handlers.crun]
oci_runtime = "/usr/bin/crun"
[handlers.runc]
oci_runtime = "/usr/sbin/runc"
[cni]
conf_dir = "{folder}/cni"
bin_dirs = ["/usr/lib/cni"]
[images]
hosts_dir = "{folder}/certs.d"
"""


@dataclass(frozen=True, slots=True)
class Pod:
    """A Pod with one container that runs."""

    sandbox: str
    container: str
    slice: Path  # its folder below the root of v2

    @property
    def scope(self) -> Path:
        """The container's cgroup as kubelet and cAdvisor look for it."""
        return self.slice / f"cri-noderuntime-{self.container}.scope"

    @property
    def limited(self) -> Path:
        """Where its limits are: crun makes one more cgroup, which systemd never writes to."""
        below = self.scope / "container"
        return below if below.is_dir() else self.scope


class Cri(Client):
    """The calls of the kubelet that the tests need."""

    def __init__(self, image: str) -> None:
        super().__init__(Path("/run/noderuntime/noderuntime.sock"))
        self.image: Final = image
        self._made = 0
        self._slices: list[str] = []

    async def uses_systemd(self) -> bool:
        answer = await self._call(
            "RuntimeConfig", pb.RuntimeConfigRequest(), pb.RuntimeConfigResponse
        )
        return answer.linux.cgroup_driver == pb.SYSTEMD

    async def run(
        self, handler: str, script: str, resources: pb.LinuxContainerResources | None = None
    ) -> Pod:
        """Run a Pod with a shell script in it, as the kubelet's systemd driver names its cgroup."""
        self._made += 1
        uid = f"uid{self._made}"
        qos = "kubepods.slice/kubepods-burstable.slice"
        name = f"kubepods-burstable-pod{uid}.slice"
        below = f"{qos}/{name}"
        systemctl("start", name)  # the kubelet's: it lives as long as the Pod
        self._slices.append(name)
        namespaces = pb.NamespaceOption(network=pb.POD, pid=pb.CONTAINER, ipc=pb.POD)
        sandbox_config = pb.PodSandboxConfig(
            metadata=pb.PodSandboxMetadata(name=uid, uid=uid, namespace="guest"),
            hostname=uid,
            log_directory=f"/var/log/pods/{uid}",
            linux=pb.LinuxPodSandboxConfig(
                cgroup_parent=f"/{below}",
                security_context=pb.LinuxSandboxSecurityContext(namespace_options=namespaces),
            ),
        )
        ran = await self._call(
            "RunPodSandbox",
            pb.RunPodSandboxRequest(config=sandbox_config, runtime_handler=handler),
            pb.RunPodSandboxResponse,
        )
        config = pb.ContainerConfig(
            metadata=pb.ContainerMetadata(name="app"),
            image=pb.ImageSpec(image=self.image),
            command=["/bin/busybox", "sh", "-c", script],
            log_path="app_0.log",
            linux=pb.LinuxContainerConfig(
                resources=resources,
                security_context=pb.LinuxContainerSecurityContext(namespace_options=namespaces),
            ),
        )
        made = await self._call(
            "CreateContainer",
            pb.CreateContainerRequest(
                pod_sandbox_id=ran.pod_sandbox_id, config=config, sandbox_config=sandbox_config
            ),
            pb.CreateContainerResponse,
        )
        await self._call(
            "StartContainer",
            pb.StartContainerRequest(container_id=made.container_id),
            pb.StartContainerResponse,
        )
        return Pod(ran.pod_sandbox_id, made.container_id, ROOT / below)

    async def update(self, pod: Pod, resources: pb.LinuxContainerResources) -> None:
        await self._call(
            "UpdateContainerResources",
            pb.UpdateContainerResourcesRequest(container_id=pod.container, linux=resources),
            pb.UpdateContainerResourcesResponse,
        )

    async def status(self, pod: Pod) -> pb.ContainerStatus:
        answer = await self._call(
            "ContainerStatus",
            pb.ContainerStatusRequest(container_id=pod.container),
            pb.ContainerStatusResponse,
        )
        return answer.status

    async def exited(self, pod: Pod) -> pb.ContainerStatus:
        """The container's status once it has ended."""
        async with asyncio.timeout(DEADLINE_S):
            while (status := await self.status(pod)).state != pb.CONTAINER_EXITED:  # noqa: ASYNC110
                await asyncio.sleep(0.05)
        return status

    async def container_stats(self, pod: Pod) -> pb.ContainerStats:
        answer = await self._call(
            "ContainerStats",
            pb.ContainerStatsRequest(container_id=pod.container),
            pb.ContainerStatsResponse,
        )
        return answer.stats

    async def pod_stats(self, pod: Pod) -> pb.PodSandboxStats:
        answer = await self._call(
            "PodSandboxStats",
            pb.PodSandboxStatsRequest(pod_sandbox_id=pod.sandbox),
            pb.PodSandboxStatsResponse,
        )
        return answer.stats

    async def metrics(self, pod: Pod, name: str) -> list[int]:
        """The values of a container's metric, one a device."""
        answer = await self._call(
            "ListPodSandboxMetrics",
            pb.ListPodSandboxMetricsRequest(),
            pb.ListPodSandboxMetricsResponse,
        )
        return [
            metric.value.value
            for of_pod in answer.pod_metrics
            for container in of_pod.container_metrics
            if container.container_id == pod.container
            for metric in container.metrics
            if metric.name == name
        ]

    async def exec(self, pod: Pod, script: str) -> str:
        """What a shell in the container said; it must end with 0."""
        answer = await self._call(
            "ExecSync",
            pb.ExecSyncRequest(
                container_id=pod.container, cmd=["/bin/busybox", "sh", "-c", script], timeout=10
            ),
            pb.ExecSyncResponse,
        )
        assert answer.exit_code == 0, (answer.stdout, answer.stderr)
        return answer.stdout.decode()

    async def remove_all(self) -> None:
        """Stop and remove every Pod."""
        answer = await self._call(
            "ListPodSandbox", pb.ListPodSandboxRequest(), pb.ListPodSandboxResponse
        )
        for item in answer.items:
            await self._call(
                "StopPodSandbox",
                pb.StopPodSandboxRequest(pod_sandbox_id=item.id),
                pb.StopPodSandboxResponse,
            )
            await self._call(
                "RemovePodSandbox",
                pb.RemovePodSandboxRequest(pod_sandbox_id=item.id),
                pb.RemovePodSandboxResponse,
            )
        if self._slices:
            systemctl("stop", *self._slices)
            self._slices.clear()


@contextmanager
def served() -> Iterator[str]:
    """The runtime as its unit of ``deploy/`` runs it; gives the name of an image to pull."""
    folder = Path(tempfile.mkdtemp(prefix="nr-guest-", dir="/var/lib"))
    folder.chmod(0o711)
    registry = Registry({IMAGE: write_image(folder)})
    try:
        _write_config(folder, registry.address)
        systemctl("daemon-reload")
        systemctl("start", UNIT)
        yield f"{MIRRORED}/{IMAGE}:{TAG}"
        systemctl("stop", UNIT)
    except BaseException as error:
        error.add_note(run("journalctl", "--unit", UNIT, "--no-pager", "--lines=60"))
        raise
    finally:
        registry.close()
        (UNITS / UNIT).unlink(missing_ok=True)
        systemctl("daemon-reload")
        subprocess.run(["ip", "link", "delete", _BRIDGE], check=False, capture_output=True)
        subprocess.run(["umount", "--recursive", "/run/noderuntime"], check=False)
        shutil.rmtree("/run/noderuntime", ignore_errors=True)
        shutil.rmtree(folder)


def write_image(folder: Path) -> Path:
    """An OCI layout with busybox and its applets."""
    root = folder / "busybox"
    (root / "bin").mkdir(parents=True)
    for name in ("etc", "proc", "sys", "dev", "tmp"):
        (root / name).mkdir()
    shutil.copy("/usr/bin/busybox", root / "bin")
    for applet in run("/usr/bin/busybox", "--list").split():
        if applet != "busybox":
            (root / "bin" / applet).symlink_to("busybox")
    layer = write_layer(root, folder / "busybox.tar.gz")
    config = oci.Config(command=("/bin/sh",), environment=("PATH=/bin",))
    layout = folder / "layout"
    oci.write_layout(layout, TAG, [layer], config)
    return layout


def _write_config(folder: Path, registry: str) -> None:
    place = folder / "certs.d" / MIRRORED
    place.mkdir(parents=True)
    (place / "hosts.toml").write_text(
        f'[host."http://{registry}"]\ncapabilities = ["pull", "resolve"]\n'
    )
    ranges = {"ranges": [[{"subnet": "10.246.0.0/24"}]], "dataDir": str(folder / "leases")}
    bridge = {"type": "bridge", "bridge": _BRIDGE, "isGateway": True}
    plugins = [bridge | {"ipam": {"type": "host-local"} | ranges}]
    (folder / "cni").mkdir()
    (folder / "cni/10-guest.conflist").write_text(
        json.dumps({"cniVersion": "1.0.0", "name": "guest", "plugins": plugins})
    )
    config = folder / "config.toml"
    config.write_text(_CONFIG.format(folder=folder))
    unit = (REPOSITORY / "deploy" / UNIT).read_text()
    command = f"/usr/bin/python3 -m noderuntime serve --config {config}"
    lines = [
        f"ExecStart={command}" if line.startswith("ExecStart=") else line
        for line in unit.splitlines()
    ]
    lines.insert(lines.index("[Service]") + 1, f"Environment=PYTHONPATH={REPOSITORY}")
    (UNITS / UNIT).write_text("\n".join([*lines, ""]))


def systemctl(*words: str) -> str:
    """Raises CalledProcessError."""
    return run("systemctl", *words)


def run(*argv: str) -> str:
    """What a program says; raises CalledProcessError."""
    done = subprocess.run(argv, check=True, text=True, stdout=subprocess.PIPE, timeout=60)
    return done.stdout.strip()


def wait_for(condition: Callable[[], bool]) -> None:
    """Wait for what has no event. Raises AssertionError."""
    deadline = time.monotonic() + DEADLINE_S
    while not condition():
        assert time.monotonic() < deadline, "it did not come"
        time.sleep(0.05)


def read(folder: Path, files: Mapping[str, str]) -> dict[str, str]:
    """The files' first words, for those asked for."""
    return {name: (folder / name).read_text().split()[0] for name in files}
