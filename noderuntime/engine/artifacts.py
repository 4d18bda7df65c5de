"""The filters that handlers have as OCI artifacts: fetched when a revision names them, and kept.

A handler whose artifact is not on the node runs nothing: its Pods are refused with the reason, and
asking again is one more try. Without a network an artifact that was fetched once serves on.
"""

from __future__ import annotations

import asyncio
import logging
from typing import TYPE_CHECKING, Final

from noderuntime.errors import FailedPreconditionError, NodeRuntimeError
from noderuntime.policy import seccomp_file
from noderuntime.policy.seccomp import names_of

if TYPE_CHECKING:
    from collections.abc import Mapping

    from noderuntime.engine.handlers import Handler, HandlerTable
    from noderuntime.images.ports import Images

_log = logging.getLogger(__name__)

FETCH_S: Final = 60.0  # below the kubelet's two minutes for a Pod
LOOK_AGAIN_S: Final = 5.0
PAUSE_S: Final = 300.0  # the longest between two tries


class SeccompArtifacts:
    """The texts that the served handlers need, and why others are not there."""

    def __init__(self, images: Images, handlers: HandlerTable) -> None:
        """Fetch nothing yet."""
        self._images = images
        self._handlers = handlers
        self._texts: dict[str, str] = {}
        self._names: dict[str, frozenset[str]] = {}  # of each text; Status asks every few seconds
        self._problems: dict[str, str] = {}

    async def text(self, handler: Handler) -> str | None:
        """Return the handler's artifact, None where it has none.

        Raises FailedPreconditionError with the reason where it cannot be had.
        """
        reference = _reference(handler)
        if not reference:
            return None
        if reference not in self._texts:
            await self._fetch(reference)
        if reference in self._texts:
            return self._texts[reference]
        raise FailedPreconditionError(
            f'handler "{handler.name}" runs nothing on this node: its seccomp artifact {reference} '
            f"is not here: {self._problems.get(reference, 'it was not fetched yet')}"
        )

    def missing(self) -> Mapping[str, str]:
        """Return the handlers whose artifact is not here, with the reason."""
        wanted = self._wanted()
        return {
            handler: f"{reference}: {self._problems.get(reference, 'it was not fetched yet')}"
            for handler, reference in wanted.items()
            if reference not in self._texts
        }

    def names(self) -> Mapping[str, frozenset[str]]:
        """Return the system calls that the artifact of each handler names."""
        return {
            handler: self._names[reference]
            for handler, reference in self._wanted().items()
            if reference in self._names
        }

    async def watch(self) -> None:
        """Fetch what the revision names, again and again where that fails; until cancelled."""
        pause, before = LOOK_AGAIN_S, frozenset[str](("nothing was looked at",))
        while True:
            wanted = frozenset(self._wanted().values())
            if wanted != before:
                pause, before = LOOK_AGAIN_S, wanted
                self._texts = {r: text for r, text in self._texts.items() if r in wanted}
                self._names = {r: names for r, names in self._names.items() if r in wanted}
                if self._handlers.revision:
                    await self._images.retain_artifacts(tuple(sorted(wanted)))
            missing = wanted - self._texts.keys()
            for reference in sorted(missing):
                await self._fetch(reference)
            pause = min(pause * 2, PAUSE_S) if missing - self._texts.keys() else LOOK_AGAIN_S
            await self._pause(pause, wanted)

    async def _pause(self, pause_s: float, wanted: frozenset[str]) -> None:
        """Wait; no longer than until another revision is there."""
        waited = 0.0
        while waited < pause_s and frozenset(self._wanted().values()) == wanted:
            await asyncio.sleep(LOOK_AGAIN_S)
            waited += LOOK_AGAIN_S

    async def _fetch(self, reference: str) -> None:
        try:
            async with asyncio.timeout(FETCH_S):
                text = await self._images.artifact(reference)
            names = names_of(seccomp_file.parse(reference, text))
        except TimeoutError:
            self._problems[reference] = f"it did not arrive within {FETCH_S:.0f} s"
        except NodeRuntimeError as error:
            self._problems[reference] = str(error)
        else:
            self._texts[reference], self._names[reference] = text, names
            self._problems.pop(reference, None)
            return
        why = self._problems[reference]
        _log.warning("a seccomp artifact is not here", extra={"artifact": reference, "error": why})

    def _wanted(self) -> dict[str, str]:
        found = self._handlers.rules().items()
        return {name: rules.seccomp.artifact for name, rules in found if rules.seccomp.artifact}


def _reference(handler: Handler) -> str:
    return "" if handler.rules is None else handler.rules.seccomp.artifact
