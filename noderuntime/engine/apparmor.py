"""The AppArmor profiles that are the runtime's own: in the kernel before a container needs one.

The default profile is loaded by the first container that needs it in this runtime's life, so that it
is this version's, and again where someone has removed it meanwhile. Those of a revision are loaded
before its handlers are offered (``offers.py``), and removed when they are declared no more and no
container is left under them: a process whose profile is removed would be unconfined. All stay
loaded when the runtime ends: containers live on under them.
"""

from __future__ import annotations

import asyncio
import logging
import re
from typing import TYPE_CHECKING, Final

from noderuntime.errors import HostError
from noderuntime.policy import apparmor

if TYPE_CHECKING:
    from collections.abc import Iterable

    from noderuntime.engine.disk import Disk
    from noderuntime.host.lsm import AppArmor

_log = logging.getLogger(__name__)
_OF_A_REVISION: Final = re.compile(r"noderuntime-.+-[0-9a-f]{12}")


class Profiles:
    """Loads what containers are to run under."""

    def __init__(self, kernel: AppArmor, disk: Disk) -> None:
        """Load nothing yet."""
        self._kernel = kernel
        self._disk = disk
        self._lock = asyncio.Lock()
        self._has_loaded_default = False

    def loaded(self) -> frozenset[str]:
        """Return the names of what is in the kernel; a read of a file of the kernel's."""
        return self._kernel.profiles()

    async def load(self, name: str, text: str) -> None:
        """Load a profile, or replace it. Raises HostError."""
        await self._kernel.load(name, text)
        _log.info("an AppArmor profile was loaded", extra={"profile": name})

    async def require(self, name: str) -> None:
        """Have the default profile loaded where a grant names it. Raises HostError."""
        if name != apparmor.DEFAULT:
            return
        async with self._lock:
            if self._has_loaded_default and name in await self._disk.run(self._kernel.profiles):
                return
            await self.load(name, apparmor.default_text())
            self._has_loaded_default = True

    async def sweep(self, wanted: Iterable[str]) -> None:
        """Remove the profiles of earlier revisions that neither a handler nor a container names."""
        if not self._kernel.is_enabled():
            return
        loaded = await self._disk.run(self._kernel.profiles)
        ours = {name for name in loaded if _OF_A_REVISION.fullmatch(name)}
        for name in sorted(ours.difference(wanted)):
            try:
                await self._kernel.unload(name)
            except HostError as error:  # a process still runs under it: tried again
                _log.info("an AppArmor profile stays", extra={"profile": name, "why": str(error)})
            else:
                _log.info("an AppArmor profile was removed", extra={"profile": name})
