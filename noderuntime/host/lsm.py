"""What the engine asks of the kernel's security modules, beside ports.py: a Protocol each.

The real ones are in apparmor.py and selinux.py, the fakes in ``tests/fakes``. All raise ``HostError``.
"""

from __future__ import annotations

from pathlib import Path
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


class Selinux(Protocol):
    """The SELinux of this kernel, with the policy that is loaded."""

    def is_enabled(self) -> bool:
        """Tell whether the kernel labels by SELinux; cheap."""
        ...

    def contexts(self) -> tuple[str, str]:
        """Return the policy's contexts for containers' processes and files; "" where it has none.

        Blocking.
        """
        ...

    def is_valid(self, context: str) -> bool:
        """Ask the kernel whether the loaded policy knows the context. Blocking."""
        ...

    async def label(self, path: Path, context: str) -> None:
        """Label one file or folder, which is not followed if it is a symbolic link."""
        ...

    async def relabel(self, source: Path, context: str) -> None:
        """Label everything at and below ``source`` that is on its file system; links are not followed.

        Raises InvalidArgumentError for a folder that the whole node needs. A file system that keeps
        no labels is success.
        """
        ...
