"""From a handler of a revision to the rules that decisions read: parsed and checked once.

Lists are sorted, so that the order in a file changes nothing. What cannot be meant is an error,
never ignored: a deny of a system call that does not exist would protect nothing. Raises
``ConfigError``; who serves the revision then refuses the handler.
"""

from __future__ import annotations

from posixpath import normpath

from noderuntime.api.noderuntime import ResourceAmounts
from noderuntime.api.quantity import milli_cpu, size_bytes
from noderuntime.api.revision import RevisionHandler
from noderuntime.api.securityprofile import HostPath, SecurityProfileSpec
from noderuntime.errors import ConfigError
from noderuntime.policy import capabilities, registries, seccomp_rules, sysctls
from noderuntime.policy.denial import printable
from noderuntime.policy.rules import Bounds, HandlerRules, HostPathRule


def rules_of(handler: RevisionHandler, revision: str) -> HandlerRules:
    """Compile a handler; ``revision`` is the digest that sentences name. Raises ConfigError."""
    try:
        return _compile(handler, revision)
    except ValueError as error:
        raise ConfigError(f"handler {handler.name}: {error}") from error


def _compile(handler: RevisionHandler, revision: str) -> HandlerRules:
    spec = handler.profile.spec
    return HandlerRules(
        handler=handler.name,
        node_runtime=handler.node_runtime,
        profile=handler.profile.name,
        revision=revision,
        audit=spec.mode == "Audit",
        privileged=spec.privileged == "Allow",
        host_namespaces=frozenset(spec.host_namespaces),
        non_root=spec.run_as.non_root,
        users=_users(spec),
        no_new_privileges=spec.no_new_privileges == "Required",
        readonly_root=spec.root_filesystem == "ReadOnly",
        default_capabilities=_capabilities(spec.capabilities.default, "capabilities.default"),
        allowed_capabilities=_capabilities(spec.capabilities.allow, "capabilities.allow"),
        seccomp=seccomp_rules.compiled(spec.seccomp, audit=spec.mode == "Audit"),
        sysctls=frozenset(map(sysctls.normalise, spec.sysctls.allow)),
        host_paths=tuple(sorted(map(_host_path, spec.host_paths))),
        registries=tuple(sorted(map(registries.prefix_of, handler.allowed_registries))),
        defaults=_bounds(handler.resources.defaults, "resources.defaults"),
        limits=_bounds(handler.resources.limits, "resources.limits"),
        pids_limit=handler.resources.pids_limit,
    )


def _users(spec: SecurityProfileSpec) -> tuple[tuple[int, int], ...]:
    for users in spec.run_as.users:
        if users.min > users.max:
            raise ValueError(f"runAs.users: min {users.min} is above max {users.max}")
    return tuple(sorted((users.min, users.max) for users in spec.run_as.users))


def _capabilities(names: tuple[str, ...], field: str) -> frozenset[str]:
    result = frozenset(map(capabilities.normalise, names))
    unknown = result - capabilities.KNOWN - {capabilities.ALL}
    if unknown:
        raise ValueError(f"{field}: {_shown(unknown)} is not a Linux capability")
    return capabilities.KNOWN if capabilities.ALL in result else result


def _host_path(rule: HostPath) -> HostPathRule:
    if ".." in rule.path.split("/"):
        raise ValueError(f"hostPaths: {printable(rule.path)} must not hold '..'")
    return HostPathRule(path="/" + normpath(rule.path).lstrip("/"), readonly=rule.read_only)


def _bounds(amounts: ResourceAmounts, field: str) -> Bounds:
    try:
        return Bounds(
            cpu_millis=None if amounts.cpu is None else milli_cpu(amounts.cpu),
            memory_bytes=None if amounts.memory is None else size_bytes(amounts.memory),
        )
    except ValueError as error:
        raise ValueError(f"{field}: {error}") from error


def _shown(unknown: frozenset[str]) -> str:
    return printable(min(unknown), 40) or '""'
