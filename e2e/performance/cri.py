"""A CRI client for both sockets, with the messages that are generated for our own server."""

from __future__ import annotations

import asyncio
import socket
import time
from pathlib import Path
from typing import Any, Final, TypeVar

from google.protobuf.message import Message
from grpc import aio

from noderuntime.cri.runtime_v1 import api_pb2 as pb

Answer = TypeVar("Answer", bound=Message)
TIMEOUT_S: Final = 180.0
SECCOMP: Final = pb.SecurityProfile(profile_type=pb.SecurityProfile.RuntimeDefault)
_OPTIONS: Final = (
    ("grpc.max_receive_message_length", 64 << 20),
    ("grpc.use_local_subchannel_pool", 1),
    ("grpc.initial_reconnect_backoff_ms", 5),
    ("grpc.max_reconnect_backoff_ms", 20),
)


class Pod:
    """One Pod with one container; the IDs come with the start."""

    def __init__(self, number: int, cgroup_parent: str, image: str, *, seccomp: bool) -> None:
        self.sandbox = ""
        self.container = ""
        name = f"pod-{number}"
        network = pb.NamespaceOption(network=pb.POD, pid=pb.CONTAINER, ipc=pb.POD)
        profile = SECCOMP if seccomp else None
        self.sandbox_config = pb.PodSandboxConfig(
            metadata=pb.PodSandboxMetadata(name=name, uid=f"uid-{number}", namespace="bench"),
            hostname=name,
            log_directory=f"/run/pod-logs/{name}",
            dns_config=pb.DNSConfig(servers=["10.96.0.10"], searches=["cluster.local"]),
            linux=pb.LinuxPodSandboxConfig(
                cgroup_parent=cgroup_parent,
                security_context=pb.LinuxSandboxSecurityContext(
                    namespace_options=network, seccomp=profile
                ),
            ),
        )
        self.container_config = pb.ContainerConfig(
            metadata=pb.ContainerMetadata(name="app"),
            image=pb.ImageSpec(image=image),
            command=["/bin/sleep", "1000000"],
            log_path="app/0.log",
            linux=pb.LinuxContainerConfig(
                resources=pb.LinuxContainerResources(
                    cpu_shares=102, memory_limit_in_bytes=64 << 20, oom_score_adj=1000
                ),
                security_context=pb.LinuxContainerSecurityContext(
                    namespace_options=network, seccomp=profile
                ),
            ),
        )


class Client:
    """One connection to one runtime."""

    def __init__(self, path: Path) -> None:
        self._path = path
        self._channel: aio.Channel | None = None

    async def _call(
        self, name: str, request: Message, answer: type[Answer], timeout_s: float = TIMEOUT_S
    ) -> Answer:
        if self._channel is None:
            self._channel = aio.insecure_channel(f"unix://{self._path}", options=_OPTIONS)
        service = "ImageService" if "Image" in name else "RuntimeService"
        call: Any = self._channel.unary_unary(
            f"/runtime.v1.{service}/{name}",
            request_serializer=_bytes_of,
            response_deserializer=answer.FromString,
        )
        result: Answer = await call(request, timeout=timeout_s)
        return result

    async def close(self) -> None:
        if self._channel is not None:
            await self._channel.close()
            self._channel = None

    async def pull(self, image: str) -> None:
        await self._call(
            "PullImage", pb.PullImageRequest(image=pb.ImageSpec(image=image)), pb.PullImageResponse
        )

    async def start(self, pod: Pod) -> float:
        """Start it until it is RUNNING; returns milliseconds."""
        begun = time.perf_counter()
        ran = await self._call(
            "RunPodSandbox",
            pb.RunPodSandboxRequest(config=pod.sandbox_config),
            pb.RunPodSandboxResponse,
        )
        pod.sandbox = ran.pod_sandbox_id
        created = await self._call(
            "CreateContainer",
            pb.CreateContainerRequest(
                pod_sandbox_id=pod.sandbox,
                config=pod.container_config,
                sandbox_config=pod.sandbox_config,
            ),
            pb.CreateContainerResponse,
        )
        pod.container = created.container_id
        await self._call(
            "StartContainer",
            pb.StartContainerRequest(container_id=pod.container),
            pb.StartContainerResponse,
        )
        status = await self._call(
            "ContainerStatus",
            pb.ContainerStatusRequest(container_id=pod.container),
            pb.ContainerStatusResponse,
        )
        if status.status.state != pb.CONTAINER_RUNNING:
            raise RuntimeError(f"container {pod.container} is not running: {status.status.reason}")
        return (time.perf_counter() - begun) * 1000

    async def remove(self, pod: Pod) -> float:
        """Stop and remove it; returns milliseconds."""
        begun = time.perf_counter()
        await self._call(
            "StopPodSandbox",
            pb.StopPodSandboxRequest(pod_sandbox_id=pod.sandbox),
            pb.StopPodSandboxResponse,
        )
        await self._call(
            "RemovePodSandbox",
            pb.RemovePodSandboxRequest(pod_sandbox_id=pod.sandbox),
            pb.RemovePodSandboxResponse,
        )
        return (time.perf_counter() - begun) * 1000

    async def exec_true(self, container: str) -> None:
        answer = await self._call(
            "ExecSync",
            pb.ExecSyncRequest(container_id=container, cmd=["/bin/true"], timeout=10),
            pb.ExecSyncResponse,
        )
        if answer.exit_code != 0:
            raise RuntimeError(f"true ended with {answer.exit_code}: {answer.stderr!r}")

    async def stats(self) -> int:
        answer = await self._call(
            "ListContainerStats", pb.ListContainerStatsRequest(), pb.ListContainerStatsResponse
        )
        return len(answer.stats)

    async def sandboxes(self) -> int:
        answer = await self._call(
            "ListPodSandbox", pb.ListPodSandboxRequest(), pb.ListPodSandboxResponse
        )
        return sum(item.state == pb.SANDBOX_READY for item in answer.items)

    async def containers(self) -> int:
        answer = await self._call(
            "ListContainers", pb.ListContainersRequest(), pb.ListContainersResponse
        )
        return sum(item.state == pb.CONTAINER_RUNNING for item in answer.containers)

    async def images(self) -> int:
        answer = await self._call("ListImages", pb.ListImagesRequest(), pb.ListImagesResponse)
        return len(answer.images)

    async def is_ready(self) -> bool:
        answer = await self._call("Status", pb.StatusRequest(), pb.StatusResponse)
        wanted = ("RuntimeReady", "NetworkReady")  # containerd has others, which are only warnings
        return all(c.status for c in answer.status.conditions if c.type in wanted)

    async def wait_ready(self, timeout_s: float) -> None:
        """Wait for a server at the socket that says that it is ready."""
        async with asyncio.timeout(timeout_s):
            while not _listens(self._path):  # noqa: ASYNC110  # a socket file tells nobody
                await asyncio.sleep(0.002)
            while True:
                try:
                    if await self.is_ready():
                        return
                except aio.AioRpcError:
                    await self.close()
                await asyncio.sleep(0.005)


def _bytes_of(request: Message) -> bytes:
    return request.SerializeToString()


def _listens(path: Path) -> bool:
    with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as probe:
        try:
            probe.connect(str(path))
        except OSError:
            return False
        return True
