"""The kernel's AppArmor, of which a run may belong to a node's runtime beside it.

A runtime removes the profiles of revisions that are not its own: on its node there is no other. The
one of a run removes only what it loaded itself; the runtimes' common default profile stays.
"""

from __future__ import annotations

from noderuntime.errors import HostError
from noderuntime.host.lsm import AppArmor
from noderuntime.host.threads import in_pool
from noderuntime.policy.apparmor import DEFAULT


class SharedAppArmor:
    """The ``AppArmor`` of host/lsm.py, of a runtime that is not the only one."""

    def __init__(self, kernel: AppArmor) -> None:
        """Nothing is loaded yet."""
        self._kernel = kernel
        self._loaded = set[str]()

    def is_enabled(self) -> bool:
        """Tell whether the kernel confines by AppArmor."""
        return self._kernel.is_enabled()

    def can_load(self) -> bool:
        """Tell whether apparmor_parser is there."""
        return self._kernel.can_load()

    def profiles(self) -> frozenset[str]:
        """Return the names of the loaded profiles. Blocking."""
        return self._kernel.profiles()

    async def load(self, name: str, text: str) -> None:
        """Load a profile, and remember it when it was not there before. Raises HostError."""
        was_there = name in await in_pool(self._kernel.profiles)
        await self._kernel.load(name, text)
        if not was_there and name != DEFAULT:
            self._loaded.add(name)

    async def unload(self, name: str) -> None:
        """Remove a profile that was loaded here; another's stays. Raises HostError."""
        if name in self._loaded:
            await self._kernel.unload(name)
            self._loaded.discard(name)

    async def unload_all(self) -> list[str]:
        """Remove everything that was loaded here; returns what could not be done."""
        left: list[str] = []
        for name in sorted(self._loaded):
            try:
                await self.unload(name)
            except HostError as error:
                left.append(f"the AppArmor profile {name}: {error}")
        return left
