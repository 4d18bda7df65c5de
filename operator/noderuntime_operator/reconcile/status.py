"""The status of NodeRuntimes and SecurityProfiles: what is true now, in conditions, counts and a sentence."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from datetime import datetime
from typing import Any, Final

from noderuntime.api.model import API_VERSION
from noderuntime.api.state import WithheldHandler
from noderuntime_operator.reconcile.observed import Body, NodeRuntimeSeen, PodSeen, ProfileSeen
from noderuntime_operator.reconcile.plan import Action, Apply, Kind
from noderuntime_operator.reconcile.resolve import Resolution
from noderuntime_operator.reconcile.view import View, desired_name

_NAMED: Final = 5  # nodes or Pods that a message names before it counts the rest
_MOST_USERS: Final = 100


@dataclass(frozen=True, slots=True, kw_only=True)
class _Verdict:
    """``state`` is which of the three conditions is True."""

    state: str
    reason: str
    message: str


@dataclass(frozen=True, slots=True, kw_only=True)
class _Nodes:
    matched: tuple[str, ...]
    pending: tuple[str, ...]  # of matched
    conflicting: dict[str, str]
    others_default: dict[str, str]  # of matched: where an older one governs Pods without a handler
    stale: int
    ungoverned: int  # Pods
    unknown: dict[str, tuple[str, ...]]  # system calls by node that the handler's filter leaves out
    withheld: dict[str, WithheldHandler]  # of pending: they cannot offer the handler


def write_status(view: View, now: datetime) -> tuple[Action, ...]:
    """Return the statuses that differ from what is written, each as one apply."""
    actions: list[Action] = []
    for runtime in view.observed.node_runtimes:
        if runtime.name not in view.released:
            wanted = _runtime_status(view, runtime, now)
            actions += _write(Kind.NODE_RUNTIME, runtime.name, runtime.status, wanted)
    for profile in view.observed.profiles:
        wanted = _profile_status(view, profile, now)
        actions += _write(Kind.SECURITY_PROFILE, profile.name, profile.status, wanted)
    return tuple(actions)


def _write(kind: Kind, name: str, live: Body, wanted: Body) -> list[Action]:
    if live == wanted:
        return []
    head = {"apiVersion": API_VERSION, "kind": kind.value, "metadata": {"name": name}}
    return [Apply(kind=kind, name=name, body=head | {"status": wanted}, status=True)]


def _runtime_status(view: View, runtime: NodeRuntimeSeen, now: datetime) -> dict[str, Any]:
    nodes = _nodes(view, runtime)
    resolution = view.resolutions[runtime.name]
    verdict = _verdict(view, resolution, nodes)
    served = len(nodes.matched) - len(nodes.pending)
    conditions = [
        _condition(runtime.status, runtime.generation, verdict, kind, now)
        for kind in ("Ready", "Reconciling", "Stalled")
    ]
    return {
        "observedGeneration": runtime.generation,
        "conditions": conditions,
        "nodes": {
            "matched": len(nodes.matched),
            "served": served,
            "pending": len(nodes.pending),
            "conflicting": len(nodes.conflicting),
            "stale": nodes.stale,
        },
        "servedNodes": f"{served}/{len(nodes.matched)}",
        "ungovernedPods": nodes.ungoverned,
        "runtimeClassName": runtime.spec.handler if runtime.spec else "",
        "profileGeneration": resolution.profile_generation,
    }


def _nodes(view: View, runtime: NodeRuntimeSeen) -> _Nodes:
    matched = view.claims.won.get(runtime.name, ())
    handler = runtime.spec.handler if runtime.spec else ""
    return _Nodes(
        matched=matched,
        pending=tuple(node for node in matched if not _serves(view, node, handler)),
        conflicting=dict(view.claims.lost.get(runtime.name, {})),
        others_default=dict(view.claims.lost_default.get(runtime.name, {})),
        stale=sum(_has_stale(view, node) for node in matched),
        ungoverned=sum(_ungoverned(view, node) for node in matched),
        unknown={node: names for node in matched if (names := _unknown(view, node, handler))},
        withheld={
            node: each
            for node in matched
            for each in _withheld(view, node)
            if each.name == handler and not _serves(view, node, handler)
        },
    )


def _withheld(view: View, node: str) -> tuple[WithheldHandler, ...]:
    """Return what the node cannot offer of the revision that it is to serve."""
    wanted, state = view.desired.get(node), view.states.get(node)
    status = state.status if state else None
    if wanted is None or status is None or status.revision is None:
        return ()
    return status.withheld_handlers if status.revision.digest == wanted.digest else ()


def _serves(view: View, node: str, handler: str) -> bool:
    wanted, state = view.desired.get(node), view.states.get(node)
    status = state.status if state else None
    if wanted is None or status is None or status.revision is None:
        return False
    return status.revision.digest == wanted.digest and handler in status.handlers


def _has_stale(view: View, node: str) -> bool:
    state = view.states.get(node)
    return bool(state and state.status and state.status.stale_containers)


def _ungoverned(view: View, node: str) -> int:
    state = view.states.get(node)
    return state.status.ungoverned_pods if state and state.status else 0


def _unknown(view: View, node: str, handler: str) -> tuple[str, ...]:
    state = view.states.get(node)
    told = state.status.unknown_syscalls if state and state.status else ()
    return next((each.names for each in told if each.handler == handler), ())


def _verdict(view: View, resolution: Resolution, nodes: _Nodes) -> _Verdict:
    runtime = resolution.runtime
    if runtime.deleting:
        return _deleting(view.in_use.get(runtime.name, ()), runtime)
    if resolution.stall:
        stall = resolution.stall
        return _Verdict(state="Stalled", reason=stall.reason, message=stall.message)
    if nodes.conflicting or nodes.others_default:
        return _conflict(runtime, nodes)
    if nodes.pending:
        return _missing(nodes) if nodes.withheld else _pending(view, nodes)
    if not nodes.matched:
        text = "no node matches the selector; nodes that come to match will serve it"
        return _Verdict(state="Ready", reason="NoMatchingNodes", message=text)
    count = _count(len(nodes.matched), "node")
    stale = (
        f"; {_count(nodes.stale, 'node')} with containers of an earlier revision, which keep "
        "what they were started with until they are made anew"
        if nodes.stale
        else ""
    )
    return _Verdict(
        state="Ready",
        reason="Served",
        message=f"served by {count}{_governs(runtime)}{stale}{_left_out(nodes)}"
        f"{_without_admission(view)}",
    )


def _governs(runtime: NodeRuntimeSeen) -> str:
    default = runtime.spec.default if runtime.spec else None
    if default is None:
        return ""
    exempt = _listed(sorted(default.exempt_namespaces)) or "none"
    return f", and governs Pods that name no handler there (exempt besides noderuntime's own: {exempt})"


def _without_admission(view: View) -> str:
    problem = view.observed.admission.problem
    return f"; Pods are judged on nodes alone, as {problem}" if problem else ""


def _left_out(nodes: _Nodes) -> str:
    if not nodes.unknown:
        return ""
    names = sorted({name for each in nodes.unknown.values() for name in each})
    return (
        f"; libseccomp of {_count(len(nodes.unknown), 'node')} does not know {_listed(names)}: the "
        "filter refuses them there"
    )


def _deleting(pods: Sequence[PodSeen], runtime: NodeRuntimeSeen) -> _Verdict:
    handler = runtime.spec.handler if runtime.spec else runtime.name
    if not pods:
        text = "nothing uses it any more: removing the RuntimeClass"
        return _Verdict(state="Reconciling", reason="Deleting", message=text)
    names = _listed([str(pod) for pod in pods])
    text = (
        f"deleted, and waiting for {_count(len(pods), 'Pod')} that {'uses' if len(pods) == 1 else 'use'} "
        f"handler {handler}: {names}; it goes when they are gone"
    )
    return _Verdict(state="Reconciling", reason="InUse", message=text)


def _conflict(runtime: NodeRuntimeSeen, nodes: _Nodes) -> _Verdict:
    if not nodes.conflicting:
        return _default_conflict(nodes)
    handler = runtime.spec.handler if runtime.spec else ""
    older = " and ".join(sorted(set(nodes.conflicting.values())))
    text = (
        f"handler {handler} is served by the older NodeRuntime {older} on "
        f"{_count(len(nodes.conflicting), 'node')} that this one selects too: "
        f"{_listed(sorted(nodes.conflicting))}; make the selectors disjoint or choose another handler"
    )
    return _Verdict(state="Stalled", reason="HandlerConflict", message=text)


def _default_conflict(nodes: _Nodes) -> _Verdict:
    older = " and ".join(sorted(set(nodes.others_default.values())))
    text = (
        f"default: Pods that name no handler are governed by the older NodeRuntime {older} on "
        f"{_count(len(nodes.others_default), 'node')} that this one selects too: "
        f"{_listed(sorted(nodes.others_default))}; its handler is served there for Pods that name it; "
        "remove default from one of them, or make the selectors disjoint"
    )
    return _Verdict(state="Stalled", reason="DefaultConflict", message=text)


def _missing(nodes: _Nodes) -> _Verdict:
    reasons = {each.reason for each in nodes.withheld.values()}
    said = [f"{node} ({each.message})" for node, each in sorted(nodes.withheld.items())]
    text = (
        f"served by {len(nodes.matched) - len(nodes.pending)} of "
        f"{_count(len(nodes.matched), 'node')}; not offered by {_listed(said)}"
    )
    state = "Reconciling" if reasons == {"ArtifactMissing"} else "Stalled"  # nodes try again
    reason = reasons.pop() if len(reasons) == 1 else "HandlersWithheld"
    return _Verdict(state=state, reason=reason, message=text)


def _pending(view: View, nodes: _Nodes) -> _Verdict:
    reasons = [f"{node} ({_why_pending(view, node)})" for node in nodes.pending]
    served = len(nodes.matched) - len(nodes.pending)
    text = f"served by {served} of {_count(len(nodes.matched), 'node')}; waiting for {_listed(reasons)}"
    return _Verdict(state="Reconciling", reason="Progressing", message=text)


def _why_pending(view: View, node: str) -> str:
    state = view.states.get(node)
    status = state.status if state else None
    if state is None or status is None or status.observed_generation < 0:
        return "its agent has not reported"
    for each in sorted(status.conditions, key=lambda each: each.type != "Ready"):
        if each.status != "True" and each.message and each.reason != "UnknownSyscalls":
            return each.message
    wanted = desired_name(view, node)
    return f"it does not serve revision {wanted} yet" if wanted else "it keeps its revision"


def _profile_status(view: View, profile: ProfileSeen, now: datetime) -> dict[str, Any]:
    users = sorted(
        each.name
        for each in view.observed.node_runtimes
        if each.spec and each.spec.security_profile_ref.name == profile.name
    )
    heirs = sorted(
        each.name
        for each in view.observed.profiles
        if each.spec and each.spec.inherits == profile.name
    )
    verdict = _profile_verdict(users, heirs)
    stall = view.profiles[profile.name].stall
    if stall is not None:
        verdict = _Verdict(state="Stalled", reason=stall.reason, message=stall.message)
    status: dict[str, Any] = {
        "observedGeneration": profile.generation,
        "conditions": [
            _condition(profile.status, profile.generation, verdict, kind, now)
            for kind in ("Ready", "Stalled")
        ],
    }
    return status | ({"usedBy": users[:_MOST_USERS]} if users else {})


def _profile_verdict(users: Sequence[str], heirs: Sequence[str]) -> _Verdict:
    if not users and not heirs:
        return _Verdict(state="Ready", reason="NotUsed", message="no NodeRuntime refers to it")
    parts = [f"used by {_listed(users)}"] if users else []
    parts += [f"inherited by {_listed(heirs)}"] if heirs else []
    return _Verdict(state="Ready", reason="InUse", message="; ".join(parts))


def _condition(
    live: Body, generation: int, verdict: _Verdict, kind: str, now: datetime
) -> dict[str, Any]:
    status = "True" if verdict.state == kind else "False"
    conditions: Sequence[Body] = live.get("conditions", ())
    nothing: Body = {}
    before = next((each for each in conditions if each.get("type") == kind), nothing)
    changed = now.isoformat(timespec="seconds").replace("+00:00", "Z")
    since = before.get("lastTransitionTime") if before.get("status") == status else changed
    told = kind == "Ready" or status == "True"
    return {
        "type": kind,
        "status": status,
        "observedGeneration": generation,
        "lastTransitionTime": since,
        "reason": verdict.reason,
        "message": verdict.message[:32768] if told else "",
    }


def _count(number: int, noun: str) -> str:
    return f"{number} {noun}" if number == 1 else f"{number} {noun}s"


def _listed(names: Sequence[str]) -> str:
    rest = len(names) - _NAMED
    return ", ".join(names[:_NAMED]) + (f" and {rest} more" if rest > 0 else "")
