"""The step that keeps the admission policies of each handler; what is in them says ``admission/``.

A handler whose NodeRuntimes cannot all be resolved keeps its policies, as nodes keep what they serve.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from datetime import datetime
from typing import Any, Final

from noderuntime.errors import ConfigError
from noderuntime.policy.load import rules_of
from noderuntime.policy.rules import HandlerRules
from noderuntime_operator.admission.policy import bodies
from noderuntime_operator.reconcile.claims import by_age, handler_of, is_present
from noderuntime_operator.reconcile.names import LABELS, OWNER_LABEL
from noderuntime_operator.reconcile.observed import Body, NodeRuntimeSeen
from noderuntime_operator.reconcile.plan import Action, Apply, Delete, Kind, is_written, marked
from noderuntime_operator.reconcile.steps import owner_references
from noderuntime_operator.reconcile.view import View

HANDLER_LABEL: Final = "noderuntime.io/handler"
_REVISION: Final = (
    "sha256:"  # sentences of admission name no revision: nodes may serve different ones
)


def own_admission(view: View, now: datetime) -> tuple[Action, ...]:
    """Write the policies that differ, and delete those of handlers and modes that are gone."""
    observed = view.observed
    if observed.admission.problem:
        return ()
    present = [each for each in by_age(observed.node_runtimes) if is_present(each, view.in_use)]
    wanted: dict[tuple[Kind, str], Body] = {}
    kept: set[str] = set()  # handlers whose policies stay as they are
    for handler in sorted({handler_of(each, observed) for each in present} - {""}):
        owners = [each for each in present if handler_of(each, observed) == handler]
        rules = _rules(view, owners)
        if rules is None:
            kept.add(handler)
            continue
        classes = {e.name for e in observed.runtime_classes if e.handler == handler}
        taken = {e.name for e in observed.runtime_classes if e.handler != handler}
        names = classes | ({handler} - taken)
        for pair in bodies(handler, names, rules, now.timestamp()):
            for body in pair:
                made = marked(_owned(body, handler, owners))
                wanted[Kind(body["kind"]), body["metadata"]["name"]] = made
    return tuple(_difference(view, wanted, kept))


def _rules(view: View, owners: Iterable[NodeRuntimeSeen]) -> list[HandlerRules] | None:
    """Return the rules of each, or None where one of them is not known."""
    handlers = [view.resolutions[each.name].handler for each in owners]
    try:
        return [rules_of(each, _REVISION) for each in handlers if each] if all(handlers) else None
    except ConfigError:  # resolved, so it cannot be; and then nodes would keep what they have
        return None


def _owned(body: dict[str, Any], handler: str, owners: list[NodeRuntimeSeen]) -> dict[str, Any]:
    """Return it with labels, and with the owner as a RuntimeClass has it."""
    owner = next((each for each in owners if not each.deleting), owners[0])
    labels = LABELS | {OWNER_LABEL: owner.name, HANDLER_LABEL: handler}
    return body | {"metadata": body["metadata"] | {"labels": labels} | owner_references(owner)}


def _difference(
    view: View, wanted: Mapping[tuple[Kind, str], Body], kept: set[str]
) -> Iterable[Action]:
    seen = view.observed.admission
    live = {
        (kind, each["metadata"]["name"]): each
        for kind, found in (
            (Kind.ADMISSION_BINDING, seen.bindings),
            (Kind.ADMISSION_POLICY, seen.policies),
        )
        for each in found
    }
    for (kind, name), body in live.items():
        of = body["metadata"].get("labels", {}).get(HANDLER_LABEL, "")
        if (kind, name) not in wanted and of not in kept:
            yield Delete(kind=kind, name=name)
    for (kind, name), body in wanted.items():
        found = live.get((kind, name))
        if found is None or not is_written(found, body):
            yield Apply(kind=kind, name=name, body=body)
