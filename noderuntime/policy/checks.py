"""The checks in the order in which a user sees them; each yields the denials of one topic.

A check reads facts and nothing else, and knows nothing of the mode: ``decide`` takes the first
denial, or in Audit collects them all.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Final

from noderuntime.policy import apparmor, capabilities, mounts, registries, resources, sysctls, users
from noderuntime.policy.denial import Denial, listed
from noderuntime.policy.facts import ContainerFacts, SandboxFacts
from noderuntime.policy.model import NamespaceMode, Namespaces, ProfileType
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
    security = facts.container.security
    if security.privileged or (security.masked_paths and security.readonly_paths):
        return
    if not facts.rules.privileged:
        yield facts.deny(
            "securityContext.procMount",
            "Unmasked",
            "privileged is Deny",
            "use procMount: Default",
        )


def devices_are_not_the_nodes(facts: ContainerFacts) -> Iterator[Denial]:
    """Refuse devices of the node."""
    if facts.rules.privileged:
        return
    for device in facts.container.devices:
        yield facts.deny(
            "volumeDevices",
            device.host_path,
            "devices of the node need privileged: Allow",
            "remove the device or the extended resource that brings it",
        )


def image_is_allowed(facts: ContainerFacts) -> Iterator[Denial]:
    """Refuse images from elsewhere, by the reference that the user wrote."""
    container = facts.container
    yield from judge_image(
        facts.rules, container.image_reference or container.image, container=container.name
    )


def judge_image(rules: HandlerRules, reference: str, *, container: str = "*") -> Iterator[Denial]:
    """Refuse a reference outside of the allowed registries."""
    if not registries.is_allowed(reference, rules.registries):
        yield rules.deny(
            "image",
            reference,
            f'images.allowedRegistries of NodeRuntime "{rules.node_runtime}" has '
            f"{listed(rules.registries)}",
            "use an image from there",
            container=container,
        )


def resources_are_bounded(facts: ContainerFacts) -> Iterator[Denial]:
    """Refuse limits above the most."""
    yield from resources.within_bound(facts.rules, facts.container.name, facts.container.resources)


SANDBOX_CHECKS: Final[tuple[SandboxCheck, ...]] = (
    sandbox_is_not_privileged,
    sandbox_namespaces_are_its_own,
    sysctls.are_allowed,
)
CONTAINER_CHECKS: Final[tuple[ContainerCheck, ...]] = (
    container_is_not_privileged,
    container_namespaces_are_its_own,
    capabilities.within_bound,
    users.is_allowed,
    seccomp_is_the_profiles,
    apparmor.is_the_profiles,
    proc_is_masked,
    mounts.host_paths_are_allowed,
    mounts.propagation_is_contained,
    mounts.proc_is_not_covered,
    devices_are_not_the_nodes,
    image_is_allowed,
    resources_are_bounded,
)


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
