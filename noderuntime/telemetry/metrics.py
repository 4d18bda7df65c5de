"""Prometheus metrics, in a registry of our own. The face is functions: callers name no metric.

State (sandboxes, containers, the revision) is not counted along but asked for when it is scraped,
so that it cannot drift from the truth. Label values are bounded: methods, codes, states, profiles.
"""

from __future__ import annotations

import re
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Final

from prometheus_client import (
    CollectorRegistry,
    Counter,
    Gauge,
    Histogram,
    ProcessCollector,
    disable_created_metrics,
    generate_latest,
)
from prometheus_client.core import GaugeMetricFamily
from prometheus_client.registry import Collector

import noderuntime

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Mapping

    from prometheus_client.metrics_core import Metric

CONTENT_TYPE: Final = "text/plain; version=0.0.4; charset=utf-8"
REGISTRY: Final = CollectorRegistry(auto_describe=True)
_NAMES: Final = re.compile(r"\[[^\]]*\]")
_SECONDS: Final = (0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10, 30, 120)

disable_created_metrics()  # type: ignore[no-untyped-call]  # half the lines, and no one reads them
ProcessCollector(registry=REGISTRY)

_rpcs = Counter(
    "noderuntime_cri_requests",
    "CRI calls answered, by method and gRPC status code.",
    ("method", "code"),
    registry=REGISTRY,
)
_rpc_seconds = Histogram(
    "noderuntime_cri_request_duration_seconds",
    "How long CRI calls took to answer.",
    ("method",),
    buckets=_SECONDS,
    registry=REGISTRY,
)
_denials = Counter(
    "noderuntime_policy_denials",
    "What profiles refused, by profile and by the field that was refused.",
    ("profile", "field"),
    registry=REGISTRY,
)
_findings = Counter(
    "noderuntime_policy_findings",
    "What profiles in mode Audit let pass and Enforce would refuse.",
    ("profile", "field"),
    registry=REGISTRY,
)
_decisions = Counter(
    "noderuntime_policy_decisions",
    "What profiles decided: Allowed, Denied or Audited; with the first section that objected.",
    ("verdict", "profile", "section"),
    registry=REGISTRY,
)
_lost_decisions = Counter(
    "noderuntime_decision_lines_lost",
    "Decisions that hold but could not be written to the decision log.",
    registry=REGISTRY,
)
_pulls = Counter(
    "noderuntime_image_pulls", "Image pulls, by outcome.", ("outcome",), registry=REGISTRY
)
_pull_seconds = Histogram(
    "noderuntime_image_pull_duration_seconds",
    "How long image pulls took.",
    buckets=(0.1, 0.5, 1, 2.5, 5, 10, 30, 60, 120, 300, 600),
    registry=REGISTRY,
)
_damaged = Counter(
    "noderuntime_damaged_records",
    "Records that could not be read at a start, by kind: set aside, or written anew.",
    ("kind",),
    registry=REGISTRY,
)
_build = Gauge(
    "noderuntime_build_info",
    "Always 1, with the version as label.",
    ("version",),
    registry=REGISTRY,
)
_build.labels(version=noderuntime.__version__).set(1)


def observe_rpc(method: str, code: str, seconds: float) -> None:
    """Count one answered call; ``code`` is gRPC's, such as ``OK`` or ``NOT_FOUND``."""
    _rpcs.labels(method=method, code=code).inc()
    _rpc_seconds.labels(method=method).observe(seconds)


def count_denial(profile: str, field: str) -> None:
    """Count one refusal of a profile; the container's name in ``field`` is left out."""
    _denials.labels(profile=profile, field=_NAMES.sub("[]", field)).inc()


def count_finding(profile: str, field: str) -> None:
    """Count one thing that a profile in mode Audit would have refused."""
    _findings.labels(profile=profile, field=_NAMES.sub("[]", field)).inc()


def count_decision(verdict: str, profile: str, section: str) -> None:
    """Count one decision; ``section`` is "" where none objected."""
    _decisions.labels(verdict=verdict, profile=profile, section=section).inc()


def count_lost_decisions(lines: int) -> None:
    """Count decisions that are in no file."""
    _lost_decisions.inc(lines)


def observe_pull(outcome: str, seconds: float) -> None:
    """Count one pull; ``outcome`` is ``Succeeded``, or the reason of the error."""
    _pulls.labels(outcome=outcome).inc()
    _pull_seconds.observe(seconds)


def count_damaged_record(kind: str) -> None:
    """Count one record that was damaged: sandbox, container, intent, image, layer, ..."""
    _damaged.labels(kind=kind).inc()


@dataclass(frozen=True, slots=True, kw_only=True)
class NodeReading:
    """What the node holds now: counts by state (CRI's names), and the served revision."""

    sandboxes: Mapping[str, int] = field(default_factory=dict[str, int])
    containers: Mapping[str, int] = field(default_factory=dict[str, int])
    revision: str = ""
    revision_valid: bool = True
    stale_containers: int = 0
    ungoverned_pods: int = 0
    lost_monitors: int = 0


class NodeCollector(Collector):
    """Asks for a reading at each scrape."""

    def __init__(self, read: Callable[[], NodeReading]) -> None:
        """Keep ``read``, which must be fast: it runs in the event loop."""
        self._read = read

    def describe(self) -> Iterable[Metric]:
        """Name the metrics without a reading, so that registering calls nothing."""
        return self._metrics(NodeReading())

    def collect(self) -> Iterable[Metric]:
        """Return the gauges of one reading."""
        return self._metrics(self._read())

    def _metrics(self, reading: NodeReading) -> Iterable[Metric]:
        for kind, counts in (("sandboxes", reading.sandboxes), ("containers", reading.containers)):
            gauge = GaugeMetricFamily(
                f"noderuntime_{kind}", f"{kind.capitalize()} on this node.", labels=("state",)
            )
            for state, count in sorted(counts.items()):
                gauge.add_metric((state,), count)
            yield gauge
        revision = GaugeMetricFamily(
            "noderuntime_revision_info",
            "The served revision: 1 when it is valid, 0 when the declared one is not served.",
            labels=("digest",),
        )
        revision.add_metric((reading.revision,), 1 if reading.revision_valid else 0)
        yield revision
        yield GaugeMetricFamily(
            "noderuntime_stale_containers",
            "Containers that run under an older revision than the served one.",
            value=reading.stale_containers,
        )
        yield GaugeMetricFamily(
            "noderuntime_ungoverned_pods",
            "Pods that run under a handler without a profile.",
            value=reading.ungoverned_pods,
        )
        yield GaugeMetricFamily(
            "noderuntime_lost_monitors",
            "Running containers whose monitor was killed: what they write is lost.",
            value=reading.lost_monitors,
        )


def watch_node(read: Callable[[], NodeReading]) -> None:
    """Add the node's gauges; once a process."""
    REGISTRY.register(NodeCollector(read))


def render() -> bytes:
    """Return the text format that Prometheus scrapes."""
    return generate_latest(REGISTRY)
