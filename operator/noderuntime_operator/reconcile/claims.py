"""Who serves which handler on which node, and what is still in use. The older NodeRuntime wins."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass

from noderuntime.api.selection import matches
from noderuntime_operator.reconcile.observed import (
    NodeRuntimeSeen,
    NodeSeen,
    Observed,
    PodSeen,
)


@dataclass(frozen=True, slots=True, kw_only=True)
class Claims:
    """The outcome for every NodeRuntime, by name; nodes by name."""

    won: Mapping[str, tuple[str, ...]]
    lost: Mapping[
        str, Mapping[str, str]
    ]  # node -> the older NodeRuntime that serves the handler there
    by_node: Mapping[str, tuple[str, ...]]  # node -> NodeRuntimes that won on it
    defaults: Mapping[str, str]  # node -> the one of these that governs Pods that name no handler
    lost_default: Mapping[str, Mapping[str, str]]  # as lost: the older one that governs them there


def by_age(runtimes: Iterable[NodeRuntimeSeen]) -> list[NodeRuntimeSeen]:
    """Sort oldest first; of the same second, by name."""
    return sorted(runtimes, key=lambda runtime: (runtime.created, runtime.name))


def claim(runtimes: Iterable[NodeRuntimeSeen], nodes: Iterable[NodeSeen]) -> Claims:
    """Give each handler of each node, and its default, to the oldest NodeRuntime that selects it."""
    ordered = [(runtime, runtime.spec) for runtime in by_age(runtimes) if runtime.spec is not None]
    won: dict[str, list[str]] = {runtime.name: [] for runtime, _ in ordered}
    lost: dict[str, dict[str, str]] = {runtime.name: {} for runtime, _ in ordered}
    by_node: dict[str, tuple[str, ...]] = {}
    wants = {runtime.name for runtime, spec in ordered if spec.default is not None}
    defaults: dict[str, str] = {}
    lost_default: dict[str, dict[str, str]] = {name: {} for name in wants}
    for node in nodes:
        holders: dict[str, str] = {}
        for runtime, spec in ordered:
            if not matches(spec.node_selector, node.labels):
                continue
            holder = holders.setdefault(spec.handler, runtime.name)
            if holder == runtime.name:
                won[runtime.name].append(node.name)
            else:
                lost[runtime.name][node.name] = holder
        by_node[node.name] = winners = tuple(holders.values())
        for name in (each for each in winners if each in wants):
            holder = defaults.setdefault(node.name, name)
            if holder != name:
                lost_default[name][node.name] = holder
    return Claims(
        won={name: tuple(names) for name, names in won.items()},
        lost=lost,
        by_node=by_node,
        defaults=defaults,
        lost_default=lost_default,
    )


def handler_of(runtime: NodeRuntimeSeen, observed: Observed) -> str:
    """Return its handler; of an unreadable one, what its RuntimeClass says, or nothing."""
    if runtime.spec is not None:
        return runtime.spec.handler
    owned = (each for each in observed.runtime_classes if each.owned and each.owner == runtime.name)
    return next((each.handler for each in owned), "")


def uses(observed: Observed, claims: Claims) -> dict[str, tuple[PodSeen, ...]]:
    """Return, for each NodeRuntime that is being deleted, the Pods that still need it.

    A Pod on a node that another NodeRuntime serves does not need this one; a Pod that has no node yet
    needs it where nobody else has the handler.
    """
    out: dict[str, tuple[PodSeen, ...]] = {}
    for runtime in observed.node_runtimes:
        if not runtime.deleting:
            continue
        handler = handler_of(runtime, observed)
        others = [
            each
            for each in observed.node_runtimes
            if each.name != runtime.name and handler_of(each, observed) == handler
        ]
        served_by_others = {node for each in others for node in claims.won.get(each.name, ())}
        alone = all(each.deleting for each in others)
        own = set(claims.won.get(runtime.name, ()))
        names = {each.name for each in observed.runtime_classes if each.handler == handler}
        out[runtime.name] = tuple(
            pod
            for pod in observed.pods
            if pod.runtime_class in names | {handler}
            and (pod.node in own or (alone and pod.node not in served_by_others))
        )
    return out


def released(observed: Observed, in_use: Mapping[str, tuple[PodSeen, ...]]) -> frozenset[str]:
    """Return the deleted NodeRuntimes that nothing holds back: no Pod, and no RuntimeClass to remove first."""
    present = [each for each in observed.node_runtimes if is_present(each, in_use)]
    kept = {handler_of(each, observed) for each in present}
    classes = {each.handler for each in observed.runtime_classes if each.owned}
    return frozenset(
        runtime.name
        for runtime in observed.node_runtimes
        if not is_present(runtime, in_use) and handler_of(runtime, observed) not in (classes - kept)
    )


def is_present(runtime: NodeRuntimeSeen, in_use: Mapping[str, tuple[PodSeen, ...]]) -> bool:
    """Tell whether it still counts: not deleted, or deleted while Pods need it."""
    return not runtime.deleting or bool(in_use.get(runtime.name))
