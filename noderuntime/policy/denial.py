"""A refusal that names itself: field, value, rule, profile, revision and what would pass.

``sentence()`` goes into the Pod's events as it is, so it is always one line of printable text,
however hostile the value; events are cut at 1,024 bytes, so every part is short.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Final

from noderuntime.api.securityprofile import Section

_LONGEST_PART: Final = 150


@dataclass(frozen=True, slots=True, kw_only=True)
class Denial:
    """Why something is refused. ``container`` is "" where it is the Pod's as a whole."""

    container: str
    field: str  # as the user writes it in the Pod: containers[web].securityContext.privileged
    value: str
    rule: str  # what the profile says
    profile: str
    revision: str  # the digest
    remedy: str  # what would make it pass
    section: Section | None = None  # of the profile; its mode decides what a denial does

    def sentence(self) -> str:
        """Return the one line for the Pod's events."""
        return (
            f"{printable(self.field)}: {printable(self.value)} is refused by SecurityProfile "
            f"{printable(self.profile)} (revision {short_revision(self.revision)}): "
            f"{printable(self.rule)}; {printable(self.remedy)}"
        )


def short_revision(digest: str) -> str:
    """Return the twelve digits by which people know a revision."""
    return printable(digest.removeprefix("sha256:")[:12])


def printable(text: str, longest: int = _LONGEST_PART) -> str:
    """Return ``text`` on one line, without control characters, cut at ``longest``."""
    head = text[: longest + 1]
    clean = " ".join("".join(c if c.isprintable() else " " for c in head).split())
    return clean if len(text) <= longest else clean[:longest] + "…"


def listed(names: frozenset[str] | tuple[str, ...], nothing: str = "nothing") -> str:
    """Return up to eight names as a user reads them, or ``nothing``."""
    ordered = sorted(names) if isinstance(names, frozenset) else list(names)
    if not ordered:
        return nothing
    more = len(ordered) - 8
    return ", ".join(ordered[:8]) + (f" and {more} more" if more > 0 else "")
