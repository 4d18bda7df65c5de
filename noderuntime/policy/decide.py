"""The decisions: what is asked for, under a handler's rules, to a grant or a denial.

Pure and total: the same facts give the same answer, on any node. ``rules`` is None for the node's
own handlers, which behave as container engines do by default.

What holds under a profile:

- A bound refuses: the first denial is the answer. A section in mode Audit refuses nothing: the
  container gets what it asks for there, the grant carries every denial as a finding, and for
  seccomp the kernel logs what the filter would refuse. An exception is such a mode for one
  namespace until a day (``exceptions.rules_at``, before the rules come here).
- What a Pod leaves open is set by the profile, in both modes: default capabilities, the filter,
  noNewPrivileges, the read-only root, limits. The grant says so in ``changes``. CRI cannot tell
  ``seccompProfile: Unconfined`` and ``allowPrivilegeEscalation: true`` from a Pod that says
  nothing, so both are treated as left open.
- The filter and noNewPrivileges hold for privileged containers too, where those are allowed at
  all.

Malformed requests raise InvalidArgumentError in both cases.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from dataclasses import replace

from noderuntime.api.securityprofile import Section
from noderuntime.errors import FailedPreconditionError, InvalidArgumentError
from noderuntime.policy import (
    apparmor,
    capabilities,
    cdi,
    joining,
    mounts,
    process,
    resources,
    seccomp_file,
    selinux,
    sysctls,
    users,
)
from noderuntime.policy.checks import (
    denials_of,
    denials_of_exec,
    forwards_into_the_pod,
    is_unmasked,
    judge_image,
    of_section,
)
from noderuntime.policy.denial import Denial, printable
from noderuntime.policy.facts import ContainerFacts, SandboxFacts
from noderuntime.policy.model import (
    ContainerConfig,
    ContainerGrant,
    ContainerSecurity,
    HostFacts,
    ImageFacts,
    NamespaceMode,
    Namespaces,
    ProfileType,
    Resources,
    SandboxConfig,
    SandboxGrant,
)
from noderuntime.policy.rules import HandlerRules, SeccompRules
from noderuntime.policy.spec import DEFAULT_MASKED, DEFAULT_READONLY

_LONGEST_HOSTNAME = 64  # HOST_NAME_MAX of Linux


def admit_sandbox(rules: HandlerRules | None, sandbox: SandboxConfig) -> SandboxGrant | Denial:
    """Decide about a Pod as a whole. Raises InvalidArgumentError for what is malformed."""
    _require_no_target(sandbox.namespaces)
    _require_own_namespaces(sandbox.namespaces)
    _require_hostname(sandbox.hostname)
    sysctls.require_namespaced(sandbox)
    grant = SandboxGrant(sysctls=sysctls.normalised(sandbox.sysctls))
    if rules is None:
        return grant
    refusal, findings = _judge(rules, denials_of(SandboxFacts(rules=rules, sandbox=sandbox)))
    if refusal is not None:
        return refusal
    return replace(grant, findings=findings, shm_bytes=rules.shm_bytes)


def admit_image(rules: HandlerRules | None, reference: str) -> Denial | None:
    """Decide about a reference before it is pulled; in Audit the finding is the container's."""
    if rules is None or rules.audits("images"):
        return None
    return next(of_section("images", judge_image(rules, reference)), None)


def findings_on_image(rules: HandlerRules, reference: str) -> tuple[Denial, ...]:
    """Return what mode Audit lets pass in a pull."""
    return _audited(rules, "images", judge_image(rules, reference))


def admit_container(
    rules: HandlerRules | None,
    sandbox: SandboxConfig,
    container: ContainerConfig,
    image: ImageFacts,
    host: HostFacts | None = None,
) -> ContainerGrant | Denial:
    """Decide about a container. ``host`` is what the node knows of its mounts (see HostFacts).

    Raises InvalidArgumentError for what is malformed or not honoured yet, FailedPreconditionError
    for what this node's kernel does not have.
    """
    _require_sane(sandbox, container, image)
    plain = _plain_grant(sandbox, container, image)
    host = host or HostFacts()
    mounts.require_propagation(container, host)
    if rules is None:
        mounts.require_own_dev(container)
        return _as_the_node_does(sandbox, container, host, plain)
    facts = ContainerFacts(
        rules=rules, sandbox=sandbox, container=container, image=image, host=host
    )
    refusal, findings = _judge(rules, denials_of(facts))
    if refusal is not None:
        return refusal
    return replace(_under_profile(facts, plain), findings=findings)


def admit_session(facts: ContainerFacts) -> tuple[Denial, ...] | Denial:
    """Decide about a new session with a running container, under the rules of now: its findings.

    A container that the profile would not admit any more gets none; what runs runs on.
    """
    refusal, findings = _judge(facts.rules, denials_of_exec(facts))
    return findings if refusal is None else _made_before(refusal)


def admit_exec(
    facts: ContainerFacts, process: Mapping[str, object], *, is_probe: bool
) -> joining.ExecGrant | Denial:
    """Decide about one more process of a running container: a session's, narrowed.

    The kubelet's own probes and hooks (``is_probe``) go on where a session is refused, as the Pod
    does, and are narrowed like every process. Raises KeyError, TypeError where ``process`` is none.
    """
    findings = admit_session(facts)
    if isinstance(findings, Denial):
        if not is_probe:
            return findings
        findings = tuple(denials_of_exec(facts))
    granted, changes = joining.narrowed(facts, process)
    return joining.ExecGrant(process=granted, findings=findings, changes=changes)


def admit_forward(facts: SandboxFacts) -> tuple[Denial, ...] | Denial:
    """Decide about a port-forward: on the node's network it would reach the node's localhost."""
    denials = of_section("hostNamespaces", forwards_into_the_pod(facts))
    refusal, findings = _judge(facts.rules, denials)
    return findings if refusal is None else _made_before(refusal)


def _made_before(refusal: Denial) -> Denial:
    return replace(refusal, remedy="it is from before that; have the Pod made anew")


def admit_resources(
    rules: HandlerRules | None, asked: Resources, container: str = "*"
) -> Resources | Denial:
    """Decide about an update of a running container: 0 leaves a limit, -1 asks for none.

    Raises InvalidArgumentError for what is no limit.
    """
    resources.require_known_keys(asked)
    if rules is None:
        return asked
    denials = resources.within_bound(rules, container, asked)
    denial = next(of_section("resources", denials), None)
    if denial is not None and not rules.audits("resources"):
        return denial
    return resources.without_unlimited(rules, asked)


def findings_on_resources(rules: HandlerRules, asked: Resources) -> tuple[Denial, ...]:
    """Return what mode Audit lets pass in an update."""
    return _audited(rules, "resources", resources.within_bound(rules, "*", asked))


def _audited(
    rules: HandlerRules, section: Section, denials: Iterator[Denial]
) -> tuple[Denial, ...]:
    return tuple(of_section(section, denials)) if rules.audits(section) else ()


def _judge(
    rules: HandlerRules, denials: Iterable[Denial]
) -> tuple[Denial | None, tuple[Denial, ...]]:
    """Return the first denial that refuses; without one, what Audit found, once each."""
    findings: dict[Denial, None] = {}
    for denial in denials:
        if denial.section is None or not rules.audits(denial.section):
            return denial, ()
        findings[denial] = None
    return None, tuple(findings)


def _plain_grant(
    sandbox: SandboxConfig, container: ContainerConfig, image: ImageFacts
) -> ContainerGrant:
    """Return what is the same with and without a profile."""
    security = container.security
    hidden = not security.privileged
    return ContainerGrant(
        args=process.arguments(container, image.config),
        env=process.environment(container, image.config, sandbox.hostname),
        cwd=process.working_directory(container, image.config),
        user=image.user,
        capabilities=(),
        privileged=security.privileged,
        no_new_privileges=security.no_new_privs,
        readonly_rootfs=security.readonly_rootfs,
        masked_paths=_union(DEFAULT_MASKED, security.masked_paths) if hidden else (),
        readonly_paths=_union(DEFAULT_READONLY, security.readonly_paths) if hidden else (),
        resources=container.resources,
    )


def _as_the_node_does(
    sandbox: SandboxConfig, container: ContainerConfig, host: HostFacts, grant: ContainerGrant
) -> ContainerGrant:
    security = container.security
    from_file = None
    if security.seccomp.type is ProfileType.LOCALHOST and not security.privileged:
        from_file = seccomp_file.parse(security.seccomp.localhost_ref, host.seccomp_file)
    wants_filter = security.seccomp.type is ProfileType.RUNTIME_DEFAULT and not security.privileged
    return replace(
        grant,
        capabilities=_capabilities(security, capabilities.NODE_DEFAULT, host),
        masked_paths=grant.masked_paths and (security.masked_paths or DEFAULT_MASKED),
        readonly_paths=grant.readonly_paths and (security.readonly_paths or DEFAULT_READONLY),
        seccomp=SeccompRules() if wants_filter else None,
        seccomp_document=from_file,
        apparmor=apparmor.as_the_node_does(container, host.lsm),
        selinux=selinux.labels(None, sandbox, container, host.lsm),
    )


def _under_profile(facts: ContainerFacts, grant: ContainerGrant) -> ContainerGrant:
    rules, security = facts.rules, facts.container.security
    bounded, limits_set = resources.with_defaults(rules, facts.container.resources)
    granted = _capabilities(security, rules.default_capabilities, facts.host)
    usual = not is_unmasked(security)
    return replace(
        grant,
        capabilities=granted,
        ambient=_ambient(granted, rules, grant),
        masked_paths=_union(grant.masked_paths if usual else (), rules.masked_paths),
        readonly_paths=_union(grant.readonly_paths if usual else (), rules.readonly_paths),
        ulimits=rules.ulimits,
        no_new_privileges=security.no_new_privs or rules.no_new_privileges,
        readonly_rootfs=security.readonly_rootfs or rules.readonly_root,
        resources=bounded,
        pids_limit=rules.pids_limit,
        seccomp=None if rules.seccomp.artifact else rules.seccomp,
        seccomp_document=_artifact(rules.seccomp, facts.host),
        apparmor=apparmor.under_profile(facts),
        selinux=selinux.labels(rules, facts.sandbox, facts.container, facts.host.lsm),
        recursive_readonly=mounts.recursive_readonly(facts),
        changes=(*_changes(facts), *limits_set),
    )


def _artifact(rules: SeccompRules, host: HostFacts) -> Mapping[str, object] | None:
    if not rules.artifact:
        return None
    document = host.seccomp_artifact
    if document is None:
        raise FailedPreconditionError(f"seccomp artifact {rules.artifact} is not here")
    return seccomp_file.audited(document) if rules.audit else document


def _ambient(
    granted: tuple[str, ...], rules: HandlerRules, grant: ContainerGrant
) -> tuple[str, ...]:
    """Return what another user than 0 keeps when it starts a program; user 0 keeps all anyway."""
    if grant.user.uid == 0:
        return ()
    kept = {f"CAP_{name}" for name in rules.ambient_capabilities}
    return tuple(name for name in granted if name in kept)


def _changes(facts: ContainerFacts) -> Iterator[str]:
    rules, security = facts.rules, facts.container.security
    if security.seccomp.type is ProfileType.UNCONFINED:
        yield "securityContext.seccompProfile is the profile's filter, as the Pod names none"
    yield from apparmor.changes(facts)
    if rules.no_new_privileges and not security.no_new_privs:
        yield "securityContext.allowPrivilegeEscalation is false, as noNewPrivileges is Required"
    if rules.readonly_root and not security.readonly_rootfs:
        yield "securityContext.readOnlyRootFilesystem is true, as rootFilesystem is ReadOnly"


def _require_sane(sandbox: SandboxConfig, container: ContainerConfig, image: ImageFacts) -> None:
    if container.security.privileged and not sandbox.privileged:
        raise InvalidArgumentError(
            f"containers[{container.name}].securityContext.privileged: "
            "its sandbox is not privileged"
        )
    users.require_in_range(container.name, image.user)
    users.require_mapped(container.name, image.user, sandbox.namespaces.user)
    _require_same_users(sandbox, container)
    capabilities.require_known(container.name, container.security)
    resources.require_known_keys(container.resources)
    cdi.require_names(container.name, container.cdi_devices)
    mounts.require_well_formed(container)


def _require_no_target(namespaces: Namespaces) -> None:
    if namespaces.pid is NamespaceMode.TARGET or namespaces.target_id:
        raise InvalidArgumentError(
            "namespace_options.pid: TARGET is for a container; a sandbox has none to join"
        )


def _require_own_namespaces(namespaces: Namespaces) -> None:
    """Refuse the node's namespaces to a user namespace, which has no rights there."""
    modes = (namespaces.network, namespaces.ipc, namespaces.pid)
    if namespaces.user is not None and NamespaceMode.NODE in modes:
        raise InvalidArgumentError(
            "hostUsers: false needs the pod's own network, IPC and PID namespaces; remove "
            "hostNetwork, hostIPC and hostPID"
        )


def _require_same_users(sandbox: SandboxConfig, container: ContainerConfig) -> None:
    users_of_pod = sandbox.namespaces.user
    asked = (container.security.namespaces.user, *(mount.idmap for mount in container.mounts))
    if any(one is not None and one != users_of_pod for one in asked):
        raise InvalidArgumentError(
            f"containers[{container.name}]: its user namespace or the ID mappings of a mount are "
            "not those of its sandbox"
        )


def _require_hostname(hostname: str) -> None:
    if len(hostname.encode()) > _LONGEST_HOSTNAME or not hostname.isprintable() or " " in hostname:
        raise InvalidArgumentError(
            f"hostname: {printable(hostname, 80)} is not a host name of at most "
            f"{_LONGEST_HOSTNAME} bytes"
        )


def _union(first: tuple[str, ...], second: tuple[str, ...]) -> tuple[str, ...]:
    return tuple(dict.fromkeys((*first, *second)))


def _capabilities(
    security: ContainerSecurity, defaults: frozenset[str], host: HostFacts
) -> tuple[str, ...]:
    everything = capabilities.KNOWN if host.capabilities is None else host.capabilities
    names = capabilities.granted(security, defaults, everything)
    return tuple(f"CAP_{name}" for name in sorted(names))
