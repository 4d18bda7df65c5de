"""Each NodeRuntime with its profile, as the handler that nodes are to serve, or why it is stalled.

A profile goes to nodes resolved (with what it inherits) and only if a node could compile it.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from noderuntime.api.revision import RevisionHandler, RevisionProfile
from noderuntime.api.securityprofile import SecurityProfileSpec
from noderuntime.errors import ConfigError
from noderuntime.policy import inherit
from noderuntime_operator.reconcile.observed import (
    NodeRuntimeSeen,
    Observed,
    ProfileSeen,
    RuntimeClassSeen,
)


@dataclass(frozen=True, slots=True, kw_only=True)
class Stall:
    """Why a person has to act: a CamelCase reason and a sentence."""

    reason: str
    message: str


@dataclass(frozen=True, slots=True, kw_only=True)
class Resolution:
    """``handler`` is None where it cannot be composed: nodes then keep what they have of it."""

    runtime: NodeRuntimeSeen
    handler: RevisionHandler | None = None
    profile_generation: int = 0
    stall: Stall | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class ResolvedProfile:
    """``spec`` has all that it inherits; it is None where there is a stall."""

    generation: int
    spec: SecurityProfileSpec | None = None
    stall: Stall | None = None


def resolve_profiles(observed: Observed) -> dict[str, ResolvedProfile]:
    """Resolve every SecurityProfile, by name."""
    specs = {profile.name: profile.spec for profile in observed.profiles}
    return {profile.name: _resolve_profile(profile, specs) for profile in observed.profiles}


def _resolve_profile(
    profile: ProfileSeen, specs: Mapping[str, SecurityProfileSpec | None]
) -> ResolvedProfile:
    if profile.spec is None:
        text = f"this operator cannot read the spec: {profile.problem}"
        stall = Stall(reason="InvalidSpec", message=text)
        return ResolvedProfile(generation=profile.generation, stall=stall)
    try:
        spec = inherit.resolve(profile.name, specs)
        inherit.check(profile.name, spec)
    except ConfigError as error:
        reason = "ProfileInvalid" if profile.spec.inherits is None else "InheritanceInvalid"
        stall = Stall(reason=reason, message=str(error))
        return ResolvedProfile(generation=profile.generation, stall=stall)
    return ResolvedProfile(generation=profile.generation, spec=spec)


def resolve(observed: Observed, profiles: Mapping[str, ResolvedProfile]) -> dict[str, Resolution]:
    """Resolve every NodeRuntime, by name."""
    classes = {each.name: each for each in observed.runtime_classes}
    return {
        runtime.name: _resolve_one(runtime, profiles, classes) for runtime in observed.node_runtimes
    }


def _resolve_one(
    runtime: NodeRuntimeSeen,
    profiles: Mapping[str, ResolvedProfile],
    classes: Mapping[str, RuntimeClassSeen],
) -> Resolution:
    if runtime.spec is None:
        message = (
            f"this operator cannot read the spec, nodes keep what they serve: {runtime.problem}"
        )
        return Resolution(runtime=runtime, stall=Stall(reason="InvalidSpec", message=message))
    wanted = runtime.spec.security_profile_ref.name
    profile = profiles.get(wanted)
    if profile is None or profile.spec is None:
        return Resolution(runtime=runtime, stall=_without_profile(wanted, profile))
    handler = RevisionHandler(
        name=runtime.spec.handler,
        node_runtime=runtime.name,
        oci_runtime=runtime.spec.engine.oci_runtime,
        cni_conf_dir=runtime.spec.engine.cni_conf_dir,
        profile=RevisionProfile(name=wanted, spec=profile.spec),
        allowed_registries=runtime.spec.images.allowed_registries,
        resources=runtime.spec.resources,
        tracing=runtime.spec.tracing,
    )
    return Resolution(
        runtime=runtime,
        handler=handler,
        profile_generation=profile.generation,
        stall=_foreign_class(classes.get(handler.name)),
    )


def _without_profile(name: str, profile: ResolvedProfile | None) -> Stall:
    if profile is None or profile.stall is None:
        text = f"SecurityProfile {name} does not exist; nodes keep the revision that they serve"
        return Stall(reason="ProfileNotFound", message=text)
    text = f"SecurityProfile {name} is stalled, nodes keep what they serve: {profile.stall.message}"
    return Stall(reason="ProfileInvalid", message=text)


def _foreign_class(found: RuntimeClassSeen | None) -> Stall | None:
    if found is None or found.owned:
        return None
    text = (
        f"RuntimeClass {found.name} exists and was not made by noderuntime, so it is left alone; "
        "delete it, or choose another handler"
    )
    return Stall(reason="RuntimeClassConflict", message=text)
