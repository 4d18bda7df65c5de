"""The part of RuntimeService that tells what is used: stats for the kubelet's summary, metrics."""

from __future__ import annotations

from typing import TYPE_CHECKING

from noderuntime.cri import pod_metrics, stats, texts
from noderuntime.cri.runtime_v1 import api_pb2 as pb

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Mapping

    from noderuntime.cri.boundary import Streaming, Unary
    from noderuntime.engine.engine import Engine


class UsageService:
    """The RPCs. ``methods`` and ``streams`` map their names in CRI to what answers them."""

    def __init__(self, engine: Engine) -> None:
        """Serve ``engine``."""
        self._engine = engine
        self.methods: Mapping[str, Unary] = {
            "ContainerStats": self.container_stats,
            "ListContainerStats": self.list_container_stats,
            "PodSandboxStats": self.sandbox_stats,
            "ListPodSandboxStats": self.list_sandbox_stats,
            "ListMetricDescriptors": self.metric_descriptors,
            "ListPodSandboxMetrics": self.list_sandbox_metrics,
        }
        self.streams: Mapping[str, Streaming] = {
            "StreamContainerStats": self.stream_container_stats,
            "StreamPodSandboxStats": self.stream_sandbox_stats,
            "StreamPodSandboxMetrics": self.stream_sandbox_metrics,
        }

    async def container_stats(self, request: pb.ContainerStatsRequest) -> pb.ContainerStatsResponse:
        """ContainerStats."""
        record = self._engine.container(texts.name("container_id", request.container_id))
        return pb.ContainerStatsResponse(stats=await stats.of_container(self._engine, record))

    async def list_container_stats(
        self, request: pb.ListContainerStatsRequest
    ) -> pb.ListContainerStatsResponse:
        """ListContainerStats."""
        found = [each async for each in stats.of_containers(self._engine, request.filter)]
        return pb.ListContainerStatsResponse(stats=found)

    async def stream_container_stats(
        self, request: pb.StreamContainerStatsRequest
    ) -> AsyncIterator[pb.StreamContainerStatsResponse]:
        """StreamContainerStats."""
        async for each in stats.of_containers(self._engine, request.filter):
            yield pb.StreamContainerStatsResponse(container_stats=[each])

    async def sandbox_stats(self, request: pb.PodSandboxStatsRequest) -> pb.PodSandboxStatsResponse:
        """PodSandboxStats."""
        record = self._engine.sandbox(texts.name("pod_sandbox_id", request.pod_sandbox_id))
        return pb.PodSandboxStatsResponse(stats=await stats.of_sandbox(self._engine, record))

    async def list_sandbox_stats(
        self, request: pb.ListPodSandboxStatsRequest
    ) -> pb.ListPodSandboxStatsResponse:
        """ListPodSandboxStats."""
        found = [each async for each in stats.of_sandboxes(self._engine, request.filter)]
        return pb.ListPodSandboxStatsResponse(stats=found)

    async def stream_sandbox_stats(
        self, request: pb.StreamPodSandboxStatsRequest
    ) -> AsyncIterator[pb.StreamPodSandboxStatsResponse]:
        """StreamPodSandboxStats."""
        async for each in stats.of_sandboxes(self._engine, request.filter):
            yield pb.StreamPodSandboxStatsResponse(pod_sandbox_stats=[each])

    async def metric_descriptors(
        self, _: pb.ListMetricDescriptorsRequest
    ) -> pb.ListMetricDescriptorsResponse:
        """ListMetricDescriptors."""
        return pb.ListMetricDescriptorsResponse(descriptors=pod_metrics.descriptors())

    async def list_sandbox_metrics(
        self, _: pb.ListPodSandboxMetricsRequest
    ) -> pb.ListPodSandboxMetricsResponse:
        """ListPodSandboxMetrics."""
        found = [pod_metrics.of_pod(each) async for each in self._engine.pod_metrics()]
        return pb.ListPodSandboxMetricsResponse(pod_metrics=found)

    async def stream_sandbox_metrics(
        self, _: pb.StreamPodSandboxMetricsRequest
    ) -> AsyncIterator[pb.StreamPodSandboxMetricsResponse]:
        """StreamPodSandboxMetrics."""
        async for each in self._engine.pod_metrics():
            yield pb.StreamPodSandboxMetricsResponse(pod_sandbox_metrics=[pod_metrics.of_pod(each)])
