"""NodeRuntimes and SecurityProfiles as they are in the cluster, and as the files would make them.

What is Stalled, as the operator would say of it, has no rules; nodes then keep what they serve.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field, replace
from typing import Final, TypeVar

from pydantic import ValidationError

from noderuntime.api.model import ApiModel
from noderuntime.api.noderuntime import NodeRuntimeSpec
from noderuntime.api.securityprofile import SecurityProfileSpec
from noderuntime.cli.explaining.declared import Declared, compiled
from noderuntime.cli.planning.cluster import Body
from noderuntime.errors import ConfigError
from noderuntime.policy import inherit
from noderuntime.policy.denial import printable
from noderuntime.policy.rules import HandlerRules

NEWEST: Final = "~"  # sorts behind every time
_Spec = TypeVar("_Spec", bound=ApiModel)


@dataclass(frozen=True, slots=True, kw_only=True)
class Runtime:
    """A NodeRuntime with its profile. ``rules`` is None where it is Stalled; ``problem`` says why."""

    name: str
    created: str  # RFC 3339, so it sorts as text
    spec: NodeRuntimeSpec
    rules: HandlerRules | None = None
    problem: str = ""

    def same_rules(self, other: Runtime) -> bool:
        """Tell whether Pods run under both in the same way; the revision and names aside."""
        if self.rules is None or other.rules is None:
            return self.rules is other.rules
        engines = self.spec.engine == other.spec.engine
        return engines and _nameless(self.rules) == _nameless(other.rules)


def _nameless(rules: HandlerRules) -> HandlerRules:
    return replace(rules, revision="", node_runtime="", profile="")


@dataclass(frozen=True, slots=True, kw_only=True)
class State:
    """All of them, by name; None is one that this version cannot read, told in ``unreadable``."""

    profiles: Mapping[str, SecurityProfileSpec | None]
    runtimes: Mapping[str, NodeRuntimeSpec | None]
    created: Mapping[str, str] = field(default_factory=dict[str, str])  # of NodeRuntimes
    unreadable: tuple[str, ...] = ()


def seen(runtimes: Iterable[Body], profiles: Iterable[Body]) -> State:
    """Read what the cluster has."""
    unreadable: list[str] = []
    own_runtimes, created = dict[str, NodeRuntimeSpec | None](), dict[str, str]()
    for body in runtimes:
        name = str(body["metadata"]["name"])
        created[name] = str(body["metadata"].get("creationTimestamp", ""))
        own_runtimes[name] = _read(NodeRuntimeSpec, f"NodeRuntime {name}", body, unreadable)
    own_profiles = {
        str(body["metadata"]["name"]): _read(
            SecurityProfileSpec, f"SecurityProfile {body['metadata']['name']}", body, unreadable
        )
        for body in profiles
    }
    return State(
        profiles=own_profiles,
        runtimes=own_runtimes,
        created=created,
        unreadable=tuple(unreadable),
    )


def _read(model: type[_Spec], title: str, body: Body, unreadable: list[str]) -> _Spec | None:
    try:
        return model.model_validate(body.get("spec"))
    except ValidationError as error:
        first = error.errors(include_url=False)[0]
        where = printable(".".join(map(str, first["loc"])) or "spec", 200)
        unreadable.append(
            f"{title} cannot be read by this version: {where}: {first['msg'].lower()}"
        )
        return None


def applied(present: State, files: Declared, *, prune: bool) -> State:
    """Return what there is when the files have been applied; what they lack stays, or is pruned."""
    kept = State(profiles={}, runtimes={}) if prune else present
    return State(
        profiles={**kept.profiles, **files.profiles},
        runtimes={**kept.runtimes, **files.runtimes},
        created=present.created,
    )


@dataclass(frozen=True, slots=True, kw_only=True)
class Compiled:
    """The NodeRuntimes as nodes serve them, oldest first; ``stalls`` by kind and name."""

    runtimes: tuple[Runtime, ...]
    stalls: Mapping[str, str]


def compile_all(state: State) -> Compiled:
    """Compile each profile alone and through each NodeRuntime, as the operator does."""
    stalls: dict[str, str] = {}
    for name, spec in state.profiles.items():
        if spec is not None:
            try:
                inherit.check(name, inherit.resolve(name, state.profiles))
            except ConfigError as error:
                stalls[f"SecurityProfile {name}"] = str(error)
    runtimes: list[Runtime] = []
    for name, found in state.runtimes.items():
        if found is not None:
            made = _compile(name, found, state)
            if made.problem and made.problem not in stalls.values():
                stalls[f"NodeRuntime {name}"] = f"NodeRuntime {name}: {made.problem}"
            runtimes.append(made)
    runtimes.sort(key=lambda each: (each.created, each.name))
    return Compiled(runtimes=tuple(runtimes), stalls=stalls)


def _compile(name: str, found: NodeRuntimeSpec, state: State) -> Runtime:
    made = Runtime(name=name, created=state.created.get(name, NEWEST), spec=found)
    try:
        rules = compiled(found.security_profile_ref.name, state.profiles, name, found)
    except ConfigError as error:
        return replace(made, problem=str(error))
    return replace(made, rules=rules)
