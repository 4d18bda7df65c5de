"""The compiled filters of system calls: each compiled once, however many containers have it.

A filter is known by its content: that of a profile is the same for all containers with the same
capabilities, that of a file is another one when the file is. crun takes the program; an OCI runtime
that does not, and a node without libseccomp, get the filter as OCI has it.
"""

from __future__ import annotations

import asyncio
import json
from collections import OrderedDict
from typing import TYPE_CHECKING, Final, cast

from noderuntime.errors import FailedPreconditionError
from noderuntime.policy import recording, seccomp, spec

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping
    from pathlib import Path

    from noderuntime.engine.disk import Disk
    from noderuntime.host.seccomp import SeccompCompiler

MAX_PROGRAMS: Final = 64  # of some 10 KiB


class Filters:
    """The programs that were made, the last used ones; and which OCI runtimes take them."""

    def __init__(self, compiler: SeccompCompiler, recorder: Path | None = None) -> None:
        """Compile nothing yet. ``recorder`` is a socket whose owner is told of each call, or None."""
        self._compiler = compiler
        self._recorder = recorder
        self._programs: OrderedDict[str, bytes] = OrderedDict()
        self._takers: dict[Path, tuple[tuple[int, ...], bool]] = {}
        self._compiling = asyncio.Lock()

    @property
    def version(self) -> str:
        """The version of libseccomp; "" where the OCI runtime compiles."""
        return self._compiler.version

    def unknown(self, names: Iterable[str]) -> tuple[str, ...]:
        """Return the system calls that no filter of this node can name, sorted."""
        return tuple(sorted(self._compiler.unknown(names)))

    async def seal(
        self, config: Mapping[str, object], oci_runtime: Path, disk: Disk
    ) -> Mapping[str, object]:
        """Return config.json with its filter as this node and this OCI runtime can have it.

        Raises InvalidArgumentError for a filter that cannot be compiled, FailedPreconditionError for
        an OCI runtime that cannot be recorded.
        """
        linux = cast("Mapping[str, object]", config["linux"])
        filter_ = cast("Mapping[str, object] | None", linux.get("seccomp"))
        if filter_ is None:
            return config
        known = seccomp.without(filter_, self._compiler.unknown(seccomp.names_of(filter_)))
        takes_bpf = await self._takes_bpf(oci_runtime, disk)
        if self._recorder is not None:
            if not takes_bpf:
                raise FailedPreconditionError(
                    f"{oci_runtime.name} cannot be recorded: it compiles filters itself, and would "
                    "wait for its own system calls; use crun"
                )
            known = recording.notifying(known, str(self._recorder))
        config = {**config, "linux": {**linux, "seccomp": known}}
        if not takes_bpf:
            return config
        return spec.sealed(config, await self._program(known, disk))

    async def _program(self, filter_: Mapping[str, object], disk: Disk) -> bytes:
        key = json.dumps(filter_, sort_keys=True)
        async with self._compiling:  # many containers of one profile start at once
            program = self._programs.get(key)
            if program is None:
                program = await disk.run(self._compiler.compile, filter_)
                self._programs[key] = program
                if len(self._programs) > MAX_PROGRAMS:
                    self._programs.popitem(last=False)
            self._programs.move_to_end(key)
        return program

    async def _takes_bpf(self, oci_runtime: Path, disk: Disk) -> bool:
        """Ask the program once; again when it is another file."""
        identity = await disk.run(_identity, oci_runtime)
        known = self._takers.get(oci_runtime)
        if known is None or known[0] != identity:
            takes = bool(identity) and await self._compiler.is_taken_by(oci_runtime)
            known = (identity, takes)
            self._takers[oci_runtime] = known
        return known[1]


def _identity(path: Path) -> tuple[int, ...]:
    try:
        found = path.stat()
    except OSError:
        return ()  # who runs it will say so
    return (found.st_dev, found.st_ino, found.st_size, found.st_mtime_ns)
