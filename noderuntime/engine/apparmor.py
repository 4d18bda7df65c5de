"""The AppArmor profiles that are the runtime's own: in the kernel before a container needs one.

The default profile is loaded by the first container that needs it in this runtime's life, so that it
is this version's, and again where someone has removed it meanwhile. It stays loaded when the runtime
ends: containers live on under it.
"""

from __future__ import annotations

import asyncio
import logging
from typing import TYPE_CHECKING

from noderuntime.policy import apparmor

if TYPE_CHECKING:
    from noderuntime.engine.disk import Disk
    from noderuntime.host.lsm import AppArmor

_log = logging.getLogger(__name__)


class Profiles:
    """Loads what containers are to run under."""

    def __init__(self, kernel: AppArmor, disk: Disk) -> None:
        """Load nothing yet."""
        self._kernel = kernel
        self._disk = disk
        self._lock = asyncio.Lock()
        self._has_loaded_default = False

    async def require(self, name: str) -> None:
        """Have the profile of a grant loaded where it is ours to load. Raises HostError."""
        if name != apparmor.DEFAULT:
            return
        async with self._lock:
            if self._has_loaded_default and name in await self._disk.run(self._kernel.profiles):
                return
            await self._kernel.load(name, apparmor.default_text())
            self._has_loaded_default = True
        _log.info("an AppArmor profile was loaded", extra={"profile": name})
