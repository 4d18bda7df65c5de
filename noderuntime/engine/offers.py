"""Which of a revision's handlers this node can offer, and why not the others.

What always holds: a handler whose profile demands what the node does not have, whose AppArmor profile
is not in the kernel, whose SELinux label the node's policy does not know or whose seccomp artifact is
not here, is withheld: it is not in Status, and a Pod that names it is refused. The rest of the revision
is served. What was missing is looked for again, so that a node that gets it (a package, a profile, a
network) offers the handler by itself.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Final, TypeAlias

from noderuntime.errors import NodeRuntimeError
from noderuntime.policy.apparmor import DEFAULT, UNCONFINED
from noderuntime.policy.features import HostFeatures, missing_features

if TYPE_CHECKING:
    from noderuntime.engine.apparmor import Profiles
    from noderuntime.engine.artifacts import SeccompArtifacts
    from noderuntime.policy.rules import HandlerRules, SelinuxRules

ARTIFACT_MISSING: Final = "ArtifactMissing"
LOAD_AGAIN_S: Final = 60.0  # a text that the parser has refused: what it includes may have come


@dataclass(frozen=True, slots=True, kw_only=True)
class Withheld:
    """A declared handler that is not offered: a CamelCase reason and a sentence."""

    name: str
    reason: str
    message: str


_Why: TypeAlias = tuple[str, str, str]  # the reason, the field, what is wrong with it


class Offers:
    """Judges the rules of a revision by what the node has now."""

    def __init__(
        self,
        features: Callable[[], HostFeatures],
        profiles: Profiles,
        artifacts: SeccompArtifacts,
        unknown_label: Callable[[SelinuxRules], str],
    ) -> None:
        """``features`` and ``unknown_label`` ask the kernel each time; they must be cheap.

        ``unknown_label`` returns the label that the node's policy does not know, "" where it does.
        """
        self._features = features
        self._profiles = profiles
        self._artifacts = artifacts
        self._unknown_label = unknown_label
        self._refused: dict[str, tuple[str, float]] = {}  # profile -> what was said, when
        self._lock = asyncio.Lock()

    def must_load(self, rules: Iterable[HandlerRules]) -> bool:
        """Tell whether ``load`` has something to do before ``withheld`` tells the truth."""
        return bool(self._to_load(rules))

    async def load(self, rules: Iterable[HandlerRules]) -> None:
        """Load what can be; what cannot be is told by ``withheld``."""
        async with self._lock:
            wanted = self._to_load(rules)
            for name, text in wanted.items():
                try:
                    await self._profiles.load(name, text)
                except NodeRuntimeError as error:
                    self._refused[name] = (" ".join(str(error).split()), time.monotonic())
                else:
                    self._refused.pop(name, None)

    def withheld(self, rules: Iterable[HandlerRules]) -> Mapping[str, Withheld]:
        """Return the handlers that are not offered now, by name."""
        features = self._features()
        loaded = self._profiles.loaded() if features.apparmor else frozenset[str]()
        found = (self._judge(each, features, loaded) for each in rules)
        return {each.name: each for each in found if each is not None}

    def _judge(
        self, rules: HandlerRules, features: HostFeatures, loaded: frozenset[str]
    ) -> Withheld | None:
        missing = missing_features(rules, features)
        if missing:
            said = "; ".join(each.sentence(rules.profile) for each in missing)
            return Withheld(name=rules.handler, reason="MissingFeature", message=said)
        found = (
            (self._apparmor(rules, loaded) if features.apparmor else None)  # else it is in Audit
            or (self._selinux(rules) if features.selinux else None)
            or self._artifact(rules)
        )
        if found is None:
            return None
        reason, field, why = found
        message = f"{field} of SecurityProfile {rules.profile}: {why}"
        return Withheld(name=rules.handler, reason=reason, message=message)

    def _apparmor(self, rules: HandlerRules, loaded: frozenset[str]) -> _Why | None:
        declared = rules.apparmor
        if declared is None:
            return None
        for name in declared.texts():
            if name not in loaded:
                said, _ = self._refused.get(name, ("it is not loaded yet", 0.0))
                return "AppArmorProfileRefused", "appArmor.profile", said
        if declared.text or declared.name in (UNCONFINED, DEFAULT, *loaded):
            return None
        why = f"{declared.name} is not loaded in this node's kernel; load it there with apparmor_parser"
        return "AppArmorProfileNotLoaded", "appArmor.name", why

    def _selinux(self, rules: HandlerRules) -> _Why | None:
        label = "" if rules.selinux is None else self._unknown_label(rules.selinux)
        if not label:
            return None
        why = (
            f"the SELinux policy of this node does not know the label {label}; load a policy module "
            "that does, or declare what it knows"
        )
        return "SELinuxLabelUnknown", "seLinux", why

    def _artifact(self, rules: HandlerRules) -> _Why | None:
        why = self._artifacts.why_missing(rules.seccomp.artifact)
        return (ARTIFACT_MISSING, "seccomp.artifact", why) if why else None

    async def fetch(self, rules: HandlerRules) -> bool:
        """Try once more to get what a handler waits for; tell whether it came."""
        reference = rules.seccomp.artifact
        return bool(self._artifacts.why_missing(reference)) and await self._artifacts.fetch(
            reference
        )

    def _to_load(self, rules: Iterable[HandlerRules]) -> dict[str, str]:
        features = self._features()
        declared = [each.apparmor for each in rules if each.apparmor is not None]
        texts = {name: text for each in declared for name, text in each.texts().items()}
        if not texts or not (features.apparmor and features.apparmor_parser):
            return {}
        loaded, now = self._profiles.loaded(), time.monotonic()
        return {
            name: text
            for name, text in texts.items()
            if name not in loaded and self._may_try(name, now)
        }

    def _may_try(self, name: str, now: float) -> bool:
        refused = self._refused.get(name)
        return refused is None or now - refused[1] >= LOAD_AGAIN_S
