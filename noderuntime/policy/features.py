"""What a profile demands of the kernel, and what of that a node does not have.

A handler whose profile demands more than the node can do is not offered there: its Pods would run
without what was declared. A section in mode Audit demands nothing, and neither does one that is left
out.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

from noderuntime.policy.apparmor import DEFAULT, UNCONFINED
from noderuntime.policy.rules import HandlerRules


@dataclass(frozen=True, slots=True, kw_only=True)
class HostFeatures:
    """What this node's kernel can do, and the programs that it needs for that."""

    apparmor: bool = False
    apparmor_parser: bool = False
    selinux: bool = False
    user_namespaces: bool = False


@dataclass(frozen=True, slots=True, kw_only=True)
class Missing:
    """A feature that is missing, by its name, and which section of the profile demands it."""

    feature: str
    section: str
    remedy: str

    def sentence(self, profile: str) -> str:
        """Return why the handler is not offered."""
        return (
            f"{self.section} of SecurityProfile {profile} demands {self.feature}, which this node "
            f"does not have; {self.remedy}"
        )


def missing_features(rules: HandlerRules, features: HostFeatures) -> tuple[Missing, ...]:
    """Return what the profile demands and the node lacks, in the order of the profile."""
    return tuple(_missing(rules, features))


def _missing(rules: HandlerRules, features: HostFeatures) -> Iterator[Missing]:
    kernel = "boot it with a kernel that has it, or select other nodes"
    if (
        rules.user_namespace == "Required"
        and not rules.audits("userNamespace")
        and not features.user_namespaces
    ):
        yield Missing(feature="UserNamespaces", section="userNamespace", remedy=kernel)
    apparmor = rules.apparmor
    if apparmor is not None and apparmor.name != UNCONFINED and not rules.audits("appArmor"):
        loads = bool(apparmor.text) or apparmor.name == DEFAULT
        if not features.apparmor:
            yield Missing(feature="AppArmor", section="appArmor", remedy=kernel)
        elif loads and not features.apparmor_parser:
            remedy = "install the package apparmor there"
            yield Missing(feature="apparmor_parser", section="appArmor", remedy=remedy)
    if rules.selinux is not None and not rules.audits("seLinux") and not features.selinux:
        yield Missing(feature="SELinux", section="seLinux", remedy=kernel)
