"""SecurityProfiles and NodeRuntimes of files, resolved as the operator resolves those of a cluster.

Every fault is a ConfigError that names the file, the object and the field.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, TypeVar, cast

from noderuntime.api.model import API_VERSION, ApiModel
from noderuntime.api.noderuntime import NodeRuntimeSpec
from noderuntime.api.revision import RevisionHandler, RevisionProfile, digest_of
from noderuntime.api.securityprofile import SecurityProfileSpec
from noderuntime.cli.manifest.model import Metadata
from noderuntime.cli.manifest.workloads import documents, parsed
from noderuntime.errors import ConfigError
from noderuntime.policy import inherit
from noderuntime.policy.denial import printable
from noderuntime.policy.load import rules_of
from noderuntime.policy.rules import HandlerRules

_Spec = TypeVar("_Spec", bound=ApiModel)


@dataclass(frozen=True, slots=True, kw_only=True)
class Declared:
    """What the files declare, by name."""

    profiles: Mapping[str, SecurityProfileSpec]
    runtimes: Mapping[str, NodeRuntimeSpec]


def read(files: Mapping[str, bytes]) -> Declared:
    """Read all profiles and NodeRuntimes of the files, by their names."""
    profiles: dict[str, SecurityProfileSpec] = {}
    runtimes: dict[str, NodeRuntimeSpec] = {}
    for file, data in files.items():
        for document in documents(file, data):
            body = cast("Mapping[str, Any]", document if isinstance(document, dict) else {})
            if body.get("kind") == "SecurityProfile":
                _put(profiles, SecurityProfileSpec, file, body)
            elif body.get("kind") == "NodeRuntime":
                _put(runtimes, NodeRuntimeSpec, file, body)
    return Declared(profiles=profiles, runtimes=runtimes)


def rules(declared: Declared, profile: str, runtime: str) -> HandlerRules:
    """Compile a profile as a node would serve it, through a NodeRuntime where one is named ("")."""
    return compiled(profile, declared.profiles, runtime, declared.runtimes.get(runtime))


def compiled(
    profile: str,
    profiles: Mapping[str, SecurityProfileSpec | None],
    runtime: str,
    found: NodeRuntimeSpec | None,
) -> HandlerRules:
    """Compile a profile for a NodeRuntime, None for none; ``profiles`` as in ``inherit.resolve``.

    Raises ConfigError for what an operator would tell as Stalled.
    """
    made = handler(profile, profiles, runtime, found)
    return rules_of(made, digest_of((made,)))


def handler(
    profile: str,
    profiles: Mapping[str, SecurityProfileSpec | None],
    runtime: str,
    found: NodeRuntimeSpec | None,
) -> RevisionHandler:
    """Return the handler of a revision that the operator would make of them. Raises ConfigError."""
    spec = inherit.resolve(profile, profiles)
    inherit.check(profile, spec)
    revised = RevisionProfile(name=profile, spec=spec)
    if found is None:
        return RevisionHandler(name=profile, node_runtime=profile, profile=revised)
    return RevisionHandler(
        name=found.handler,
        node_runtime=runtime,
        oci_runtime=found.engine.oci_runtime,
        profile=revised,
        allowed_registries=found.images.allowed_registries,
        resources=found.resources,
    )


def chosen_profile(declared: Declared, wanted: str, runtime: str) -> str:
    """Return the profile that is meant: the named one, the NodeRuntime's, or the only one.

    Of several it is the one that no other inherits from.
    """
    if wanted:
        return wanted
    if runtime:
        return declared.runtimes[runtime].security_profile_ref.name
    bases = {spec.inherits for spec in declared.profiles.values()}
    heirs = [name for name in declared.profiles if name not in bases] or [*declared.profiles]
    if not heirs:
        raise ConfigError("--profile: the files hold no SecurityProfile")
    if len(heirs) > 1:
        raise ConfigError(
            f"--profile: the files hold several SecurityProfiles ({', '.join(sorted(heirs))}); say "
            "which with --profile-name"
        )
    return heirs[0]


def chosen_runtime(declared: Declared, handler: str | None, namespace: str) -> str:
    """Return the NodeRuntime's name, "" where none is; of several the Pod's, by handler or default."""
    names = [*declared.runtimes]
    if len(names) > 1:
        names = [name for name in names if _governs(declared.runtimes[name], handler, namespace)]
        if len(names) != 1:
            meant = "" if handler else ", nor one whose default governs it"
            raise ConfigError(
                f"--node-runtime: the files hold {len(declared.runtimes)} NodeRuntimes, and "
                f"{len(names)} of them with the Pod's runtimeClassName, {handler or 'none'}{meant}"
            )
    return names[0] if names else ""


def note_on_default(
    declared: Declared, runtime: str, handler: str | None, namespace: str
) -> tuple[str, ...]:
    """Say of a Pod that names no handler whether the NodeRuntime ("" is none) governs it at all."""
    found = declared.runtimes.get(runtime)
    if found is None or handler:
        return ()
    if found.default is None:
        why = f"NodeRuntime {runtime} has no default"
    elif namespace in found.default.exempt_namespaces:
        why = f"its namespace {namespace} is exempt from the default of NodeRuntime {runtime}"
    else:
        said = f"it names no runtimeClassName: the default of NodeRuntime {runtime} governs it"
        return (said,)
    said = f"it names no runtimeClassName, and {why}: without one it would run under no profile"
    return (said,)


def _governs(runtime: NodeRuntimeSpec, handler: str | None, namespace: str) -> bool:
    if handler:
        return runtime.handler == handler
    return runtime.default is not None and namespace not in runtime.default.exempt_namespaces


def _put(into: dict[str, _Spec], model: type[_Spec], file: str, body: Mapping[str, Any]) -> None:
    kind = str(body["kind"])
    name = parsed(Metadata, body.get("metadata") or {}, f"{file}: {kind}", "metadata").name
    if name is None:
        raise ConfigError(f"{file}: {kind}: metadata.name: is required")
    if body.get("apiVersion") != API_VERSION:
        said = printable(str(body.get("apiVersion")), 60)
        raise ConfigError(f"{file}: {kind} {name}: apiVersion: {said} is not {API_VERSION}")
    if name in into:
        raise ConfigError(f"{file}: {kind} {name} is there twice")
    into[name] = parsed(model, body.get("spec") or {}, f"{file}: {kind} {name}", "spec")
