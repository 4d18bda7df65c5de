from __future__ import annotations

import asyncio
import logging
import threading
from typing import TYPE_CHECKING

import pytest
from opentelemetry.sdk.trace.export import SpanExporter, SpanExportResult
from opentelemetry.trace import SpanKind, StatusCode

from noderuntime.errors import DeniedError
from noderuntime.telemetry import trace

if TYPE_CHECKING:
    from collections.abc import AsyncGenerator, Sequence

    from opentelemetry.sdk.trace import ReadableSpan

SAMPLED = "00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01"
NOT_SAMPLED = "00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-00"


class Collected(SpanExporter):
    def __init__(self) -> None:
        self.spans: dict[str, ReadableSpan] = {}
        self.arrived = threading.Event()

    def export(self, spans: Sequence[ReadableSpan]) -> SpanExportResult:
        self.spans.update({span.name: span for span in spans})
        self.arrived.set()
        return SpanExportResult.SUCCESS


def settings(rate: int = 1_000_000, endpoint: str = "http://127.0.0.1:1") -> trace.TraceSettings:
    return trace.TraceSettings(endpoint=endpoint, sampling_rate_per_million=rate, version="1")


@pytest.fixture
async def collected() -> AsyncGenerator[Collected]:
    exporter = Collected()
    trace.configure(settings(), exporter)
    yield exporter
    await trace.shutdown()


def test_span_does_nothing_while_tracing_is_off() -> None:
    with trace.remote_parent(SAMPLED), trace.span("oci.create", container="c"):
        assert trace.trace_id() == ""


def test_span_passes_an_error_on_while_tracing_is_off() -> None:
    with pytest.raises(DeniedError), trace.span("policy.admit"):
        raise DeniedError("no")


async def test_span_is_a_child_of_the_callers_span_when_it_sent_one(collected: Collected) -> None:
    with trace.remote_parent(SAMPLED), trace.span("cri.RunPodSandbox", pod="web"):
        assert trace.trace_id() == "0af7651916cd43dd8448eb211c80319c"
        with trace.span("sandbox.namespaces"):
            await asyncio.sleep(0)
    await trace.shutdown()
    server, child = collected.spans["cri.RunPodSandbox"], collected.spans["sandbox.namespaces"]
    assert server.parent is not None
    assert f"{server.parent.span_id:016x}" == "b7ad6b7169203331"
    assert server.kind is SpanKind.SERVER
    assert server.attributes == {"pod": "web"}
    assert child.parent == server.context
    assert child.kind is SpanKind.INTERNAL
    assert server.resource.attributes["service.name"] == "noderuntime"


async def test_span_is_not_sent_when_the_kubelet_decided_so(collected: Collected) -> None:
    with trace.remote_parent(NOT_SAMPLED), trace.span("cri.RunPodSandbox"):
        pass
    await trace.shutdown()
    assert collected.spans == {}


async def test_span_is_sent_when_the_kubelet_decided_so_at_rate_zero() -> None:
    exporter = Collected()
    trace.configure(settings(rate=0), exporter)
    with trace.remote_parent(SAMPLED), trace.span("cri.RunPodSandbox"):
        pass
    with trace.span("a.root"):
        pass
    await trace.shutdown()
    assert list(exporter.spans) == ["cri.RunPodSandbox"]


@pytest.mark.parametrize("header", ["", "garbage", "00-0-0-01", "ff" * 400])
async def test_span_has_no_parent_when_the_header_is_not_one(
    collected: Collected, header: str
) -> None:
    with trace.remote_parent(header), trace.span("cri.Version"):
        pass
    await trace.shutdown()
    assert collected.spans["cri.Version"].parent is None


async def test_span_has_the_text_of_an_error_of_ours_as_status(collected: Collected) -> None:
    with pytest.raises(DeniedError), trace.span("policy.admit"):
        raise DeniedError("capability NET_ADMIN is not allowed")
    await trace.shutdown()
    span = collected.spans["policy.admit"]
    assert span.status.status_code is StatusCode.ERROR
    assert span.status.description == "capability NET_ADMIN is not allowed"
    assert span.events == ()


async def test_span_tells_only_the_class_of_a_bug(collected: Collected) -> None:
    with pytest.raises(ValueError, match="hunter2"), trace.span("images.pull"):
        raise ValueError("password hunter2")
    await trace.shutdown()
    assert collected.spans["images.pull"].status.description == "ValueError"


async def test_configure_with_the_same_settings_keeps_the_queue() -> None:
    exporter = Collected()
    trace.configure(settings(), exporter)
    with trace.span("first"):
        pass
    trace.configure(settings())
    with trace.span("second"):
        pass
    await trace.shutdown()
    assert sorted(exporter.spans) == ["first", "second"]


async def test_configure_to_another_endpoint_still_sends_what_waits() -> None:
    old, new = Collected(), Collected()
    trace.configure(settings(), old)
    with trace.span("before"):
        pass
    trace.configure(settings(endpoint="http://127.0.0.1:2"), new)
    with trace.span("after"):
        pass
    await trace.shutdown()
    assert await asyncio.to_thread(old.arrived.wait, 5)
    assert (list(old.spans), list(new.spans)) == (["before"], ["after"])


async def test_configure_with_none_turns_tracing_off(collected: Collected) -> None:
    trace.configure(None)
    with trace.span("nothing"):
        assert trace.trace_id() == ""
    assert "nothing" not in collected.spans


async def test_shutdown_does_not_wait_long_when_the_collector_is_away(
    caplog: pytest.LogCaptureFixture,
) -> None:
    trace.configure(settings())
    with trace.span("lost"):
        pass
    async with asyncio.timeout(2):
        await trace.shutdown(timeout_s=0.01)
    assert "spans were lost" in caplog.text


def test_once_per_lets_one_record_through_and_counts_the_others() -> None:
    once = trace.OncePer(seconds=60)
    first, second = logging.makeLogRecord({}), logging.makeLogRecord({})
    assert once.filter(first)
    assert not once.filter(second)
    assert vars(first)["held_back"] == 0
