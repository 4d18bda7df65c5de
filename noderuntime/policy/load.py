"""From a handler of a revision to the rules that decisions read: parsed and checked once.

Lists are sorted, so that the order in a file changes nothing. What cannot be meant is an error,
never ignored: a deny of a system call that does not exist would protect nothing. Raises
``ConfigError``; who serves the revision then refuses the handler.
"""

from __future__ import annotations

from noderuntime.api.revision import RevisionHandler
from noderuntime.api.securityprofile import SecurityProfileSpec
from noderuntime.errors import ConfigError
from noderuntime.policy import (
    capabilities,
    load_lsm,
    load_profile,
    registries,
    seccomp_rules,
    sysctls,
)
from noderuntime.policy.denial import printable
from noderuntime.policy.rules import HandlerRules


def rules_of(handler: RevisionHandler, revision: str) -> HandlerRules:
    """Compile a handler; ``revision`` is the digest that sentences name. Raises ConfigError."""
    try:
        return _compile(handler, revision)
    except ValueError as error:
        raise ConfigError(f"handler {handler.name}: {error}") from error


def _compile(handler: RevisionHandler, revision: str) -> HandlerRules:
    spec = handler.profile.spec
    if spec.inherits is not None:
        raise ValueError(f"inherits: {printable(spec.inherits)} is not resolved in this revision")
    asked = handler.resources
    default = _default_capabilities(spec)
    allowed = _capabilities(spec.capabilities.allow, "capabilities.allow")
    return HandlerRules(
        handler=handler.name,
        node_runtime=handler.node_runtime,
        profile=handler.profile.name,
        revision=revision,
        audit=spec.mode == "Audit",
        audit_sections=frozenset(spec.audit_sections),
        exceptions=load_profile.exceptions(spec),
        privileged=spec.privileged == "Allow",
        host_namespaces=frozenset(spec.host_namespaces),
        user_namespace=spec.user_namespace,
        non_root=spec.run_as.non_root,
        users=load_profile.ranges(spec.run_as.users, "users"),
        groups=load_profile.ranges(spec.run_as.groups, "groups"),
        supplemental_groups=load_profile.ranges(
            spec.run_as.supplemental_groups, "supplementalGroups"
        ),
        no_new_privileges=spec.no_new_privileges == "Required",
        readonly_root=spec.root_filesystem == "ReadOnly",
        unmasked_proc=spec.proc_mount == "UnmaskedAllowed",
        masked_paths=load_profile.inner_paths(spec.masked_paths, "maskedPaths"),
        readonly_paths=load_profile.inner_paths(spec.readonly_paths, "readonlyPaths"),
        default_capabilities=default,
        allowed_capabilities=allowed,
        ambient_capabilities=_ambient(spec, default | allowed),
        seccomp=seccomp_rules.compiled(
            spec.seccomp, audit=spec.mode == "Audit" or "seccomp" in spec.audit_sections
        ),
        apparmor=load_lsm.apparmor_rules(handler.profile.name, spec),
        selinux=load_lsm.selinux_rules(spec),
        sysctls=frozenset(map(sysctls.normalise, spec.sysctls.allow)),
        devices=load_profile.devices(spec),
        cdi=tuple(sorted(spec.devices.cdi)),
        ulimits=load_profile.ulimits(spec),
        host_paths=tuple(sorted(map(load_profile.host_path, spec.host_paths))),
        registries=tuple(sorted(map(registries.prefix_of, handler.allowed_registries))),
        profile_registries=tuple(sorted(map(registries.prefix_of, spec.images.allowed_registries))),
        require_digest=load_profile.requires_digest(spec),
        **load_profile.amounts(spec.resources, asked),
    )


def _capabilities(names: tuple[str, ...], field: str) -> frozenset[str]:
    result = frozenset(map(capabilities.normalise, names))
    unknown = result - capabilities.KNOWN - {capabilities.ALL}
    if unknown:
        raise ValueError(f"{field}: {_shown(unknown)} is not a Linux capability")
    return capabilities.KNOWN if capabilities.ALL in result else result


def _default_capabilities(spec: SecurityProfileSpec) -> frozenset[str]:
    return _capabilities(spec.capabilities.default, "capabilities.default")


def _ambient(spec: SecurityProfileSpec, granted: frozenset[str]) -> frozenset[str]:
    result = _capabilities(spec.capabilities.ambient, "capabilities.ambient")
    if result - granted:
        missing = _shown(result - granted)
        raise ValueError(f"capabilities.ambient: {missing} is neither in default nor in allow")
    return result


def _shown(unknown: frozenset[str]) -> str:
    return printable(min(unknown), 40) or '""'
