"""Everything that a decision about a container reads, gathered once."""

from __future__ import annotations

from dataclasses import dataclass, field

from noderuntime.policy.denial import Denial
from noderuntime.policy.model import ContainerConfig, HostFacts, ImageFacts, SandboxConfig
from noderuntime.policy.rules import HandlerRules


@dataclass(frozen=True, slots=True, kw_only=True)
class SandboxFacts:
    """A sandbox that is asked for, under a profile."""

    rules: HandlerRules
    sandbox: SandboxConfig

    def deny(self, path: str, value: str, rule: str, remedy: str) -> Denial:
        """Deny a field of the Pod."""
        return self.rules.deny(path, value, rule, remedy)


@dataclass(frozen=True, slots=True, kw_only=True)
class ContainerFacts:
    """A container that is asked for, under a profile."""

    rules: HandlerRules
    sandbox: SandboxConfig
    container: ContainerConfig
    image: ImageFacts
    host: HostFacts = field(default_factory=HostFacts)

    def deny(self, path: str, value: str, rule: str, remedy: str) -> Denial:
        """Deny a field of the container."""
        return self.rules.deny(path, value, rule, remedy, container=self.container.name)
