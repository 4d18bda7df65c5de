"""The filters that handlers have as OCI artifacts: fetched when a revision names them, and kept.

A handler whose artifact is not on the node is withheld (``offers.py``): its Pods are refused with the
reason, and asking again is one more try. Without a network an artifact that was fetched once serves on.
"""

from __future__ import annotations

import asyncio
import logging
from contextlib import suppress
from typing import TYPE_CHECKING, Final

from noderuntime.errors import FailedPreconditionError, InvalidArgumentError, NodeRuntimeError
from noderuntime.policy import seccomp_file
from noderuntime.policy.seccomp import names_of

if TYPE_CHECKING:
    from collections.abc import Mapping

    from noderuntime.engine.handlers import HandlerTable
    from noderuntime.images.ports import Images

_log = logging.getLogger(__name__)

FETCH_S: Final = 60.0  # below the kubelet's two minutes for a Pod
LOOK_AGAIN_S: Final = 5.0
PAUSE_S: Final = 300.0  # the longest between two tries


class SeccompArtifacts:
    """The filters that were fetched, by reference, and why others are not there."""

    def __init__(self, images: Images) -> None:
        """Fetch nothing yet."""
        self._images = images
        self._filters: dict[str, Mapping[str, object]] = {}  # as OCI has them, parsed once
        self._names: dict[str, frozenset[str]] = {}  # of each; Status asks every few seconds
        self._problems: dict[str, str] = {}

    def filter_of(self, reference: str) -> Mapping[str, object] | None:
        """Return the filter, None for no reference. Raises FailedPreconditionError if it is not here."""
        if not reference:
            return None
        if reference not in self._filters:
            raise FailedPreconditionError(f"seccomp artifact {self.why_missing(reference)}")
        return self._filters[reference]

    def why_missing(self, reference: str) -> str:
        """Return the reason why it is not here; "" where it is, or none is named."""
        if not reference or reference in self._filters:
            return ""
        why = self._problems.get(reference, "it was not fetched yet")
        return f"{reference} is not here: {why}"

    def names(self, reference: str) -> frozenset[str]:
        """Return the system calls that it names; none where it is not here."""
        return self._names.get(reference, frozenset())

    async def recall(self, references: frozenset[str]) -> None:
        """Take those that an earlier life of the runtime has kept on disk."""
        for reference in sorted(references):
            text = await self._images.kept_artifact(reference)
            if text is not None:
                with suppress(InvalidArgumentError):  # ``fetch`` will say so
                    self._take(reference, text)

    def _take(self, reference: str, text: str) -> None:
        """Keep what is in it. Raises InvalidArgumentError for what is no filter."""
        document = seccomp_file.parse(reference, text)
        self._filters[reference], self._names[reference] = document, names_of(document)
        self._problems.pop(reference, None)

    async def fetch(self, reference: str) -> bool:
        """Try to get it, and tell whether it is here; ``why_missing`` has the reason."""
        try:
            async with asyncio.timeout(FETCH_S):
                self._take(reference, await self._images.artifact(reference))
        except TimeoutError:
            self._problems[reference] = f"it did not arrive within {FETCH_S:.0f} s"
        except NodeRuntimeError as error:
            self._problems[reference] = " ".join(str(error).split())
        else:
            return True
        why = self._problems[reference]
        _log.warning("a seccomp artifact is not here", extra={"artifact": reference, "error": why})
        return False

    async def watch(self, handlers: HandlerTable) -> None:
        """Fetch what the revision names, again and again where that fails; until cancelled."""
        pause, before = LOOK_AGAIN_S, frozenset[str](("nothing was looked at",))
        while True:
            wanted = handlers.wanted_artifacts()
            if wanted != before:
                pause, before = LOOK_AGAIN_S, wanted
                self._filters = {r: found for r, found in self._filters.items() if r in wanted}
                self._names = {r: names for r, names in self._names.items() if r in wanted}
                if handlers.revision:
                    await self._images.retain_artifacts(tuple(sorted(wanted)))
            missing = sorted(wanted - self._filters.keys())
            for reference in missing:
                await self.fetch(reference)
                handlers.offer_again()  # or not, and now it is known why
            is_here = wanted <= self._filters.keys()
            pause = LOOK_AGAIN_S if is_here else min(pause * 2, PAUSE_S)
            await _pause(pause, handlers, wanted)


async def _pause(pause_s: float, handlers: HandlerTable, wanted: frozenset[str]) -> None:
    """Wait; no longer than until another revision is there."""
    waited = 0.0
    while waited < pause_s and handlers.wanted_artifacts() == wanted:
        await asyncio.sleep(LOOK_AGAIN_S)
        waited += LOOK_AGAIN_S
