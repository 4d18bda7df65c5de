"""What the engine asks of the kernel's security modules, beside ports.py: a Protocol each.

The real ones are in apparmor.py and selinux.py, the fakes in ``tests/fakes``. All raise ``HostError``.
"""

from __future__ import annotations

from typing import Protocol


class AppArmor(Protocol):
    """The AppArmor of this kernel, and apparmor_parser(8)."""

    def is_enabled(self) -> bool:
        """Tell whether the kernel confines by AppArmor; cheap."""
        ...

    def can_load(self) -> bool:
        """Tell whether apparmor_parser is there; cheap."""
        ...

    def profiles(self) -> frozenset[str]:
        """Return the names of the loaded profiles. Blocking."""
        ...

    async def load(self, name: str, text: str) -> None:
        """Load the one profile that ``text`` defines, or replace it; it must be called ``name``.

        Whole or not at all. Raises HostError with the parser's own words.
        """
        ...

    async def unload(self, name: str) -> None:
        """Remove a profile, unless a process runs under it; one that is not loaded is success."""
        ...
