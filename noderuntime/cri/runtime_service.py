"""RuntimeService of ``runtime.v1``: each RPC reads its request, asks the engine, writes the answer.

What is not in ``methods`` and ``streams`` answers UNIMPLEMENTED (``server.py``): CheckpointPod and
RestorePod, which no runtime serves yet.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Final, Protocol, TypeVar

from google.protobuf.message import Message

from noderuntime.cri import answers, convert, filters, status, texts
from noderuntime.cri.boundary import MAX_MESSAGE_BYTES
from noderuntime.cri.runtime_v1 import api_pb2 as pb
from noderuntime.cri.streaming.tokens import Forward, RemoteCommand, Ticket
from noderuntime.cri.unknown_fields import refuse_unknown_fields
from noderuntime.cri.usage_service import UsageService
from noderuntime.engine.state import ContainerState
from noderuntime.errors import FailedPreconditionError, InvalidArgumentError

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Iterable, Iterator, Mapping

    from noderuntime.cri.boundary import Streaming, Unary
    from noderuntime.engine.engine import Engine
    from noderuntime.host.ports import CgroupDriver

CHUNK: Final = 100  # items a message of the Stream* lists, and their bytes: labels may be large
CHUNK_BYTES: Final = 4 << 20
EXEC_BYTES: Final = MAX_MESSAGE_BYTES - 4096  # of both outputs of ExecSync, as CRI has it
MAX_TIMEOUT_S: Final = 10 * 365 * 86400  # a grace period may be long, but must fit a clock

M = TypeVar("M", bound=Message)


class Urls(Protocol):
    """The streaming server, as far as RPCs need it."""

    def url(self, ticket: Ticket) -> str:
        """Return the URL that stands for the ticket, once."""
        ...


class RuntimeService:
    """The RPCs. ``methods`` and ``streams`` map their names in CRI to what answers them."""

    def __init__(
        self,
        engine: Engine,
        urls: Urls,
        driver: CgroupDriver,
    ) -> None:
        """Serve ``engine``."""
        self._engine = engine
        self._urls = urls
        self._driver = driver
        self._pod_cidr = ""
        usage = UsageService(engine)
        self.methods: Mapping[str, Unary] = {**self._unary_methods(), **usage.methods}
        self.streams: Mapping[str, Streaming] = {
            **usage.streams,
            "StreamPodSandboxes": self.stream_sandboxes,
            "StreamContainers": self.stream_containers,
            "GetContainerEvents": self.container_events,
        }

    def _unary_methods(self) -> dict[str, Unary]:
        return {
            "Version": self.version,
            "Status": self.status,
            "RuntimeConfig": self.runtime_config,
            "UpdateRuntimeConfig": self.update_runtime_config,
            "RunPodSandbox": self.run_sandbox,
            "StopPodSandbox": self.stop_sandbox,
            "RemovePodSandbox": self.remove_sandbox,
            "PodSandboxStatus": self.sandbox_status,
            "ListPodSandbox": self.list_sandboxes,
            "CreateContainer": self.create_container,
            "StartContainer": self.start_container,
            "StopContainer": self.stop_container,
            "RemoveContainer": self.remove_container,
            "ContainerStatus": self.container_status,
            "ListContainers": self.list_containers,
            "UpdateContainerResources": self.update_resources,
            "UpdatePodSandboxResources": self.update_sandbox_resources,
            "CheckpointContainer": self.checkpoint_container,
            "ReopenContainerLog": self.reopen_log,
            "ExecSync": self.exec_sync,
            "Exec": self.exec,
            "Attach": self.attach,
            "PortForward": self.port_forward,
        }

    async def version(self, _: pb.VersionRequest) -> pb.VersionResponse:
        """Version."""
        return status.version()

    async def status(self, request: pb.StatusRequest) -> pb.StatusResponse:
        """Status."""
        info = None
        if request.verbose:
            info = status.info(
                self._engine.status(), self._engine.config(), self._driver, self._pod_cidr
            )
        return status.status(self._engine.status(), info)

    async def runtime_config(self, _: pb.RuntimeConfigRequest) -> pb.RuntimeConfigResponse:
        """RuntimeConfig."""
        return status.runtime_config(self._driver)

    async def update_runtime_config(
        self, request: pb.UpdateRuntimeConfigRequest
    ) -> pb.UpdateRuntimeConfigResponse:
        """UpdateRuntimeConfig: the node's Pod CIDR. CNI's configuration decides; Status tells it."""
        refuse_unknown_fields(request)
        cidr = request.runtime_config.network_config.pod_cidr
        self._pod_cidr = texts.networks("runtime_config.network_config.pod_cidr", cidr)
        return pb.UpdateRuntimeConfigResponse()

    async def run_sandbox(self, request: pb.RunPodSandboxRequest) -> pb.RunPodSandboxResponse:
        """RunPodSandbox."""
        handler = texts.line("runtime_handler", request.runtime_handler)
        config = convert.sandbox_config(request.config)
        sandbox_id = await self._engine.run_sandbox(config, handler)
        return pb.RunPodSandboxResponse(pod_sandbox_id=sandbox_id)

    async def stop_sandbox(self, request: pb.StopPodSandboxRequest) -> pb.StopPodSandboxResponse:
        """StopPodSandbox."""
        await self._engine.stop_sandbox(_id("pod_sandbox_id", request.pod_sandbox_id))
        return pb.StopPodSandboxResponse()

    async def remove_sandbox(
        self, request: pb.RemovePodSandboxRequest
    ) -> pb.RemovePodSandboxResponse:
        """RemovePodSandbox."""
        await self._engine.remove_sandbox(_id("pod_sandbox_id", request.pod_sandbox_id))
        return pb.RemovePodSandboxResponse()

    async def sandbox_status(
        self, request: pb.PodSandboxStatusRequest
    ) -> pb.PodSandboxStatusResponse:
        """PodSandboxStatus."""
        record = self._engine.sandbox(_id("pod_sandbox_id", request.pod_sandbox_id))
        return pb.PodSandboxStatusResponse(
            status=answers.sandbox_status(record),
            info=answers.sandbox_info(record) if request.verbose else None,
        )

    async def list_sandboxes(self, request: pb.ListPodSandboxRequest) -> pb.ListPodSandboxResponse:
        """ListPodSandbox."""
        found = filters.sandboxes(self._engine.sandboxes(), request.filter)
        return pb.ListPodSandboxResponse(items=map(answers.sandbox_item, found))

    async def stream_sandboxes(
        self, request: pb.StreamPodSandboxesRequest
    ) -> AsyncIterator[pb.StreamPodSandboxesResponse]:
        """StreamPodSandboxes."""
        found = filters.sandboxes(self._engine.sandboxes(), request.filter)
        for part in chunks(map(answers.sandbox_item, found)):
            yield pb.StreamPodSandboxesResponse(pod_sandboxes=part)

    async def create_container(
        self, request: pb.CreateContainerRequest
    ) -> pb.CreateContainerResponse:
        """CreateContainer. ``sandbox_config`` repeats RunPodSandbox's, which the engine has."""
        sandbox_id = _id("pod_sandbox_id", request.pod_sandbox_id)
        config = convert.container_config(request.config)
        container_id = await self._engine.create_container(sandbox_id, config)
        return pb.CreateContainerResponse(container_id=container_id)

    async def start_container(self, request: pb.StartContainerRequest) -> pb.StartContainerResponse:
        """StartContainer."""
        await self._engine.start_container(_id("container_id", request.container_id))
        return pb.StartContainerResponse()

    async def stop_container(self, request: pb.StopContainerRequest) -> pb.StopContainerResponse:
        """StopContainer."""
        timeout_s = texts.number("timeout", request.timeout, 0, MAX_TIMEOUT_S)
        await self._engine.stop_container(_id("container_id", request.container_id), timeout_s)
        return pb.StopContainerResponse()

    async def remove_container(
        self, request: pb.RemoveContainerRequest
    ) -> pb.RemoveContainerResponse:
        """RemoveContainer."""
        await self._engine.remove_container(_id("container_id", request.container_id))
        return pb.RemoveContainerResponse()

    async def container_status(
        self, request: pb.ContainerStatusRequest
    ) -> pb.ContainerStatusResponse:
        """ContainerStatus."""
        record = self._engine.container(_id("container_id", request.container_id))
        return pb.ContainerStatusResponse(
            status=answers.container_status(record, self._engine.find_image(record.image_id)),
            info=answers.container_info(record) if request.verbose else None,
        )

    async def list_containers(self, request: pb.ListContainersRequest) -> pb.ListContainersResponse:
        """ListContainers."""
        found = filters.containers(self._engine.containers(), request.filter)
        return pb.ListContainersResponse(containers=map(answers.container_item, found))

    async def stream_containers(
        self, request: pb.StreamContainersRequest
    ) -> AsyncIterator[pb.StreamContainersResponse]:
        """StreamContainers."""
        found = filters.containers(self._engine.containers(), request.filter)
        for part in chunks(map(answers.container_item, found)):
            yield pb.StreamContainersResponse(containers=part)

    async def update_resources(
        self, request: pb.UpdateContainerResourcesRequest
    ) -> pb.UpdateContainerResourcesResponse:
        """UpdateContainerResources."""
        refuse_unknown_fields(request.linux, "linux")
        if request.HasField("windows"):
            raise InvalidArgumentError("windows: this runtime runs Linux containers only")
        if request.annotations:
            raise InvalidArgumentError("annotations: no annotation of an update is known here")
        wanted = convert.resources("linux", request.linux)
        await self._engine.update_resources(_id("container_id", request.container_id), wanted)
        return pb.UpdateContainerResourcesResponse()

    async def update_sandbox_resources(
        self, request: pb.UpdatePodSandboxResourcesRequest
    ) -> pb.UpdatePodSandboxResourcesResponse:
        """UpdatePodSandboxResources."""
        refuse_unknown_fields(request)
        await self._engine.update_sandbox_resources(
            _id("pod_sandbox_id", request.pod_sandbox_id),
            convert.resources("overhead", request.overhead),
            convert.resources("resources", request.resources),
        )
        return pb.UpdatePodSandboxResourcesResponse()

    async def checkpoint_container(
        self, request: pb.CheckpointContainerRequest
    ) -> pb.CheckpointContainerResponse:
        """CheckpointContainer: refused, by what is missing."""
        container_id = _id("container_id", request.container_id)
        texts.absolute_path("location", request.location)
        texts.number("timeout", request.timeout, 0, MAX_TIMEOUT_S)
        await self._engine.checkpoint_container(container_id)
        return pb.CheckpointContainerResponse()

    async def reopen_log(
        self, request: pb.ReopenContainerLogRequest
    ) -> pb.ReopenContainerLogResponse:
        """ReopenContainerLog."""
        await self._engine.reopen_log(self._running(request.container_id))
        return pb.ReopenContainerLogResponse()

    async def exec_sync(self, request: pb.ExecSyncRequest) -> pb.ExecSyncResponse:
        """ExecSync; a timeout of 0 is none."""
        argv = _argv(request.cmd)
        timeout_s = texts.number("timeout", request.timeout, 0, MAX_TIMEOUT_S)
        result = await self._engine.exec_sync(self._running(request.container_id), argv, timeout_s)
        stderr = result.stderr[: max(EXEC_BYTES - len(result.stdout), EXEC_BYTES // 2)]
        stdout = result.stdout[: EXEC_BYTES - len(stderr)]
        return pb.ExecSyncResponse(stdout=stdout, stderr=stderr, exit_code=result.exit_code)

    async def exec(self, request: pb.ExecRequest) -> pb.ExecResponse:
        """Exec: a URL."""
        argv = _argv(request.cmd)
        return pb.ExecResponse(url=self._urls.url(self._remote_command(request, argv)))

    async def attach(self, request: pb.AttachRequest) -> pb.AttachResponse:
        """Attach: a URL."""
        return pb.AttachResponse(url=self._urls.url(self._remote_command(request, None)))

    async def port_forward(self, request: pb.PortForwardRequest) -> pb.PortForwardResponse:
        """PortForward: a URL."""
        ports = [texts.number("port", p, 1, 65535) for p in texts.bounded("port", request.port)]
        sandbox_id = _id("pod_sandbox_id", request.pod_sandbox_id)
        record = await self._engine.admit_port_forward(sandbox_id)
        ticket = Forward(sandbox_id=record.id, ports=tuple(ports))
        return pb.PortForwardResponse(url=self._urls.url(ticket))

    async def container_events(
        self, _: pb.GetEventsRequest
    ) -> AsyncIterator[pb.ContainerEventResponse]:
        """GetContainerEvents: until the caller goes, or reads too slowly."""
        subscription = self._engine.subscribe()
        try:
            async for event in subscription:
                yield answers.event(event, self._engine.find_image)
        finally:
            subscription.close()

    def _remote_command(
        self, request: pb.ExecRequest | pb.AttachRequest, argv: tuple[str, ...] | None
    ) -> RemoteCommand:
        if request.tty and request.stderr:
            raise InvalidArgumentError("stderr: a terminal has no stderr of its own")
        if not (request.stdin or request.stdout or request.stderr):
            raise InvalidArgumentError("stdin, stdout, stderr: at least one must be asked for")
        return RemoteCommand(
            container_id=self._running(request.container_id),
            argv=argv,
            stdin=request.stdin,
            stdout=request.stdout,
            stderr=request.stderr,
            tty=request.tty,
        )

    def _running(self, asked: str) -> str:
        record = self._engine.container(_id("container_id", asked))
        if record.state is not ContainerState.RUNNING:
            raise FailedPreconditionError(f"container {record.id} is not running")
        return record.id


def chunks(items: Iterable[M]) -> Iterator[list[M]]:
    """Return parts that each fit a message well (16 MiB is the limit of the CRI client)."""
    part: list[M] = []
    size = 0
    for item in items:
        size += (added := item.ByteSize())
        if part and (len(part) >= CHUNK or size > CHUNK_BYTES):
            yield part
            part, size = [], added
        part.append(item)
    if part:
        yield part


def _argv(words: Iterable[str]) -> tuple[str, ...]:
    argv = texts.arguments("cmd", words)
    if not argv or not argv[0]:
        raise InvalidArgumentError("cmd: is required")
    return argv


def _id(field: str, value: str) -> str:
    return texts.name(field, value)
