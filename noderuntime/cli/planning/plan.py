"""The plan: the objects that change, and what becomes of each Pod, those of a workload as one.

Pods are read one after the other; what is kept is one entry for a workload to which something happens,
so that a cluster of any size is planned in bounded memory.
"""

from __future__ import annotations

from collections import Counter, OrderedDict
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Final

from noderuntime.cli.explaining.declared import Declared
from noderuntime.cli.planning import objects, pods, rules
from noderuntime.cli.planning.cluster import Cluster, Kind
from noderuntime.cli.planning.compare import Moment, Outcome, Result, compare
from noderuntime.cli.planning.objects import ObjectChange
from noderuntime.cli.planning.pods import Governors, Seen
from noderuntime.cli.planning.rules import Compiled, Runtime, State
from noderuntime.errors import ConfigError

MOST_GROUPS: Final = 5000
_NAMES: Final = 3  # of a workload's Pods, as examples
_REMEMBERED: Final = 2048  # outcomes of Pods that are alike


@dataclass(slots=True, kw_only=True)
class Group:
    """Pods of one workload to which the same happens."""

    namespace: str
    kind: str
    workload: str
    outcome: Outcome
    count: int = 0
    names: list[str] = field(default_factory=list[str])


@dataclass(frozen=True, slots=True, kw_only=True)
class Plan:
    """``counts`` has every Pod that is, or would be, governed; ``groups`` those that are not the same.

    ``untold`` Pods are counted, and in no group, as there were too many.
    """

    objects: tuple[ObjectChange, ...]
    notes: tuple[str, ...]
    groups: tuple[Group, ...]
    counts: Mapping[Result, int]
    untold: int = 0


async def make(
    cluster: Cluster, files: Declared, namespace: str, moment: Moment, *, prune: bool
) -> Plan:
    """Ask the cluster and judge. Raises UnavailableError, and ConfigError for a change that is wrong.

    Each further fault of the change is a note on the first.
    """
    before = await _present(cluster)
    after = rules.applied(before, files, prune=prune)
    present, planned = rules.compile_all(before), rules.compile_all(after)
    _refuse(files, before, after, present, planned)
    classes = {
        str(each["metadata"]["name"]): str(each.get("handler", ""))
        async for each in cluster.items(Kind.RUNTIME_CLASS)
    }
    labels = await _labels(cluster, (*present.runtimes, *planned.runtimes))
    judges = _Judges(
        present=Governors(present.runtimes, classes, labels),
        planned=Governors(planned.runtimes, classes, labels),
        moment=moment,
    )
    async for body in cluster.items(Kind.POD, namespace):
        if (pod := pods.seen(body)) is not None:
            judges.add(pod)
    stalled = (said for title, said in planned.stalls.items() if title in present.stalls)
    return Plan(
        objects=objects.object_changes(before, after, present, planned),
        notes=(*before.unreadable, *(f"stalled already: {said}" for said in stalled)),
        groups=tuple(judges.sorted()),
        counts=judges.counts,
        untold=judges.untold,
    )


async def _present(cluster: Cluster) -> State:
    return rules.seen(
        [each async for each in cluster.items(Kind.NODE_RUNTIME)],
        [each async for each in cluster.items(Kind.SECURITY_PROFILE)],
    )


async def _labels(cluster: Cluster, runtimes: tuple[Runtime, ...]) -> dict[str, Mapping[str, str]]:
    """Return each node's labels; none where every NodeRuntime selects every node."""
    selectors = (each.spec.node_selector for each in runtimes)
    if not any(each.match_labels or each.match_expressions for each in selectors):
        return {}
    found = cluster.items(Kind.NODE)
    return {
        str(each["metadata"]["name"]): each["metadata"].get("labels") or {} async for each in found
    }


def _refuse(
    files: Declared, before: State, after: State, present: Compiled, planned: Compiled
) -> None:
    """Raise ConfigError where the change would be refused, or stall what it touches."""
    own = {f"SecurityProfile {name}" for name in files.profiles}
    own |= {f"NodeRuntime {name}" for name in files.runtimes}
    faults = [*objects.immutable(before, after)]
    faults += [
        said
        for title, said in planned.stalls.items()
        if title in own or said != present.stalls.get(title)
    ]
    if faults:
        error = ConfigError(faults[0])
        for each in faults[1:]:
            error.add_note(each)
        raise error


@dataclass(slots=True, kw_only=True)
class _Judges:
    """Everything that is found out of Pods."""

    present: Governors
    planned: Governors
    moment: Moment
    counts: Counter[Result] = field(default_factory=Counter[Result])
    untold: int = 0
    _groups: dict[tuple[object, ...], Group] = field(
        default_factory=dict[tuple[object, ...], Group]
    )
    _known: OrderedDict[tuple[str, ...], Outcome] = field(
        default_factory=OrderedDict[tuple[str, ...], Outcome]
    )

    def add(self, pod: Seen) -> None:
        """Judge one Pod, if anything governs it or would."""
        present, planned = self.present.of(pod), self.planned.of(pod)
        if present is None and planned is None:
            return
        try:
            outcome = self._outcome(pod, present, planned)
        except ConfigError as error:
            said = str(error).removeprefix(f"Pod {pod.namespace}/{pod.name}: ")
            outcome = Outcome(result=Result.UNJUDGED, says=(said,))
        self.counts[outcome.result] += 1
        if outcome.result is not Result.SAME:
            self._put(pod, outcome)

    def sorted(self) -> list[Group]:
        """Return the groups, the worst first."""
        order = list(Result)
        return sorted(
            self._groups.values(),
            key=lambda g: (order.index(g.outcome.result), g.namespace, g.kind, g.workload),
        )

    def _outcome(self, pod: Seen, present: Runtime | None, planned: Runtime | None) -> Outcome:
        if planned is None:
            lost = "" if present is None else present.name
            says = (_why_lost(pod, lost, self.planned),)
            return Outcome(result=Result.LOST, node_runtime=lost, says=says)
        if present is not None and present.same_rules(planned):
            return Outcome(result=Result.SAME)
        workload = pod.workload()
        governed = ("" if present is None else present.name, planned.name)
        key = (pod.namespace, *governed, pods.fingerprint(workload.pod))
        outcome = self._known.get(key)
        if outcome is None:
            outcome = compare(workload, present, planned, self.moment)
            if len(self._known) == _REMEMBERED:
                self._known.popitem(last=False)
            self._known[key] = outcome
        return outcome

    def _put(self, pod: Seen, outcome: Outcome) -> None:
        key = (pod.namespace, pod.owner_kind, pod.owner, outcome)
        group = self._groups.get(key)
        if group is None:
            if len(self._groups) == MOST_GROUPS:
                self.untold += 1
                return
            group = self._groups[key] = Group(
                namespace=pod.namespace, kind=pod.owner_kind, workload=pod.owner, outcome=outcome
            )
        group.count += 1
        if len(group.names) < _NAMES:
            group.names.append(pod.name)


def _why_lost(pod: Seen, runtime: str, planned: Governors) -> str:
    if not planned.serves(pod):
        return (
            f"NodeRuntime {runtime} is removed, and nothing else serves {pod.runtime_class}: Pods keep "
            "it until the last one has gone, and none is started anew"
        )
    where = f"node {pod.node}" if pod.node else "any node"
    return f"NodeRuntime {runtime} no longer selects {where}, so {pod.runtime_class} is not served there"
