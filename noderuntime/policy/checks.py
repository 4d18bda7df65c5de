"""The checks in the order in which a user sees them; each yields the denials of one section.

A check reads facts and nothing else, and knows nothing of the mode: ``decide`` takes the first
denial, or in Audit collects them all.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import replace
from typing import Final

from noderuntime.api.securityprofile import Section
from noderuntime.policy import (
    apparmor,
    capabilities,
    devices,
    mounts,
    registries,
    resources,
    selinux,
    shm,
    sysctls,
    users,
)
from noderuntime.policy.denial import Denial, listed
from noderuntime.policy.facts import ContainerFacts, SandboxFacts
from noderuntime.policy.model import ContainerSecurity, NamespaceMode, Namespaces, ProfileType
from noderuntime.policy.rules import HandlerRules

SandboxCheck = Callable[[SandboxFacts], Iterator[Denial]]
ContainerCheck = Callable[[ContainerFacts], Iterator[Denial]]


def sandbox_is_not_privileged(facts: SandboxFacts) -> Iterator[Denial]:
    """Refuse a Pod of which the kubelet says that a container is privileged."""
    if facts.sandbox.privileged and not facts.rules.privileged:
        yield facts.deny(
            "containers[*].securityContext.privileged",
            "true",
            "privileged is Deny",
            "remove privileged from the Pod's containers",
        )


def sandbox_namespaces_are_its_own(facts: SandboxFacts) -> Iterator[Denial]:
    """Refuse the node's namespaces that the profile does not list."""
    yield from _host_namespaces(facts.rules, facts.sandbox.namespaces)


def container_namespaces_are_its_own(facts: ContainerFacts) -> Iterator[Denial]:
    """Refuse them for a container too: CRI repeats the options, and they could differ."""
    yield from _host_namespaces(facts.rules, facts.container.security.namespaces)


def forwards_into_the_pod(facts: SandboxFacts) -> Iterator[Denial]:
    """Refuse the node's network alone: the other namespaces are nothing to a forwarded port."""
    network = Namespaces(network=facts.sandbox.namespaces.network)
    yield from _host_namespaces(facts.rules, network)


def sandbox_users_are_mapped(facts: SandboxFacts) -> Iterator[Denial]:
    """Refuse a Pod with, or without, a user namespace of its own."""
    yield from _user_namespace(facts.rules, facts.sandbox.namespaces)


def container_users_are_mapped(facts: ContainerFacts) -> Iterator[Denial]:
    """Refuse it for a container too: its sandbox may be of an earlier revision."""
    yield from _user_namespace(facts.rules, facts.sandbox.namespaces)


def container_is_not_privileged(facts: ContainerFacts) -> Iterator[Denial]:
    """Refuse privileged containers."""
    if facts.container.security.privileged and not facts.rules.privileged:
        yield facts.deny(
            "securityContext.privileged",
            "true",
            "privileged is Deny",
            "remove it, and add the capabilities that are needed",
        )


def seccomp_is_the_profiles(facts: ContainerFacts) -> Iterator[Denial]:
    """Refuse a filter from a file of the node: it could be weaker than the profile's.

    RuntimeDefault means the profile's filter. Unconfined cannot be refused: the kubelet sends it as
    well for a Pod that says nothing; it is lifted to the profile's filter instead (``decide``).
    """
    asked = facts.container.security.seccomp
    if asked.type is ProfileType.LOCALHOST:
        yield facts.deny(
            "securityContext.seccompProfile.localhostProfile",
            asked.localhost_ref or '""',
            "the system call filter is the profile's own",
            "use seccompProfile.type: RuntimeDefault",
        )


def proc_is_masked(facts: ContainerFacts) -> Iterator[Denial]:
    """Refuse procMount: Unmasked, which CRI says as empty lists of masked or read-only paths."""
    rules = facts.rules
    if is_unmasked(facts.container.security) and not (rules.unmasked_proc or rules.privileged):
        yield facts.deny(
            "securityContext.procMount",
            "Unmasked",
            "procMount is Default and privileged is Deny",
            "use procMount: Default",
        )


def is_unmasked(security: ContainerSecurity) -> bool:
    """Tell whether a container that is not privileged asks for procMount: Unmasked."""
    return not (security.privileged or (security.masked_paths and security.readonly_paths))


def image_is_allowed(facts: ContainerFacts) -> Iterator[Denial]:
    """Refuse images from elsewhere, by the reference that the user wrote."""
    container = facts.container
    yield from judge_image(
        facts.rules, container.image_reference or container.image, container=container.name
    )


def judge_image(rules: HandlerRules, reference: str, *, container: str = "*") -> Iterator[Denial]:
    """Refuse a reference outside of the allowed registries, and one without its digest."""
    for owner, prefixes in (
        (f'images.allowedRegistries of NodeRuntime "{rules.node_runtime}"', rules.registries),
        ("images.allowedRegistries", rules.profile_registries),
    ):
        if not registries.is_allowed(reference, prefixes):
            yield rules.deny(
                "image",
                reference,
                f"{owner} has {listed(prefixes)}",
                "use an image from there",
                container=container,
            )
    if rules.require_digest and not registries.has_digest(reference):
        yield rules.deny(
            "image",
            reference,
            "images.requireDigest is true",
            "name it by digest, as name@sha256:...",
            container=container,
        )


def resources_are_bounded(facts: ContainerFacts) -> Iterator[Denial]:
    """Refuse limits above the most."""
    yield from resources.within_bound(facts.rules, facts.container.name, facts.container.resources)


SANDBOX_CHECKS: Final[tuple[tuple[Section, SandboxCheck], ...]] = (
    ("privileged", sandbox_is_not_privileged),
    ("hostNamespaces", sandbox_namespaces_are_its_own),
    ("userNamespace", sandbox_users_are_mapped),
    ("sysctls", sysctls.are_allowed),
)
CONTAINER_CHECKS: Final[tuple[tuple[Section, ContainerCheck], ...]] = (
    ("privileged", container_is_not_privileged),
    ("hostNamespaces", container_namespaces_are_its_own),
    ("userNamespace", container_users_are_mapped),
    ("capabilities", capabilities.within_bound),
    ("runAs", users.is_allowed),
    ("seccomp", seccomp_is_the_profiles),
    ("appArmor", apparmor.is_the_profiles),
    ("seLinux", selinux.is_the_profiles),
    ("seLinux", selinux.relabels_what_is_the_pods),
    ("procMount", proc_is_masked),
    ("hostPaths", mounts.host_paths_are_allowed),
    ("hostPaths", mounts.propagation_is_contained),
    ("procMount", mounts.proc_is_not_covered),
    ("devices", devices.are_allowed),
    ("devices", devices.cdi_devices_are_allowed),
    ("images", image_is_allowed),
    ("resources", resources_are_bounded),
    ("resources", shm.is_bounded),
)
# Of what a process that joins a running container has no less of than the container: its user, and
# what its container is to the node. Only what records show; mounts and devices are the container's.
EXEC_CHECKS: Final[tuple[tuple[Section, ContainerCheck], ...]] = (
    ("privileged", container_is_not_privileged),
    ("hostNamespaces", container_namespaces_are_its_own),
    ("userNamespace", container_users_are_mapped),
    ("runAs", users.user_and_group_are_allowed),
    ("procMount", proc_is_masked),
)


def denials_of(facts: SandboxFacts | ContainerFacts) -> Iterator[Denial]:
    """Run every check, and say of each denial which section it is of."""
    if isinstance(facts, SandboxFacts):
        for section, on_sandbox in SANDBOX_CHECKS:
            yield from of_section(section, on_sandbox(facts))
        return
    yield from _run(CONTAINER_CHECKS, facts)


def denials_of_exec(facts: ContainerFacts) -> Iterator[Denial]:
    """Run the checks on one more process of a running container."""
    yield from _run(EXEC_CHECKS, facts)


def _run(
    checks: tuple[tuple[Section, ContainerCheck], ...], facts: ContainerFacts
) -> Iterator[Denial]:
    for section, on_container in checks:
        yield from of_section(section, on_container(facts))


def of_section(section: Section, denials: Iterator[Denial]) -> Iterator[Denial]:
    """Say of each denial which section it is of."""
    return (replace(denial, section=section) for denial in denials)


def _host_namespaces(rules: HandlerRules, asked: Namespaces) -> Iterator[Denial]:
    modes = (
        ("hostPID", "PID", asked.pid),
        ("hostIPC", "IPC", asked.ipc),
        ("hostNetwork", "Network", asked.network),
    )
    for field, name, mode in modes:
        if mode is NamespaceMode.NODE and name not in rules.host_namespaces:
            yield rules.deny(
                field,
                "true",
                f"hostNamespaces has {listed(rules.host_namespaces)}",
                f"remove {field} from the Pod, or add {name} to hostNamespaces",
            )


def _user_namespace(rules: HandlerRules, asked: Namespaces) -> Iterator[Denial]:
    if rules.user_namespace == "Required" and asked.user is None:
        yield rules.deny(
            "hostUsers", "true", "userNamespace is Required", "set hostUsers: false in the Pod"
        )
    if rules.user_namespace == "Deny" and asked.user is not None:
        yield rules.deny(
            "hostUsers", "false", "userNamespace is Deny", "remove hostUsers: false from the Pod"
        )
