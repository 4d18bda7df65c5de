"""The steps of a pass, each from the view to the actions that are still needed; nothing when all is in place."""

from __future__ import annotations

from datetime import datetime, timedelta
from typing import Any, Final

from noderuntime.api import quantity
from noderuntime.api.model import API_VERSION
from noderuntime.api.noderuntime import ResourceAmounts
from noderuntime.api.revision import Revision
from noderuntime.api.state import NodeRuntimeStateSpec, RevisionRef
from noderuntime_operator.reconcile.claims import by_age, handler_of, is_present
from noderuntime_operator.reconcile.daemonset import daemonset_of
from noderuntime_operator.reconcile.names import (
    AGENT,
    EMPTIED_AT,
    FINALIZER,
    LABELS,
    OWNER_LABEL,
    revision_name,
)
from noderuntime_operator.reconcile.observed import (
    Body,
    NodeRuntimeSeen,
    NodeSeen,
    RevisionSeen,
    RuntimeClassSeen,
    StateSeen,
)
from noderuntime_operator.reconcile.plan import Action, Apply, Delete, Kind, is_written, marked
from noderuntime_operator.reconcile.selection import shared_labels
from noderuntime_operator.reconcile.view import EMPTY, View

Actions = tuple[Action, ...]

KEPT_REVISIONS: Final = 10
AGENT_ABSENT: Final = timedelta(minutes=2)


def claim(view: View, now: datetime) -> Actions:
    """Put the finalizer on every NodeRuntime before anything is made for it."""
    del now
    return tuple(
        _finalizers(runtime, [FINALIZER])
        for runtime in view.observed.node_runtimes
        if not runtime.deleting and not runtime.claimed
    )


def _finalizers(runtime: NodeRuntimeSeen, finalizers: list[str]) -> Apply:
    # The UID makes an apply to a namesake made meanwhile fail.
    metadata = {"name": runtime.name, "uid": runtime.uid, "finalizers": finalizers}
    body = {"apiVersion": API_VERSION, "kind": Kind.NODE_RUNTIME.value, "metadata": metadata}
    return Apply(kind=Kind.NODE_RUNTIME, name=runtime.name, body=body)


def publish_revision(view: View, now: datetime) -> Actions:
    """Make the ControllerRevisions that nodes are to serve; they are immutable, so never written again."""
    del now
    wanted = {each.digest: each for each in view.desired.values() if each}
    if view.draining:
        wanted[EMPTY.digest] = EMPTY
    there = {each.name for each in view.observed.revisions}
    missing = [each for each in wanted.values() if revision_name(each.digest) not in there]
    first = max((each.number for each in view.observed.revisions), default=0) + 1
    ordered = sorted(missing, key=lambda revision: revision.digest)
    return tuple(_publish(view, each, number) for number, each in enumerate(ordered, first))


def _publish(view: View, revision: Revision, number: int) -> Apply:
    name = revision_name(revision.digest)
    settings = view.observed.settings
    metadata: dict[str, Any] = {"name": name, "namespace": settings.namespace, "labels": LABELS}
    if settings.owner:
        metadata["ownerReferences"] = [dict(settings.owner)]
    body = {
        "apiVersion": "apps/v1",
        "kind": Kind.REVISION.value,
        "metadata": metadata,
        "revision": number,
        "data": revision.model_dump(mode="json", by_alias=True),
    }
    return Apply(kind=Kind.REVISION, name=name, body=body)


def own_runtime_class(view: View, now: datetime) -> Actions:
    """Keep one RuntimeClass a handler, named as it; those of handlers that are gone are removed."""
    del now
    observed = view.observed
    present = [each for each in by_age(observed.node_runtimes) if is_present(each, view.in_use)]
    kept = {handler_of(each, observed) for each in present}
    by_name = {each.name: each for each in observed.runtime_classes}
    actions: list[Action] = [
        Delete(kind=Kind.RUNTIME_CLASS, name=each.name)
        for each in observed.runtime_classes
        if each.owned and each.handler not in kept
    ]
    for handler in sorted({each.spec.handler for each in present if each.spec}):
        owners = [each for each in present if each.spec and each.spec.handler == handler]
        body = marked(_runtime_class(handler, owners))
        found = by_name.get(handler)
        if found is not None and (not found.owned or _is_current(found, body)):
            continue
        actions.append(Apply(kind=Kind.RUNTIME_CLASS, name=handler, body=body))
    return tuple(actions)


def _is_current(found: RuntimeClassSeen, body: dict[str, Any]) -> bool:
    """Compare amounts by what they are worth: the API server writes 1000m as 1."""
    wanted = dict(body)
    amounts: Body = wanted.pop("overhead", {}).get("podFixed", {})
    overhead: Body = found.body.get("overhead") or {}
    seen: Body = overhead.get("podFixed") or {}
    same = amounts.keys() == seen.keys() and all(
        quantity.parse(seen[name]) == quantity.parse(value) for name, value in amounts.items()
    )
    return same and is_written(found.body, wanted)


def _runtime_class(handler: str, owners: list[NodeRuntimeSeen]) -> dict[str, Any]:
    """Compose it from the oldest; where several select nodes, only labels that all ask for can be said."""
    living = [each for each in owners if not each.deleting] or owners
    owner = living[0]
    specs = [each.spec for each in living if each.spec is not None]
    metadata: dict[str, Any] = {"name": handler, "labels": LABELS | {OWNER_LABEL: owner.name}}
    metadata |= owner_references(owner)
    body: dict[str, Any] = {
        "apiVersion": "node.k8s.io/v1",
        "kind": Kind.RUNTIME_CLASS.value,
        "metadata": metadata,
        "handler": handler,
    }
    if overhead := _amounts(specs[0].resources.overhead):
        body["overhead"] = {"podFixed": overhead}
    if labels := shared_labels([spec.node_selector for spec in specs]):
        body["scheduling"] = {"nodeSelector": labels}
    return body


def owner_references(owner: NodeRuntimeSeen) -> dict[str, Any]:
    """Return the part of an object's metadata that names its owner.

    Nothing while that is being deleted: a foreground deletion would remove what Pods still need.
    """
    if owner.deleting:
        return {}
    reference = {
        "apiVersion": API_VERSION,
        "kind": Kind.NODE_RUNTIME.value,
        "name": owner.name,
        "uid": owner.uid,
        "controller": True,
        "blockOwnerDeletion": False,
    }
    return {"ownerReferences": [reference]}


def _amounts(amounts: ResourceAmounts) -> dict[str, str]:
    return amounts.model_dump(exclude_none=True)


def own_daemonset(view: View, now: datetime) -> Actions:
    """Keep the agent's DaemonSet while there is a NodeRuntime or a node to empty; then remove it."""
    del now
    live = view.observed.daemonset
    if is_needed(view):
        body = daemonset_of(view)
        if live is not None and is_written(live, body):
            return ()
        return (Apply(kind=Kind.DAEMON_SET, name=AGENT, body=body),)
    if live is None:
        return ()
    return (Delete(kind=Kind.DAEMON_SET, name=AGENT),)


def is_needed(view: View) -> bool:
    """Tell whether anything of ours is still to be done on nodes."""
    staying = any(each.name not in view.released for each in view.observed.node_runtimes)
    return staying or bool(view.observed.states)


def own_states(view: View, now: datetime) -> Actions:
    """Tell each node its revision; empty those that are to serve nothing, then forget them."""
    actions: list[Action] = []
    nodes = {node.name for node in view.observed.nodes}
    for node in view.observed.nodes:
        state, revision = view.states.get(node.name), view.desired.get(node.name)
        if revision is not None:
            actions += _tell(node, state, revision)
    for state in view.observed.states:
        if state.name not in nodes:
            actions.append(Delete(kind=Kind.STATE, name=state.name))
    for state in view.draining:
        actions += _empty(state, now)
    return tuple(actions)


def _tell(node: NodeSeen, state: StateSeen | None, revision: Revision) -> list[Action]:
    spec = _state_spec(node.name, revision)
    if state is not None and state.spec == spec and not state.emptied_at:
        return []
    return [_state(spec, {})]


def _empty(state: StateSeen, now: datetime) -> list[Action]:
    spec = _state_spec(state.name, EMPTY)
    if state.spec != spec or not state.emptied_at:
        return [_state(spec, {EMPTIED_AT: now.isoformat(timespec="seconds")})]
    if is_emptied(state) or now - _since(state, now) >= AGENT_ABSENT:
        return [Delete(kind=Kind.STATE, name=state.name)]
    return []


def is_emptied(state: StateSeen) -> bool:
    """Tell whether the agent has reported that the node serves the empty revision."""
    status = state.status
    served = status.revision if status else None
    return served is not None and served.digest == EMPTY.digest


def _since(state: StateSeen, now: datetime) -> datetime:
    try:
        since = datetime.fromisoformat(state.emptied_at)
    except ValueError:
        return now - AGENT_ABSENT
    return since if since.tzinfo is not None else now - AGENT_ABSENT


def _state_spec(node: str, revision: Revision) -> NodeRuntimeStateSpec:
    ref = RevisionRef(name=revision_name(revision.digest), digest=revision.digest)
    return NodeRuntimeStateSpec(node_name=node, revision=ref)


def _state(spec: NodeRuntimeStateSpec, annotations: dict[str, str]) -> Apply:
    metadata: dict[str, Any] = {"name": spec.node_name, "labels": LABELS}
    if annotations:
        metadata["annotations"] = annotations
    body = {
        "apiVersion": API_VERSION,
        "kind": Kind.STATE.value,
        "metadata": metadata,
        "spec": spec.model_dump(mode="json", by_alias=True),
    }
    return Apply(kind=Kind.STATE, name=spec.node_name, body=body)


def collect_revisions(view: View, now: datetime) -> Actions:
    """Remove old revisions: the newest unused ones stay for a look back, none when nothing is left."""
    del now
    used = {state.spec.revision.name for state in view.observed.states if state.spec}
    used |= {revision_name(each.digest) for each in view.desired.values() if each}
    used |= {revision_name(EMPTY.digest)} if view.draining else set()
    unused = [each for each in view.observed.revisions if each.name not in used]

    def newest_first(revision: RevisionSeen) -> tuple[int, str]:
        return (-revision.number, revision.name)

    kept = KEPT_REVISIONS if is_needed(view) else 0
    return tuple(
        Delete(kind=Kind.REVISION, name=each.name)
        for each in sorted(unused, key=newest_first)[kept:]
    )


def finish(view: View, now: datetime) -> Actions:
    """Take the finalizer off NodeRuntimes that nothing needs any more."""
    del now
    return tuple(
        _finalizers(runtime, [])
        for runtime in view.observed.node_runtimes
        if runtime.name in view.released and runtime.claimed
    )
