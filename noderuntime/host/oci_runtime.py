"""crun and runc through the command line that both share. runtime.md of the OCI runtime-spec.

``create`` is not here: the monitor runs it (monitor.py), so that it is the parent of the container.
An error carries what the runtime itself said last, without its time stamps and prefixes.
"""

from __future__ import annotations

import asyncio
import json
import os
import re
from contextlib import suppress
from pathlib import Path
from typing import Final, cast

from noderuntime.errors import DeadlineExceededError, HostError
from noderuntime.host.process import Command, Output, run
from noderuntime.host.program import ReadOnlyProgram
from noderuntime.host.threads import in_pool
from noderuntime.policy.model import Resources

_TIMEOUT_S: Final = 45.0  # below a step's deadline, so that the sentence says which program hung
_DELETE_TRIES: Final = 2
_DELETE_PAUSE_S: Final = 0.1
_KILL_TIMEOUT_S: Final = 10.0  # a stop goes on without it (see engine/container_stop.py)
_CRUN_STAMP: Final = re.compile(r"^\d{4}-\d\d-\d\dT[0-9:.]+(?:Z|[+-]\d\d:?\d\d)?:\s*")
_LOGFMT: Final = re.compile(r'(?:^|\s)msg="((?:[^"\\]|\\.)*)"')
_PREFIX: Final = re.compile(r"^(?:\[conmon:\w\]:|error:|runc \w+ failed:|crun:)\s*", re.IGNORECASE)
_MESSAGE_LIMIT: Final = 1000
_STATES: Final = frozenset({"status", "state.json"})  # of crun, of runc


def clean_message(text: str) -> str:
    """Return the last thing that a runtime said, on one line, as a person would want to read it."""
    lines = [" ".join(line.split()) for line in text.splitlines()]
    last = next((line for line in reversed(lines) if line), "")
    last = _CRUN_STAMP.sub("", last)
    if match := _LOGFMT.search(last):
        last = re.sub(r"\\(.)", r"\1", match[1])
    elif last.startswith("{"):
        last = _message_of_json(last)
    while match := _PREFIX.match(last):
        last = last[match.end() :]
    printable = "".join(c if c.isprintable() else "?" for c in last)
    return printable[:_MESSAGE_LIMIT]


def _message_of_json(line: str) -> str:
    try:
        record: object = json.loads(line)
    except ValueError:
        return line
    if isinstance(record, dict):
        message = cast("dict[str, object]", record).get("msg")
        if isinstance(message, str):
            return message
    return line


def update_document(resources: Resources) -> dict[str, object]:
    """Return LinuxResources of the runtime-spec with what is asked for (0 and "" are not)."""
    cpu = {
        "shares": resources.cpu_shares,
        "quota": resources.cpu_quota_us,
        "period": resources.cpu_period_us,
        "cpus": resources.cpuset_cpus,
        "mems": resources.cpuset_mems,
    }
    memory = {
        "limit": resources.memory_limit_bytes,
        "swap": resources.memory_swap_limit_bytes,
    }
    document: dict[str, object] = {}
    for name, values in (("cpu", cpu), ("memory", memory)):
        if asked := {key: value for key, value in values.items() if value}:
            document[name] = asked
    if resources.hugepage_limits_bytes:
        document["hugepageLimits"] = [
            {"pageSize": size, "limit": limit}
            for size, limit in sorted(resources.hugepage_limits_bytes.items())
        ]
    if resources.unified:
        document["unified"] = dict(resources.unified)
    return document


def _forget(state: Path, bundle: Path) -> bool:
    """Remove the runtime's files of one container; False where that is not all that there is."""
    try:
        if b'"hooks"' in (bundle / "config.json").read_bytes():
            return False
        with os.scandir(state) as entries:
            found = {entry.name: entry.is_dir(follow_symlinks=False) for entry in entries}
    except OSError:
        return False
    if any(found.values()):
        return False
    # The state last: as long as it is there, the runtime itself can delete the rest.
    for name in sorted(found, key=_STATES.__contains__):
        (state / name).unlink(missing_ok=True)
    state.rmdir()
    return True


class OciCli:
    """The ``OciRuntime`` of ports.py."""

    def __init__(
        self,
        binary: Path,
        root: Path,
        *,
        systemd_cgroup: bool = False,
        programs: Path | None = None,
    ) -> None:
        """``systemd_cgroup``: cgroups paths are SLICE:PREFIX:ID and systemd makes them.

        ``programs``: where the program is mounted read-only (see program.py); None: it is not.
        """
        self._binary = binary
        self._root = root
        self._mounted = None if programs is None else ReadOnlyProgram(binary, programs)
        self._systemd_cgroup = systemd_cgroup

    @property
    def binary(self) -> Path:
        """The program."""
        return self._binary

    @property
    def program(self) -> Path:
        """What is started: the program, or the read-only mount of it, under the same name."""
        return self._binary if self._mounted is None else self._mounted.path()

    @property
    def root(self) -> Path:
        """Its ``--root``."""
        return self._root

    def global_arguments(self) -> tuple[str, ...]:
        """What stands between the program and its verb."""
        systemd = ("--systemd-cgroup",) if self._systemd_cgroup else ()
        return (f"--root={self._root}", *systemd)

    def knows(self, container_id: str) -> bool:
        """Tell whether the runtime keeps a state for this container; both make ROOT/ID."""
        return (self._root / container_id).is_dir()

    async def _call(
        self,
        verb: str,
        container_id: str,
        *more: str,
        stdin: bytes = b"",
        options: tuple[str, ...] = (),
    ) -> Output:
        argv = (str(self.program), *self.global_arguments(), verb, *options, container_id, *more)
        timeout_s = _KILL_TIMEOUT_S if verb == "kill" else _TIMEOUT_S
        try:
            return await run(Command(argv=argv, stdin=stdin, timeout_s=timeout_s))
        except DeadlineExceededError as error:
            raise DeadlineExceededError(
                f"{self._binary.name} {verb} of container {container_id} did not finish within "
                f"{timeout_s:g} s and was killed"
            ) from error

    def _failure(self, verb: str, container_id: str, output: Output) -> HostError:
        said = clean_message(output.stderr.decode(errors="replace"))
        why = said or f"it ended with status {output.exit_code} and said nothing"
        return HostError(f"{self._binary.name} {verb} of container {container_id} failed: {why}")

    async def start(self, container_id: str) -> None:
        """``start``."""
        output = await self._call("start", container_id)
        if output.exit_code != 0:
            raise self._failure("start", container_id, output)

    async def kill(self, container_id: str, signal: int) -> None:
        """``kill``; one without a process, or unknown, is success."""
        if not self.knows(container_id):
            return
        output = await self._call("kill", container_id, str(signal))
        if output.exit_code != 0 and await self.state(container_id) not in {None, "stopped"}:
            raise self._failure("kill", container_id, output)

    async def delete(self, container_id: str) -> None:
        """``delete --force``; unknown is success."""
        with suppress(OSError):
            (self._root / container_id).rmdir()  # empty: a ``forget`` was cut off by a kill
        if not self.knows(container_id):
            return
        output = await self._call("delete", container_id, options=("--force",))
        for _ in range(_DELETE_TRIES):
            if not self.knows(container_id):  # whatever it says
                return
            # crun that meets the process just as it ends gives up: "open pidfd: No such file".
            await asyncio.sleep(_DELETE_PAUSE_S)
            output = await self._call("delete", container_id, options=("--force",))
        if self.knows(container_id):
            raise self._failure("delete", container_id, output)

    async def forget(self, container_id: str, bundle: Path) -> None:
        """Like ``delete`` for one whose process has ended and was collected, without a program.

        Nothing is left of such a one but ROOT/ID, and its cgroup, which the caller removes. With
        hooks, which the runtime runs at its end, or a scope of systemd's, ``delete`` does it.
        """
        by_hand = not self._systemd_cgroup and self.knows(container_id)
        if not by_hand or not await in_pool(_forget, self._root / container_id, bundle):
            await self.delete(container_id)

    async def state(self, container_id: str) -> str | None:
        """Return created, running (paused too) or stopped; None for an unknown container."""
        if not self.knows(container_id):
            return None
        output = await self._call("state", container_id)
        if output.exit_code != 0:
            if not self.knows(container_id):
                return None
            raise self._failure("state", container_id, output)
        try:
            status = str(json.loads(output.stdout)["status"])
        except (ValueError, KeyError, TypeError) as error:
            raise HostError(
                f"{self._binary.name} state of container {container_id} is not understood"
            ) from error
        return {"paused": "running", "creating": "created"}.get(status, status)

    async def update(self, container_id: str, resources: Resources) -> None:
        """``update``; nothing asked for is success."""
        document = update_document(resources)
        if not document:
            return
        data = json.dumps(document).encode()
        output = await self._call("update", container_id, options=("--resources", "-"), stdin=data)
        if output.exit_code != 0:
            raise self._failure("update", container_id, output)
