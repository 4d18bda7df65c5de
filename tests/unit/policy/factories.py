"""Makes what policy tests need, with as little said as possible."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace

from noderuntime.api.revision import RevisionHandler
from noderuntime.policy import decide
from noderuntime.policy.denial import Denial
from noderuntime.policy.load import rules_of
from noderuntime.policy.model import (
    ContainerConfig,
    ContainerGrant,
    ContainerSecurity,
    HostFacts,
    ImageConfig,
    ImageFacts,
    NamespaceMode,
    Namespaces,
    PodIdentity,
    ResolvedUser,
    SandboxConfig,
)
from noderuntime.policy.rules import HandlerRules
from noderuntime.policy.spec import DEFAULT_MASKED, DEFAULT_READONLY

UID = "11111111-2222-3333-4444-555555555555"
KUBELET = f"/var/lib/kubelet/pods/{UID}"
DIGEST = "sha256:" + "0123456789ab" + "0" * 52
USER = ResolvedUser(uid=1000, gid=1000)
OWN = Namespaces()
NODE = NamespaceMode.NODE


def handler(profile: Mapping[str, object] | None = None, **fields: object) -> RevisionHandler:
    """Return a handler ``restricted`` of profile ``web``; ``fields`` are its own, in camelCase."""
    document = {
        "name": "restricted",
        "nodeRuntime": "restricted",
        "profile": {"name": "web", "spec": dict(profile or {})},
        **fields,
    }
    return RevisionHandler.model_validate(document)


def rules(profile: Mapping[str, object] | None = None, **fields: object) -> HandlerRules:
    """Return the compiled rules of ``handler``."""
    return rules_of(handler(profile, **fields), DIGEST)


def sandbox(**fields: object) -> SandboxConfig:
    """Return a sandbox whose Pod has UID."""
    base = SandboxConfig(pod=PodIdentity(name="pod", namespace="default", uid=UID))
    return replace(base, **fields)  # type: ignore[arg-type]


def security(**fields: object) -> ContainerSecurity:
    """Return what the kubelet sends for a container that says nothing."""
    base = ContainerSecurity(masked_paths=DEFAULT_MASKED, readonly_paths=DEFAULT_READONLY)
    return replace(base, **fields)  # type: ignore[arg-type]


def container(asks: ContainerSecurity | None = None, **fields: object) -> ContainerConfig:
    """Return a container ``web`` of an image on registry.example.com."""
    base = ContainerConfig(
        name="web",
        image="sha256:" + "c" * 64,
        image_reference="registry.example.com/team/web:1",
        command=("/bin/web",),
        security=security() if asks is None else asks,
    )
    return replace(base, **fields)  # type: ignore[arg-type]


def image(user: ResolvedUser = USER, **fields: object) -> ImageFacts:
    """Return an image whose process runs as ``user``."""
    return ImageFacts(config=replace(ImageConfig(), **fields), user=user)  # type: ignore[arg-type]


def admit(
    own: HandlerRules | None,
    asked: ContainerConfig | None = None,
    *,
    pod: SandboxConfig | None = None,
    facts: ImageFacts | None = None,
    host: HostFacts | None = None,
) -> ContainerGrant | Denial:
    """Decide; the sandbox is privileged where the container is, as the kubelet has it."""
    asked = asked or container()
    pod = pod or sandbox(privileged=asked.security.privileged)
    return decide.admit_container(own, pod, asked, facts or image(), host)


def granted(*arguments: object, **named: object) -> ContainerGrant:
    """Decide, and expect a grant."""
    result = admit(*arguments, **named)  # type: ignore[arg-type]
    assert isinstance(result, ContainerGrant), result.sentence()
    return result


def denied(*arguments: object, **named: object) -> Denial:
    """Decide, and expect a denial."""
    result = admit(*arguments, **named)  # type: ignore[arg-type]
    assert isinstance(result, Denial), result
    return result
