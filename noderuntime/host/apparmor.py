"""AppArmor by securityfs, and by apparmor_parser(8), which alone makes what the kernel takes.

``Documentation/admin-guide/LSM/apparmor.rst``. A profile that is removed leaves the processes that run
under it unconfined, so it is not removed while there is one.
"""

from __future__ import annotations

import errno
import os
import shutil
from pathlib import Path
from typing import Final

from noderuntime.errors import HostError
from noderuntime.host.process import PATH, Command, run
from noderuntime.host.syscalls import host_error
from noderuntime.host.threads import in_pool

_ENABLED: Final = Path("/sys/module/apparmor/parameters/enabled")
_SECURITYFS: Final = Path("/sys/kernel/security/apparmor")
_PROC: Final = Path("/proc")
_PARSER: Final = "apparmor_parser"
_TIMEOUT_S: Final = 30.0  # a profile that takes longer to compile is not meant well
# Not -q: what the parser warns about does not hold.
_ARGUMENTS: Final = ("--skip-cache", "--abort-on-error")


class KernelAppArmor:
    """The ``AppArmor`` of lsm.py. The folders are arguments for tests."""

    def __init__(
        self,
        enabled: Path = _ENABLED,
        securityfs: Path = _SECURITYFS,
        proc: Path = _PROC,
        parser: str | None = None,
    ) -> None:
        """Look for the parser on the PATH unless it is given; "" is none."""
        self._enabled_file = enabled
        self._securityfs = securityfs
        self._proc = proc
        self._named = parser

    def is_enabled(self) -> bool:
        """Ask the kernel: it is built in, not turned off, and its files can be reached."""
        try:
            answer = self._enabled_file.read_text()
        except OSError:
            return False
        return answer.startswith("Y") and (self._securityfs / "profiles").exists()

    def can_load(self) -> bool:
        """Look for the program."""
        return bool(self._parser())

    def _parser(self) -> str:
        found = shutil.which(_PARSER, path=PATH) if self._named is None else self._named
        return found or ""

    def profiles(self) -> frozenset[str]:
        """Read the kernel's list; a line is ``NAME (MODE)``. Raises HostError."""
        path = self._securityfs / "profiles"
        try:
            lines = path.read_text(errors="replace").splitlines()
        except OSError as error:
            raise host_error(f"cannot read {path}", error.errno or 0) from error
        return frozenset(line.rpartition(" (")[0] for line in lines)

    async def load(self, name: str, text: str) -> None:
        """Have the parser say what the text defines, then load it. Raises HostError."""
        said = await self._parse("--names", text)
        defined = said.split()
        if defined != [name]:
            raise HostError(
                f"the AppArmor profile {name} defines {', '.join(defined) or 'nothing'}; it must "
                "define itself alone"
            )
        await self._parse("--replace", text)

    async def unload(self, name: str) -> None:
        """Write it into securityfs. Raises HostError where a process still runs under it."""
        await in_pool(self._remove, name)

    async def _parse(self, what: str, text: str) -> str:
        parser = self._parser()
        if not parser:
            raise HostError("apparmor_parser is not on the PATH: install the package apparmor")
        argv = (parser, what, *_ARGUMENTS)
        output = await run(Command(argv=argv, stdin=text.encode(), timeout_s=_TIMEOUT_S))
        if output.exit_code != 0:
            said = " ".join(output.stderr.decode(errors="replace").split())
            raise HostError(
                f"apparmor_parser {what} failed with status {output.exit_code}: {said[-400:]}"
            )
        return output.stdout.decode(errors="replace")

    def _remove(self, name: str) -> None:
        if name in self._labels():
            raise HostError(
                f"the AppArmor profile {name} confines a running process", errno=errno.EBUSY
            )
        path = self._securityfs / ".remove"
        try:
            with os.fdopen(os.open(path, os.O_WRONLY | os.O_CLOEXEC), "wb", buffering=0) as file:
                file.write(name.encode())
        except FileNotFoundError:
            return  # it is not loaded (or there is no AppArmor any more)
        except OSError as error:
            raise host_error(
                f"cannot remove the AppArmor profile {name}", error.errno or 0
            ) from error

    def _labels(self) -> frozenset[str]:
        """Return the profiles that confine a process now."""
        found: set[str] = set()
        for process in self._proc.iterdir():
            if not process.name.isdigit():
                continue
            for file in ("attr/apparmor/current", "attr/current"):
                try:
                    label = (process / file).read_text(errors="replace")
                except OSError:
                    continue  # it has ended, or the kernel has not this file
                found.add(label.strip().rpartition(" (")[0])
                break
        return frozenset(found)
