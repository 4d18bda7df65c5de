"""What every node is to serve: all that the steps and the status are made from, computed once a pass."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from noderuntime.api.revision import Revision, RevisionDefault, RevisionHandler, make_revision
from noderuntime_operator.reconcile import claims as claiming
from noderuntime_operator.reconcile.claims import Claims
from noderuntime_operator.reconcile.names import revision_name
from noderuntime_operator.reconcile.observed import Observed, PodSeen, StateSeen
from noderuntime_operator.reconcile.resolve import (
    Resolution,
    ResolvedProfile,
    resolve,
    resolve_profiles,
)

EMPTY = make_revision(())


@dataclass(frozen=True, slots=True, kw_only=True)
class View:
    """``desired`` has the revision of each node that is to serve something, or None: it keeps its own."""

    observed: Observed
    profiles: Mapping[str, ResolvedProfile]
    resolutions: Mapping[str, Resolution]
    in_use: Mapping[str, tuple[PodSeen, ...]]
    released: frozenset[str]
    claims: Claims
    desired: Mapping[str, Revision | None]
    states: Mapping[str, StateSeen]

    @property
    def draining(self) -> tuple[StateSeen, ...]:
        """Return the states of nodes that are there and are to serve nothing any more."""
        nodes = {node.name for node in self.observed.nodes}
        return tuple(
            state
            for state in self.observed.states
            if state.name in nodes and state.name not in self.desired
        )


def view_of(observed: Observed) -> View:
    """Resolve, claim, compose."""
    profiles = resolve_profiles(observed)
    resolutions = resolve(observed, profiles)
    everyone = claiming.claim(observed.node_runtimes, observed.nodes)
    in_use = claiming.uses(observed, everyone)
    gone = claiming.released(observed, in_use)
    staying = [each for each in observed.node_runtimes if each.name not in gone]
    claims = claiming.claim(staying, observed.nodes) if gone else everyone
    states = {state.name: state for state in observed.states}
    return View(
        observed=observed,
        profiles=profiles,
        resolutions=resolutions,
        in_use=in_use,
        released=gone,
        claims=claims,
        desired=_Composer(observed, resolutions, gone, states).compose(claims),
        states=states,
    )


class _Composer:
    """Composes a revision a node; nodes with the same handlers share one."""

    def __init__(
        self,
        observed: Observed,
        resolutions: Mapping[str, Resolution],
        released: frozenset[str],
        states: Mapping[str, StateSeen],
    ) -> None:
        self._states = states
        self._resolutions = resolutions
        self._revisions = {each.name: each.revision for each in observed.revisions}
        self._unreadable = [
            each.name
            for each in claiming.by_age(observed.node_runtimes)
            if each.spec is None and each.name not in released
        ]
        self._namespace = observed.settings.namespace
        self._made: dict[tuple[tuple[tuple[str, str], ...], RevisionDefault | None], Revision] = {}

    def compose(self, claims: Claims) -> dict[str, Revision | None]:
        """Return what each node is to serve; a node that is to serve nothing is not in it."""
        out: dict[str, Revision | None] = {}
        for node, winners in claims.by_node.items():
            parts, complete = self._parts(node, winners)
            if not complete and self._current(node) is None and node in self._states:
                out[node] = None  # what it serves cannot be read: better the old than a part
            elif parts:
                out[node] = self._revision(parts, self._default(node, parts, claims))
        return out

    def _parts(
        self, node: str, winners: tuple[str, ...]
    ) -> tuple[dict[tuple[str, str], RevisionHandler], bool]:
        """Return the handlers, keyed by NodeRuntime and where each is from, and whether none was missing."""
        parts: dict[tuple[str, str], RevisionHandler] = {}
        taken: set[str] = set()
        complete = not self._unreadable
        for name in (*winners, *self._unreadable):
            handler, source = self._resolutions[name].handler, ""
            if handler is None:
                complete = False
                handler, source = self._previous(node, name), self._states_revision(node)
            if handler is not None and handler.name not in taken:
                taken.add(handler.name)
                parts[name, source] = handler
        return parts, complete

    def _default(
        self, node: str, parts: dict[tuple[str, str], RevisionHandler], claims: Claims
    ) -> RevisionDefault | None:
        """Return who governs Pods without a handler; one that cannot be composed keeps what it was told.

        Our own namespace is always exempt: a node must be able to run the agent that repairs it.
        """
        current = self._current(node)
        previous = current.default if current else None
        for (name, source), handler in parts.items():
            if source:
                if previous is not None and previous.handler == handler.name:
                    return previous
            elif claims.defaults.get(node) == name:
                spec = self._resolutions[name].runtime.spec
                declared = spec.default.exempt_namespaces if spec and spec.default else ()
                exempt = tuple(sorted({*declared, self._namespace}))
                return RevisionDefault(handler=handler.name, exempt_namespaces=exempt)
        return None

    def _revision(
        self, parts: dict[tuple[str, str], RevisionHandler], default: RevisionDefault | None
    ) -> Revision:
        key = (tuple(sorted(parts)), default)
        if key not in self._made:
            self._made[key] = make_revision(tuple(parts.values()), default)
        return self._made[key]

    def _states_revision(self, node: str) -> str:
        state = self._states.get(node)
        return state.spec.revision.name if state and state.spec else ""

    def _current(self, node: str) -> Revision | None:
        return self._revisions.get(self._states_revision(node))

    def _previous(self, node: str, name: str) -> RevisionHandler | None:
        current = self._current(node)
        handlers = current.handlers if current else ()
        return next((each for each in handlers if each.node_runtime == name), None)


def desired_name(view: View, node: str) -> str:
    """Return the name of the revision that the node is to serve; empty where it keeps its own."""
    revision = view.desired.get(node)
    return revision_name(revision.digest) if revision else ""
