"""Spans. ``span`` costs next to nothing while tracing is off.

A span's parent is the kubelet's (``remote_parent``), and then the kubelet's decision to sample
wins; only where nobody has decided does the configured rate. Nothing here waits for the collector:
spans go through a bounded queue to a thread, and what does not fit is dropped. OpenTelemetry is
imported where it is used: it takes 19 MB, which a node without tracing does not pay.
Source: W3C Trace Context; OpenTelemetry specification, trace/sdk.md.
"""

from __future__ import annotations

import asyncio
import importlib
import logging
import os
import socket
import threading
import time
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import dataclass
from typing import TYPE_CHECKING, Final

from noderuntime.errors import NodeRuntimeError

if TYPE_CHECKING:
    from collections.abc import Generator, Mapping

    from opentelemetry.sdk.trace import TracerProvider
    from opentelemetry.sdk.trace.export import SpanExporter
    from opentelemetry.trace import Span, Tracer

QUEUE_SPANS: Final = 4096
EXPORT_TIMEOUT_S: Final = 5.0
EXPORT_DELAY_MS: Final = 1000
# Where the SDK says that spans were lost; it does so at each attempt, which is too often for a log.
_NOISY_LOGGERS: Final = (
    "opentelemetry.exporter.otlp.proto.grpc.exporter",
    "opentelemetry.sdk._shared_internal",
)


@dataclass(frozen=True, slots=True, kw_only=True)
class TraceSettings:
    """Where spans go. ``endpoint`` is OTLP over gRPC: ``http://`` (in clear) or ``https://``."""

    endpoint: str
    sampling_rate_per_million: int
    version: str = ""


class _Tracing:
    """What is configured now; one instance a process, changed only by ``configure``."""

    def __init__(self) -> None:
        self.settings: TraceSettings | None = None
        self.tracer: Tracer | None = None
        self.provider: TracerProvider | None = None


_tracing: Final = _Tracing()
_NOTHING: Final = nullcontext()


def span(name: str, **attributes: str | int | bool) -> AbstractContextManager[None]:
    """Time a block as a child of the current span; ``name`` is ``part.verb``: ``oci.create``.

    An error of ours becomes the span's status and goes on; of any other error only the class is
    told, because its text may hold what was asked for.
    """
    tracer = _tracing.tracer
    return _NOTHING if tracer is None else _recorded(tracer, name, attributes)


def remote_parent(traceparent: str) -> AbstractContextManager[None]:
    """Make the caller's span, from the ``traceparent`` header, the parent within; "" is none."""
    if _tracing.tracer is None or not traceparent:
        return _NOTHING
    return _attached(traceparent)


def trace_id() -> str:
    """Return the current trace's ID as 32 hex digits, "" outside of one."""
    if _tracing.tracer is None:
        return ""
    from opentelemetry.trace import get_current_span

    context = get_current_span().get_span_context()
    return f"{context.trace_id:032x}" if context.is_valid else ""


def annotate(attributes: Mapping[str, str]) -> None:
    """Set attributes of the current span."""
    if _tracing.tracer is None:
        return
    from opentelemetry.trace import get_current_span

    get_current_span().set_attributes(attributes)


def configure(settings: TraceSettings | None, exporter: SpanExporter | None = None) -> None:
    """Turn tracing on, over to another endpoint or, with None, off. The same settings do nothing.

    The spans that still wait for the old endpoint are sent by a thread of their own. ``exporter``
    stands in for OTLP in tests.
    """
    if settings == _tracing.settings and exporter is None:
        return
    old = _tracing.provider
    _tracing.settings, _tracing.tracer, _tracing.provider = settings, None, None
    if settings is not None:
        provider = _provider(settings, exporter)
        _tracing.provider = provider
        _tracing.tracer = provider.get_tracer("noderuntime", settings.version)
    if old is not None:
        threading.Thread(target=old.shutdown, name="trace-flush", daemon=True).start()


def preload() -> None:
    """Import what ``configure`` needs; it takes a while, so it may be done in a thread before."""
    importlib.import_module("opentelemetry.sdk.trace.export")
    importlib.import_module("opentelemetry.exporter.otlp.proto.grpc.trace_exporter")


async def shutdown(timeout_s: float = 3.0) -> None:
    """Send what waits, for at most ``timeout_s``, and turn tracing off."""
    provider = _tracing.provider
    _tracing.settings, _tracing.tracer, _tracing.provider = None, None, None
    if provider is None:
        return
    loop, done = asyncio.get_running_loop(), asyncio.Event()

    def flush() -> None:
        provider.shutdown()
        if not loop.is_closed():
            loop.call_soon_threadsafe(done.set)

    threading.Thread(target=flush, name="trace-flush", daemon=True).start()
    try:
        async with asyncio.timeout(timeout_s):
            await done.wait()
    except TimeoutError:
        logging.getLogger(__name__).warning("spans were lost: the collector does not answer")


def _provider(settings: TraceSettings, exporter: SpanExporter | None) -> TracerProvider:
    from opentelemetry.metrics import NoOpMeterProvider
    from opentelemetry.sdk.resources import Resource
    from opentelemetry.sdk.trace import TracerProvider
    from opentelemetry.sdk.trace.export import BatchSpanProcessor
    from opentelemetry.sdk.trace.sampling import ParentBased, TraceIdRatioBased

    host = socket.gethostname()
    resource = Resource(
        {
            "service.name": "noderuntime",
            "service.version": settings.version,
            "host.name": host,
            "k8s.node.name": os.environ.get("NODE_NAME", host),
        }
    )
    rate = settings.sampling_rate_per_million / 1_000_000
    provider = TracerProvider(
        sampler=ParentBased(TraceIdRatioBased(rate)), resource=resource, shutdown_on_exit=False
    )
    provider.add_span_processor(
        BatchSpanProcessor(
            exporter or _otlp(settings),
            max_queue_size=QUEUE_SPANS,
            schedule_delay_millis=EXPORT_DELAY_MS,
            meter_provider=NoOpMeterProvider(),
        )
    )
    return provider


def _otlp(settings: TraceSettings) -> SpanExporter:
    from opentelemetry.exporter.otlp.proto.grpc.trace_exporter import (
        OTLPSpanExporter,
    )

    for name in _NOISY_LOGGERS:
        logger = logging.getLogger(name)
        if not any(isinstance(filter_, OncePer) for filter_ in logger.filters):
            logger.addFilter(OncePer(seconds=60))
    return OTLPSpanExporter(
        endpoint=settings.endpoint,
        insecure=settings.endpoint.startswith("http://"),
        timeout=EXPORT_TIMEOUT_S,
    )


class OncePer(logging.Filter):
    """Lets one record through in each period, and says in it how many were held back before."""

    def __init__(self, *, seconds: float) -> None:
        """Start with the first record going through."""
        super().__init__()
        self._seconds = seconds
        self._next = 0.0
        self._held_back = 0

    def filter(self, record: logging.LogRecord) -> bool:
        """Tell whether the record is written."""
        now = time.monotonic()
        if now < self._next:
            self._held_back += 1
            return False
        self._next = now + self._seconds
        record.__dict__["held_back"] = self._held_back
        self._held_back = 0
        return True


@contextmanager
def _recorded(
    tracer: Tracer, name: str, attributes: dict[str, str | int | bool]
) -> Generator[None]:
    from opentelemetry.trace import SpanKind, get_current_span

    remote = get_current_span().get_span_context().is_remote
    with tracer.start_as_current_span(
        name,
        kind=SpanKind.SERVER if remote else SpanKind.INTERNAL,
        attributes=attributes,
        record_exception=False,
        set_status_on_exception=False,
    ) as current:
        try:
            yield
        except BaseException as error:
            _set_status(current, error)
            raise


def _set_status(current: Span, error: BaseException) -> None:
    from opentelemetry.trace import StatusCode

    if isinstance(error, NodeRuntimeError):
        current.set_attribute("error.type", error.reason)
        current.set_status(StatusCode.ERROR, error.for_kubelet())
    else:
        current.set_attribute("error.type", type(error).__name__)
        current.set_status(StatusCode.ERROR, type(error).__name__)


@contextmanager
def _attached(traceparent: str) -> Generator[None]:
    from opentelemetry.context import attach, detach
    from opentelemetry.trace.propagation.tracecontext import (
        TraceContextTextMapPropagator,
    )

    # A header that is not a traceparent extracts to no parent at all.
    token = attach(TraceContextTextMapPropagator().extract({"traceparent": traceparent}))
    try:
        yield
    finally:
        detach(token)
