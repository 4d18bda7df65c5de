"""What the node's status says, from what was seen. Pure: no clock, no API server.

A time in the status is when something last changed, so it is kept while nothing does: the same
observation gives the same status, and then nothing is written.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Final

from noderuntime.api.state import (
    NodeRuntimeStateStatus,
    ServedRevision,
    UnknownSyscalls,
    WithheldHandler,
)
from noderuntime.api.status import Condition

if TYPE_CHECKING:
    from noderuntime.agent.cluster import NodeState
    from noderuntime.cri.client import RuntimeStatus, Served
    from noderuntime.errors import NodeRuntimeError

MAX_STALE: Final = 100
MAX_SYSCALLS: Final = 64
MAX_MESSAGE_CHARS: Final = 2048


@dataclass(frozen=True, slots=True, kw_only=True)
class Observation:
    """One look at the node. ``runtime`` is None when it did not answer, and then ``error`` says why."""

    runtime: RuntimeStatus | None
    revision_error: NodeRuntimeError | None = None  # the declared revision cannot be written
    runtime_error: NodeRuntimeError | None = None


def status_of(state: NodeState, seen: Observation, now: str) -> NodeRuntimeStateStatus:
    """Return the status to write; ``now`` is RFC 3339 in UTC."""
    before = state.status
    ready = _since(before, _ready(state, seen), now)
    if seen.runtime is None:  # what was known stays; Ready says that it is old
        others = tuple(c for c in before.conditions if c.type != ready.type)
        return before.model_copy(
            update={"observed_generation": state.generation, "conditions": (ready, *others)}
        )
    served = seen.runtime.served
    return NodeRuntimeStateStatus(
        observed_generation=state.generation,
        revision=_served(before, served.revision, now),
        handlers=tuple(sorted(set(served.handlers))),
        withheld_handlers=_withheld(served),
        stale_containers=tuple(sorted(set(served.stale_containers)))[:MAX_STALE],
        ungoverned_pods=served.ungoverned_pods,
        unknown_syscalls=tuple(
            UnknownSyscalls(handler=handler, names=tuple(sorted(names))[:MAX_SYSCALLS])
            for handler, names in sorted(served.unknown_syscalls.items())
        ),
        conditions=(ready, _since(before, _seccomp(state, served), now)),
    )


def _since(before: NodeRuntimeStateStatus, condition: Condition, now: str) -> Condition:
    """Return the condition with the time at which its status last changed."""
    kept = next((c for c in before.conditions if c.type == condition.type), None)
    changed = kept is None or kept.status != condition.status
    since = now if kept is None or changed else kept.last_transition_time
    return condition.model_copy(update={"last_transition_time": since})


def _served(before: NodeRuntimeStateStatus, digest: str, now: str) -> ServedRevision:
    if before.revision is not None and before.revision.digest == digest:
        return before.revision
    return ServedRevision(digest=digest, served_at=now)


def _withheld(served: Served) -> tuple[WithheldHandler, ...]:
    found = {each.name: each for each in served.withheld_handlers}
    return tuple(
        WithheldHandler(name=name, reason=each.reason, message=each.message[:MAX_MESSAGE_CHARS])
        for name, each in sorted(found.items())
    )


def _ready(state: NodeState, seen: Observation) -> Condition:
    declared = state.spec.revision.digest
    if seen.revision_error is not None:
        return _condition(state, seen.revision_error.reason, str(seen.revision_error))
    if seen.runtime is None:
        return _condition(state, "RuntimeUnavailable", str(seen.runtime_error))
    served = seen.runtime.served
    if served.revision_error:
        return _condition(state, "RevisionRefused", served.revision_error)
    if served.revision != declared:
        now_serves = served.revision or "none"
        return _condition(
            state, "RevisionNotServed", f"declared is {declared}, the runtime serves {now_serves}"
        )
    withheld = _withheld(served)
    if withheld:
        reasons = {each.reason for each in withheld}
        said = "; ".join(f"handler {each.name} is not offered: {each.message}" for each in withheld)
        return _condition(state, reasons.pop() if len(reasons) == 1 else "HandlersWithheld", said)
    return _condition(state, "Served", f"the runtime serves {declared}", status=True)


def _seccomp(state: NodeState, served: Served) -> Condition:
    if not served.unknown_syscalls:
        return _condition(
            state, "Complete", "every call can be in a filter", status=True, kind="SeccompComplete"
        )
    told = "; ".join(
        f"handler {handler}: {', '.join(sorted(names))}"
        for handler, names in sorted(served.unknown_syscalls.items())
    )
    message = f"libseccomp of this node does not know, and no filter names, {told}"
    return _condition(state, "UnknownSyscalls", message, kind="SeccompComplete")


def _condition(
    state: NodeState, reason: str, message: str, *, status: bool = False, kind: str = "Ready"
) -> Condition:
    return Condition(
        type=kind,
        status="True" if status else "False",
        observed_generation=max(state.generation, 0),
        last_transition_time="",
        reason=reason,
        message=" ".join(message.split())[:MAX_MESSAGE_CHARS],
    )
