"""What a profile decided, told: a line of the decision log, a counter, attributes of the span.

Handlers without a profile decide nothing, and nothing is written of them.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Final

from noderuntime.policy.denial import printable
from noderuntime.telemetry import metrics, trace
from noderuntime.telemetry.decisions import DecisionLog, RotatedFiles

if TYPE_CHECKING:
    from noderuntime.api.config import Config
    from noderuntime.engine.node import Node
    from noderuntime.engine.work import ContainerWork
    from noderuntime.policy.denial import Denial
    from noderuntime.policy.model import PodIdentity
    from noderuntime.policy.rules import HandlerRules
    from noderuntime.telemetry.decisions import Value

CREATE_CONTAINER: Final = "CreateContainer"
ALLOWED: Final = "Allowed"
DENIED: Final = "Denied"
AUDITED: Final = "Audited"  # allowed, and Enforce would have denied it


@dataclass(frozen=True, slots=True, kw_only=True)
class Asking:
    """Who asks the gate: CRI's verb, the Pod (None: not known), the container ("": the Pod)."""

    log: DecisionLog
    verb: str
    pod: PodIdentity | None = None
    container: str = ""

    def record(
        self,
        rules: HandlerRules | None,
        denial: Denial | None = None,
        findings: tuple[Denial, ...] = (),
        changes: tuple[str, ...] = (),
    ) -> None:
        """Tell a decision, within its span. ``denial``: what refused; ``changes``: what was set."""
        if rules is None:
            return
        objections = findings if denial is None else (denial,)
        verdict = DENIED if denial is not None else AUDITED if findings else ALLOWED
        section = (objections[0].section or "") if objections else ""
        metrics.count_decision(verdict, rules.profile, section)
        trace.annotate(_attributes(rules, verdict, objections))
        self.log.write(
            {
                "verb": self.verb,
                **_who(self.pod),
                **({"container": self.container} if self.container else {}),
                **_under(rules),
                "verdict": verdict,
                **({"denials": [_told(denial)]} if denial is not None else {}),
                **({"findings": [_told(each) for each in findings]} if findings else {}),
                **({"changes": changes} if changes else {}),
                **({"trace_id": trace_id} if (trace_id := trace.trace_id()) else {}),
            }
        )


def asking(node: Node, verb: str, pod: PodIdentity | None, container: str = "") -> Asking:
    """Return who asks, on this node."""
    return Asking(log=node.decisions, verb=verb, pod=pod, container=container)


def asking_to_create(work: ContainerWork) -> Asking:
    """Return who asks in the steps of CreateContainer."""
    pod = None if work.sandbox is None else work.sandbox.config.pod
    return asking(work.node, CREATE_CONTAINER, pod, work.record.config.name)


def decision_log(config: Config) -> DecisionLog:
    """Return the node's log; nothing is made before the first decision."""
    settings = config.decisions
    path = settings.path or config.state_dir / "decisions" / "decisions.log"
    return DecisionLog(RotatedFiles(path, max_bytes=settings.max_bytes, files=settings.files))


def _who(pod: PodIdentity | None) -> dict[str, Value]:
    return {} if pod is None else {"namespace": pod.namespace, "pod": pod.name, "uid": pod.uid}


def _under(rules: HandlerRules) -> dict[str, Value]:
    audited = () if rules.audit else tuple(sorted(rules.audit_sections))
    return {
        "handler": rules.handler,
        "nodeRuntime": rules.node_runtime,
        "profile": rules.profile,
        "revision": rules.revision,
        "mode": "Audit" if rules.audit else "Enforce",
        **({"auditSections": audited} if audited else {}),
    }


def _told(denial: Denial) -> dict[str, Value]:
    return {
        "field": denial.field,
        "value": denial.value,
        "rule": denial.rule,
        "remedy": denial.remedy,
        "section": denial.section or "",
    }


def _attributes(
    rules: HandlerRules, verdict: str, objections: tuple[Denial, ...]
) -> dict[str, str]:
    found = {"noderuntime.verdict": verdict, "noderuntime.profile": rules.profile}
    if objections:
        found["noderuntime.denied_field"] = printable(objections[0].field)
    return found
