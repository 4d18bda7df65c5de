"""Spans over a real connection: OTLP/gRPC to a collector of three lines."""

from __future__ import annotations

import threading
from concurrent.futures import ThreadPoolExecutor
from typing import TYPE_CHECKING

import grpc
import pytest
from opentelemetry.proto.collector.trace.v1 import trace_service_pb2 as otlp

from noderuntime.telemetry import trace

if TYPE_CHECKING:
    from collections.abc import Generator


class Collector:
    def __init__(self) -> None:
        self.requests: list[otlp.ExportTraceServiceRequest] = []
        self.arrived = threading.Event()
        methods: dict[str, grpc.RpcMethodHandler[bytes, bytes]] = {
            "Export": grpc.unary_unary_rpc_method_handler(self._export)
        }
        service = "opentelemetry.proto.collector.trace.v1.TraceService"
        self.server = grpc.server(ThreadPoolExecutor(1))
        self.server.add_generic_rpc_handlers(
            (grpc.method_handlers_generic_handler(service, methods),)
        )
        self.port = self.server.add_insecure_port("127.0.0.1:0")
        self.server.start()

    def _export(self, raw: bytes, _: object) -> bytes:
        self.requests.append(otlp.ExportTraceServiceRequest.FromString(raw))
        self.arrived.set()
        return otlp.ExportTraceServiceResponse().SerializeToString()


@pytest.fixture
def collector() -> Generator[Collector]:
    collector = Collector()
    yield collector
    collector.server.stop(0).wait(5)


@pytest.mark.slow
async def test_spans_reach_the_collector_under_the_kubelets_trace(
    collector: Collector, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("NODE_NAME", "node-a")
    trace.preload()
    trace.configure(
        trace.TraceSettings(
            endpoint=f"http://127.0.0.1:{collector.port}", sampling_rate_per_million=0, version="9"
        )
    )
    parent = "00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01"
    with trace.remote_parent(parent), trace.span("cri.RunPodSandbox"), trace.span("network.attach"):
        pass
    await trace.shutdown()
    assert collector.arrived.wait(5)
    (resource_spans,) = collector.requests[0].resource_spans
    attributes = {each.key: each.value.string_value for each in resource_spans.resource.attributes}
    assert attributes["service.name"] == "noderuntime"
    assert attributes["service.version"] == "9"
    assert attributes["k8s.node.name"] == "node-a"
    spans = {span.name: span for span in resource_spans.scope_spans[0].spans}
    assert sorted(spans) == ["cri.RunPodSandbox", "network.attach"]
    assert {span.trace_id.hex() for span in spans.values()} == {"0af7651916cd43dd8448eb211c80319c"}
    assert spans["cri.RunPodSandbox"].parent_span_id.hex() == "b7ad6b7169203331"
