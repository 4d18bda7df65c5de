"""The calls by which a Pod is run over a CRI socket: what ``noderuntime run`` does in a kubelet's stead.

They take and give CRI's own messages; ``client.py`` has the two that need none. What the runtime
refuses is raised as the error that it was there, by its gRPC code.
Source: runtime.v1 of k8s.io/cri-api; kubelet ``pkg/kubelet/kuberuntime``.
"""

from __future__ import annotations

from collections.abc import AsyncGenerator
from typing import TYPE_CHECKING, Final, Self, TypeVar

import grpc
from grpc import aio

from noderuntime import errors
from noderuntime.cri.boundary import CODES
from noderuntime.cri.runtime_v1 import api_pb2 as pb

if TYPE_CHECKING:
    from pathlib import Path

    from google.protobuf.message import Message

Answer = TypeVar("Answer", bound="Message")
CALL_S: Final = 120.0  # as the kubelet waits
_ERRORS: Final = {
    code: kind for kind, code in reversed(CODES.items()) if kind is not errors.ConfigError
}


class Calls:
    """A connection. Every call raises the NodeRuntimeError that the runtime answered with."""

    def __init__(self, socket: Path) -> None:
        """Connect to ``socket`` with the context; must be made in the event loop."""
        self._channel = aio.insecure_channel(f"unix://{socket}")

    async def __aenter__(self) -> Self:
        """Connect."""
        return self

    async def __aexit__(self, *_: object) -> None:
        """Close."""
        await self._channel.close()

    async def run_sandbox(self, config: pb.PodSandboxConfig, handler: str) -> str:
        """RunPodSandbox; returns the ID."""
        request = pb.RunPodSandboxRequest(config=config, runtime_handler=handler)
        return (await self._call(request, pb.RunPodSandboxResponse)).pod_sandbox_id

    async def sandbox_status(self, sandbox_id: str) -> pb.PodSandboxStatus:
        """PodSandboxStatus."""
        request = pb.PodSandboxStatusRequest(pod_sandbox_id=sandbox_id)
        return (await self._call(request, pb.PodSandboxStatusResponse)).status

    async def stop_sandbox(self, sandbox_id: str) -> None:
        """StopPodSandbox."""
        request = pb.StopPodSandboxRequest(pod_sandbox_id=sandbox_id)
        await self._call(request, pb.StopPodSandboxResponse)

    async def remove_sandbox(self, sandbox_id: str) -> None:
        """RemovePodSandbox."""
        request = pb.RemovePodSandboxRequest(pod_sandbox_id=sandbox_id)
        await self._call(request, pb.RemovePodSandboxResponse)

    async def create_container(
        self, sandbox_id: str, config: pb.ContainerConfig, sandbox: pb.PodSandboxConfig
    ) -> str:
        """CreateContainer; returns the ID."""
        request = pb.CreateContainerRequest(
            pod_sandbox_id=sandbox_id, config=config, sandbox_config=sandbox
        )
        return (await self._call(request, pb.CreateContainerResponse)).container_id

    async def start_container(self, container_id: str) -> None:
        """StartContainer."""
        request = pb.StartContainerRequest(container_id=container_id)
        await self._call(request, pb.StartContainerResponse)

    async def stop_container(self, container_id: str, grace_s: int) -> None:
        """StopContainer: the stop signal, SIGKILL after ``grace_s``."""
        request = pb.StopContainerRequest(container_id=container_id, timeout=grace_s)
        await self._call(request, pb.StopContainerResponse, timeout_s=CALL_S + grace_s)

    async def container_status(self, container_id: str) -> pb.ContainerStatus:
        """ContainerStatus."""
        request = pb.ContainerStatusRequest(container_id=container_id)
        return (await self._call(request, pb.ContainerStatusResponse)).status

    async def reopen_log(self, container_id: str) -> None:
        """ReopenContainerLog."""
        request = pb.ReopenContainerLogRequest(container_id=container_id)
        await self._call(request, pb.ReopenContainerLogResponse)

    async def image_status(self, image: pb.ImageSpec) -> pb.Image | None:
        """ImageStatus; None for an image that is not there."""
        request = pb.ImageStatusRequest(image=image)
        found = await self._call(request, pb.ImageStatusResponse, "ImageService")
        return found.image if found.HasField("image") else None

    async def pull_image(
        self, image: pb.ImageSpec, sandbox: pb.PodSandboxConfig, *, timeout_s: float | None
    ) -> str:
        """PullImage; returns the image's ID. ``timeout_s`` None is without end, as a kubelet's is."""
        request = pb.PullImageRequest(image=image, sandbox_config=sandbox)
        found = await self._call(request, pb.PullImageResponse, "ImageService", timeout_s=timeout_s)
        return found.image_ref

    async def events(self) -> AsyncGenerator[pb.ContainerEventResponse]:
        """GetContainerEvents: what happens from now on, until the runtime ends."""
        call = self._channel.unary_stream(
            "/runtime.v1.RuntimeService/GetContainerEvents",
            request_serializer=pb.GetEventsRequest.SerializeToString,
            response_deserializer=pb.ContainerEventResponse.FromString,
        )
        try:
            async for event in call(pb.GetEventsRequest()):
                yield event
        except aio.AioRpcError as error:
            raise error_of(error) from error

    async def _call(
        self,
        request: Message,
        answer: type[Answer],
        service: str = "RuntimeService",
        *,
        timeout_s: float | None = CALL_S,
    ) -> Answer:
        """Call the method whose name the request's class has."""
        method = request.DESCRIPTOR.name.removesuffix("Request")
        call = self._channel.unary_unary(
            f"/runtime.v1.{service}/{method}",
            request_serializer=type(request).SerializeToString,
            response_deserializer=answer.FromString,
        )
        try:
            return await call(request, timeout=timeout_s)
        except aio.AioRpcError as error:
            raise error_of(error) from error


def error_of(error: aio.AioRpcError) -> errors.NodeRuntimeError:
    """Return the error that the runtime raised, as far as its code tells."""
    said = error.details() or error.code().name
    if error.code() is grpc.StatusCode.DEADLINE_EXCEEDED:
        return errors.DeadlineExceededError(said)
    return _ERRORS.get(error.code(), errors.HostError)(said)
