"""What a change does to NodeRuntimes and SecurityProfiles, object by object."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Literal

from noderuntime.api.model import ApiModel
from noderuntime.api.securityprofile import SecurityProfileSpec
from noderuntime.cli.planning import difference
from noderuntime.cli.planning.difference import Change
from noderuntime.cli.planning.rules import Compiled, Runtime, State
from noderuntime.policy.features import HostFeatures, missing_features


@dataclass(frozen=True, slots=True, kw_only=True)
class ObjectChange:
    """``affected`` is a NodeRuntime that stays as it is, while its profile, or a base, does not."""

    kind: str
    name: str
    change: Literal["added", "changed", "removed", "affected"]
    fields: tuple[Change, ...] = ()
    notes: tuple[str, ...] = ()


def object_changes(
    before: State, after: State, present: Compiled, planned: Compiled
) -> tuple[ObjectChange, ...]:
    """Return what is new, changed, removed or affected: NodeRuntimes, then profiles."""
    runtimes = {each.name: each for each in _of("NodeRuntime", before.runtimes, after.runtimes)}
    old = {each.name: each for each in present.runtimes}
    for runtime in planned.runtimes:
        was, own = old.get(runtime.name), runtimes.get(runtime.name)
        touched = was is None or not was.same_rules(runtime)
        if not touched and own is None:
            continue
        notes = tuple(_demands(was, runtime))
        if own is None:
            notes = (f"through SecurityProfile {runtime.spec.security_profile_ref.name}", *notes)
        runtimes[runtime.name] = ObjectChange(
            kind="NodeRuntime",
            name=runtime.name,
            change="affected" if own is None else own.change,
            fields=() if own is None else own.fields,
            notes=notes,
        )
    profiles = _of("SecurityProfile", before.profiles, after.profiles)
    return (*(runtimes[name] for name in sorted(runtimes)), *profiles)


def immutable(before: State, after: State) -> Iterator[str]:
    """Yield what the API server would refuse to change."""
    for name, spec in after.runtimes.items():
        was = before.runtimes.get(name)
        if spec is not None and was is not None and spec.handler != was.handler:
            yield (
                f"NodeRuntime {name}: spec.handler: {was.handler} cannot become {spec.handler}: make "
                "another NodeRuntime with the new handler, move the Pods, then delete this one"
            )


def _of(
    kind: str, before: Mapping[str, ApiModel | None], after: Mapping[str, ApiModel | None]
) -> Iterator[ObjectChange]:
    for name in sorted({*before, *after}):
        if name not in before:
            yield ObjectChange(kind=kind, name=name, change="added")
        elif name not in after:
            yield ObjectChange(kind=kind, name=name, change="removed")
        else:
            found = tuple(difference.changes(_document(before[name]), _document(after[name])))
            if found:
                yield ObjectChange(kind=kind, name=name, change="changed", fields=found)


def _document(spec: ApiModel | None) -> dict[str, object]:
    """Return a spec with every default; of a profile that inherits, with what it says itself.

    There a default that is written out is not the same as one that is left to the base.
    """
    if spec is None:
        return {}
    inherits = isinstance(spec, SecurityProfileSpec) and spec.inherits is not None
    own = spec.model_dump(mode="json", by_alias=True, exclude_none=True, exclude_unset=inherits)
    return {"mode": spec.mode, **own} if isinstance(spec, SecurityProfileSpec) else own


def _demands(was: Runtime | None, runtime: Runtime) -> Iterator[str]:
    """Yield which features of a kernel it demands from now on."""
    known = set[str]()
    if was is not None and was.rules is not None:
        known = {each.feature for each in missing_features(was.rules, HostFeatures())}
    if runtime.rules is None:
        return
    for need in missing_features(runtime.rules, HostFeatures()):
        if need.feature not in known:
            yield f"{need.section} demands {need.feature}: a node without it no longer offers the handler"
