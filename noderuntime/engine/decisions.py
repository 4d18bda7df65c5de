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
    from collections.abc import Callable, Mapping

    from noderuntime.api.config import Config
    from noderuntime.engine.node import Node
    from noderuntime.engine.state import ContainerRecord, SandboxRecord
    from noderuntime.engine.work import ContainerWork
    from noderuntime.policy.denial import Denial
    from noderuntime.policy.model import PodIdentity
    from noderuntime.policy.rules import HandlerRules
    from noderuntime.telemetry.decisions import Value

CREATE_CONTAINER: Final = "CreateContainer"
EXEC: Final = "Exec"
EXEC_SYNC: Final = "ExecSync"
ALLOWED: Final = "Allowed"
DENIED: Final = "Denied"
_MOST_TOLD: Final = 4096  # more containers than a node runs
AUDITED: Final = "Audited"  # allowed, and Enforce would have denied it


class Told:
    """The last line about each container of a verb that comes every second, as probes do.

    Such a line is written when it says something else than the one before, and counted always.
    """

    def __init__(self) -> None:
        """Nothing was told yet."""
        self._last: dict[str, Mapping[str, Value]] = {}

    def is_news(self, container_id: str, line: Mapping[str, Value]) -> bool:
        """Tell whether the line differs from the last one of the container."""
        if self._last.get(container_id) == line:
            return False
        if len(self._last) >= _MOST_TOLD:
            self._last.clear()  # of containers that are gone; the others are told once more
        self._last[container_id] = line
        return True


@dataclass(frozen=True, slots=True, kw_only=True)
class Asking:
    """Who asks the gate: CRI's verb, the Pod (None: not known), the container ("": the Pod).

    ``runs``: what is asked about runs already, under what this record says of it, which may be
    another revision than the one that decides. ``is_news``: whether a line is worth writing.
    """

    log: DecisionLog
    verb: str
    pod: PodIdentity | None = None
    container: str = ""
    runs: SandboxRecord | ContainerRecord | None = None
    is_news: Callable[[Mapping[str, Value]], bool] | None = None

    def record(
        self,
        rules: HandlerRules | None,
        denial: Denial | None = None,
        findings: tuple[Denial, ...] = (),
        changes: tuple[str, ...] = (),
    ) -> None:
        """Tell a decision, within its span. ``denial``: what refused; ``changes``: what was set."""
        under = _under(rules, self.runs)
        if not under:
            return
        objections = findings if denial is None else (denial,)
        verdict = DENIED if denial is not None else AUDITED if findings else ALLOWED
        section = (objections[0].section or "") if objections else ""
        profile = str(under["profile"])
        metrics.count_decision(verdict, profile, section)
        trace.annotate(_attributes(profile, verdict, objections))
        line: dict[str, Value] = {
            "verb": self.verb,
            **_who(self.pod),
            **({"container": self.container} if self.container else {}),
            **under,
            "verdict": verdict,
            **({"denials": [_told(denial)]} if denial is not None else {}),
            **({"findings": [_told(each) for each in findings]} if findings else {}),
            **({"changes": changes} if changes else {}),
        }
        if self.is_news is None or self.is_news(line):
            trace_id = trace.trace_id()
            self.log.write({**line, "trace_id": trace_id} if trace_id else line)


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


def _under(
    rules: HandlerRules | None, runs: SandboxRecord | ContainerRecord | None
) -> dict[str, Value]:
    """Return which profile it is about: that of what runs, and which one is served beside it."""
    served = {} if rules is None else _served(rules)
    if runs is None or not runs.revision:
        return served  # what runs under nothing is judged by what is served now
    own = {"nodeRuntime": runs.node_runtime, "profile": runs.profile, "revision": runs.revision}
    if rules is not None and rules.revision == runs.revision:
        return served
    now = {"servedRevision": "" if rules is None else rules.revision}
    return {**served, **own, **now}


def _served(rules: HandlerRules) -> dict[str, Value]:
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


def _attributes(profile: str, verdict: str, objections: tuple[Denial, ...]) -> dict[str, str]:
    found = {"noderuntime.verdict": verdict, "noderuntime.profile": profile}
    if objections:
        found["noderuntime.denied_field"] = printable(objections[0].field)
    return found
