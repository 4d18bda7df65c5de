"""One pass: what is observed → the plan. Read the steps from the top; nothing here does I/O."""

from __future__ import annotations

from collections.abc import Callable
from datetime import datetime
from typing import Final, TypeAlias

from noderuntime_operator.reconcile import steps
from noderuntime_operator.reconcile.admission import own_admission
from noderuntime_operator.reconcile.observed import Observed
from noderuntime_operator.reconcile.plan import Action, Plan, Step
from noderuntime_operator.reconcile.status import write_status
from noderuntime_operator.reconcile.view import View, view_of

StepFunction: TypeAlias = Callable[[View, datetime], tuple[Action, ...]]

STEPS: Final[tuple[StepFunction, ...]] = (
    steps.claim,
    steps.publish_revision,  # before the states that name it
    steps.own_runtime_class,
    own_admission,
    steps.own_daemonset,
    steps.own_states,
    write_status,
    steps.collect_revisions,
    steps.finish,
)

_USE_CHECK_S: Final = (
    3.0  # Pods are not watched, there are too many; they are listed while it matters
)
_DRAIN_CHECK_S: Final = 10.0


def reconcile(observed: Observed, now: datetime) -> Plan:
    """Return what is still to be written, and when to look again though no event came."""
    view = view_of(observed)
    made = tuple(Step(name=step.__name__, actions=step(view, now)) for step in STEPS)
    return Plan(steps=tuple(step for step in made if step.actions), retry_s=_retry_s(view))


def _retry_s(view: View) -> float | None:
    waits = [_USE_CHECK_S] if any(view.in_use.values()) else []
    waits += [_DRAIN_CHECK_S] if view.draining else []
    return min(waits, default=None)
