"""conmon (2.1): holds a container's pipes and its log, reports its end, lives when we do not.

conmon forks away at once, so it is nobody's child here. It works in the bundle: there it finds
config.json and leaves ``conmon.pid``, ``container.pid``, ``attach``, ``ctl``, ``winsz``, ``oom``;
the exit code becomes a file ``EXITS/ID``. All that a later runtime must know is in those files and
in ``monitor.json``: a killed runtime finds it again. Source: ``src/{conmon,cli}.c`` of conmon.
"""

from __future__ import annotations

import asyncio
import json
import os
import re
import signal
import time
from collections.abc import AsyncIterator, Mapping
from contextlib import suppress
from pathlib import Path
from typing import Final, Self, cast

from noderuntime.errors import (
    DeadlineExceededError,
    FailedPreconditionError,
    HostError,
    InvalidArgumentError,
    NotFoundError,
)
from noderuntime.host import durable, oom, pids, pipes
from noderuntime.host.attach import ConmonAttach, send_reopen
from noderuntime.host.lost_monitor import ExitStatuses, end_log
from noderuntime.host.monitor_start import kill_creators, take_lock
from noderuntime.host.oci_runtime import clean_message
from noderuntime.host.ports import Exit, MonitorRequest, OciRuntime
from noderuntime.host.process import ENVIRONMENT, nonblocking_pipe, null, spawn_aside
from noderuntime.host.threads import in_pool
from noderuntime.host.watch import Renames

_CREATE_TIMEOUT_S: Final = 120.0
_REOPEN_TIMEOUT_S: Final = 5.0
_END_TIMEOUT_S: Final = 2.0
_SYNC_LIMIT_BYTES: Final = 64 * 1024
_SIZE_LIMIT_BYTES: Final = 4096
_CONFIG_LIMIT_BYTES: Final = 16 * 1024 * 1024
_ID: Final = re.compile(r"[A-Za-z0-9][A-Za-z0-9_.-]{0,127}")
_FILES: Final = (
    "conmon.pid", "container.pid", "attach", "ctl", "winsz", "oom", "monitor.json", "monitor.lock",
)  # fmt: skip


class Conmon:
    """The ``Monitor`` of ports.py. A container's bundle is ``bundles/ID``."""

    def __init__(self, binary: Path, bundles: Path, exits: Path) -> None:
        """``exits`` is made here: it must be there before the first watch."""
        self._binary = binary
        self._bundles = bundles
        self._exits = exits
        self._statuses = ExitStatuses()
        exits.mkdir(parents=True, exist_ok=True, mode=0o700)

    def _bundle(self, container_id: str) -> Path:
        if not _ID.fullmatch(container_id):
            raise InvalidArgumentError(f"container ID {container_id!r} is not one")
        return self._bundles / container_id

    async def create(self, runtime: OciRuntime, request: MonitorRequest) -> int:
        """Start conmon, which runs ``RUNTIME create``, and return the container's PID.

        Raises HostError with the runtime's own words when the container could not be created;
        then, and when it is cancelled, neither monitor nor container is left.
        """
        bundle = self._bundle(request.container_id)
        if bundle != request.bundle:
            raise HostError(f"bundle {request.bundle} is not the container's, which is {bundle}")
        has_log = request.log_path != Path()
        await in_pool(_prepare, bundle, request, has_log=has_log)
        (self._exits / request.container_id).unlink(missing_ok=True)
        try:
            async with asyncio.timeout(_CREATE_TIMEOUT_S):
                answer = await self._start(runtime, request, has_log=has_log)
            pid = _created_pid(answer, runtime, request)
            self._statuses.hold(request.container_id, pid)
            return pid  # noqa: TRY300
        except BaseException as error:
            # First the monitor, so that no ``create`` is under way when the runtime is asked.
            await self.remove(request.container_id)
            try:
                await runtime.delete(request.container_id)
            except HostError as cleanup:
                error.add_note(f"and while cleaning up: {cleanup}")
            if isinstance(error, TimeoutError):
                raise DeadlineExceededError(
                    f"container {request.container_id} was not created in {_CREATE_TIMEOUT_S:g} s"
                ) from error
            raise

    async def _start(self, runtime: OciRuntime, request: MonitorRequest, *, has_log: bool) -> bytes:
        """Start conmon and return its answer."""
        sync_r, sync_w = nonblocking_pipe(ours=0)
        # TMPDIR: conmon binds the console socket there; a full path could pass sun_path's 107.
        env = {**ENVIRONMENT, "_OCI_SYNCPIPE": "3", "TMPDIR": "."}
        argv = self._arguments(runtime, request, has_log=has_log)
        try:
            try:
                lock = take_lock(request.bundle)
                try:
                    with null() as nothing:
                        descriptors = (nothing, nothing, nothing, sync_w, lock)
                        child = await spawn_aside(argv, descriptors, env=env, cwd=request.bundle)
                finally:
                    os.close(lock)
            finally:
                os.close(sync_w)
            try:
                await child.wait()  # it forks the monitor away and ends
            except BaseException:
                child.signal(signal.SIGKILL, group=True)
                raise
            return await _read_sync(sync_r)
        finally:
            os.close(sync_r)

    def _arguments(
        self, runtime: OciRuntime, request: MonitorRequest, *, has_log: bool
    ) -> tuple[str, ...]:
        flags = {
            "--terminal": request.terminal,
            "--stdin": request.stdin,
            "--leave-stdin-open": request.stdin and not request.stdin_once,
        }
        return (
            str(self._binary),
            "--api-version=1",
            f"--cid={request.container_id}",
            f"--cuuid={request.container_id}",
            f"--runtime={runtime.program}",
            *(f"--runtime-arg={argument}" for argument in runtime.global_arguments()),
            f"--bundle={request.bundle}",
            f"--container-pidfile={request.bundle / 'container.pid'}",
            f"--conmon-pidfile={request.bundle / 'conmon.pid'}",
            f"--exit-dir={self._exits}",
            f"--log-path={f'k8s-file:{request.log_path}' if has_log else 'none'}",
            "--full-attach",
            "--no-sync-log",
            *(flag for flag, is_set in flags.items() if is_set),
        )

    async def exit_of(self, container_id: str) -> Exit | None:
        """Return how the container ended, or None while its monitor has not said so."""
        bundle = self._bundle(container_id)
        file = self._exits / container_id
        data = durable.read(file, limit_bytes=_SIZE_LIMIT_BYTES)
        if data is None:
            return None
        self._statuses.forget(container_id)
        text = data.decode(errors="replace").strip()
        code = int(text) if re.fullmatch(r"-?\d{1,5}", text) else -1
        # -1: conmon lost its child's status; 255 is what a runtime reports for "unknown".
        code = code if 0 <= code <= 255 else 255
        return Exit(
            code=code,
            finished_at_ns=file.stat().st_mtime_ns,
            # An OOM kill of some child that the container survived is not how it ended.
            oom_killed=code != 0 and (bundle / "oom").exists(),
        )

    def exits(self) -> AsyncIterator[str]:
        """Yield each container's ID as it ends; the watch begins with this call."""
        return _Exits(self._exits)

    def _monitor(self, container_id: str) -> pids.Handle | None:
        """Open the monitor's process: its PID file, checked against its command line."""
        pid = _pid_in(self._bundle(container_id) / "conmon.pid")
        handle = None if pid is None else pids.open_process(pid)
        if handle is None:
            return None
        if f"--cid={container_id}" not in pids.command_line(handle.identity.pid):
            handle.close()  # the number is somebody else's now
            return None
        return handle

    async def is_alive(self, container_id: str) -> bool:
        """Tell whether this container's conmon runs.

        What a later loss of it will need is held from now on, also by a runtime that found it here.
        """
        if not self._statuses.is_held(container_id):
            pid = _pid_in(self._bundle(container_id) / "container.pid")
            if pid is not None:
                self._statuses.hold(container_id, pid)
        handle = self._monitor(container_id)
        if handle is None:
            return False
        handle.close()
        return True

    async def lost_exit_of(self, container_id: str) -> Exit | None:
        """Return how a container ended whose monitor was killed, None where nobody knows."""
        code = self._statuses.code_of(container_id)
        return None if code is None else Exit(code=code, finished_at_ns=time.time_ns())

    async def end_log(self, container_id: str, sentence: str) -> None:
        """Write to the log, which nobody writes any more, why it ends. Raises HostError."""
        log_path = _facts(self._bundle(container_id)).get("logPath")
        if isinstance(log_path, str) and log_path:
            await in_pool(end_log, Path(log_path), sentence)

    async def signal(self, container_id: str, number: int) -> bool:
        """Signal the container's first process, as ``RUNTIME kill`` does, without starting a program.

        It is the one in the PID file as long as it is the child of this container's monitor: the
        monitor alone collects it, and the pidfd was opened before that was looked at.
        """
        monitor = self._monitor(container_id)
        if monitor is None:
            return False
        try:
            pid = _pid_in(self._bundle(container_id) / "container.pid")
            handle = None if pid is None else pids.open_process(pid)
            if handle is None:
                return False
            try:
                stat = pids.read_stat(handle.identity.pid)
                if stat is None or stat.parent != monitor.identity.pid:
                    return False
                handle.signal(number)
            finally:
                handle.close()
        finally:
            monitor.close()
        return True

    async def remove(self, container_id: str) -> None:
        """End conmon and remove its files. Idempotent.

        Where the container is gone, conmon is given a moment to write what is left to the log.
        """
        bundle = self._bundle(container_id)
        handle = self._monitor(container_id)
        if handle is not None:
            try:
                patience_s = 0.0 if _container_runs(bundle) else _END_TIMEOUT_S
                if not await handle.wait_end(patience_s):
                    handle.signal(signal.SIGKILL)
                    await handle.wait_end(_END_TIMEOUT_S)
            finally:
                handle.close()
        if (bundle / "monitor.json").exists() and not (bundle / "container.pid").exists():
            await kill_creators(container_id, bundle)
        self._statuses.forget(container_id)
        (self._exits / container_id).unlink(missing_ok=True)
        with suppress(FileNotFoundError, NotADirectoryError):
            for file in (*_FILES, *(f.name for f in bundle.glob("conmon-term.*"))):
                (bundle / file).unlink(missing_ok=True)

    def close(self) -> None:
        """Let go of the processes' statuses; the containers run on."""
        self._statuses.close()

    async def reopen_log(self, container_id: str) -> None:
        """Let conmon open its log anew and wait until it has. Raises HostError if it does not."""
        bundle = self._bundle(container_id)
        log_path = _facts(bundle).get("logPath")
        if not isinstance(log_path, str) or not log_path:
            return
        log = Path(log_path)
        # conmon writes to NAME.tmp and renames it; the rename is the end of it.
        with Renames(log.parent) as renames:
            send_reopen(bundle)
            try:
                async with asyncio.timeout(_REOPEN_TIMEOUT_S):
                    async for name in renames:
                        if name in {None, log.name}:
                            return
            except TimeoutError as error:
                raise HostError(f"the monitor did not open {log} anew") from error

    async def attach(self, container_id: str) -> ConmonAttach:
        """Connect to the container's streams; raises HostError when its monitor is not there."""
        bundle = self._bundle(container_id)
        return await ConmonAttach.connect(bundle, terminal=bool(_facts(bundle).get("terminal")))


class _Exits:
    """The IDs in the exit folder as they come; all again where some may have been missed."""

    def __init__(self, directory: Path) -> None:
        self._directory = directory
        self._renames = Renames(directory)
        self._again: list[str] = []

    def __aiter__(self) -> Self:
        return self

    async def __anext__(self) -> str:
        while not self._again:
            name = await anext(self._renames)
            if name is not None:
                return name
            self._again = sorted(file.name for file in self._directory.iterdir())
        return self._again.pop(0)


def _prepare(bundle: Path, request: MonitorRequest, *, has_log: bool) -> None:
    if has_log:
        if ":" in str(request.log_path):
            raise InvalidArgumentError(
                f"log path {str(request.log_path)!r} has a colon, which the monitor cannot take"
            )
        if request.log_path.is_symlink():  # conmon would write to what it names
            raise FailedPreconditionError(
                f"log {request.log_path} is a symbolic link; remove it, and see who made it"
            )
        request.log_path.parent.mkdir(parents=True, exist_ok=True, mode=0o755)
    for name in _FILES:
        (bundle / name).unlink(missing_ok=True)
    facts = {"logPath": str(request.log_path) if has_log else "", "terminal": request.terminal}
    durable.write(bundle / "monitor.json", json.dumps(facts).encode())
    lowest = oom.floor()
    if lowest > oom.LOWEST:
        _clamp_config(bundle / "config.json", lowest)


def _clamp_config(path: Path, lowest: int) -> None:
    data = durable.read(path, limit_bytes=_CONFIG_LIMIT_BYTES)
    if data is None:
        raise HostError(f"{path} is not there")
    try:
        config = cast("Mapping[str, object]", json.loads(data))
    except ValueError as error:
        raise HostError(f"{path} is not JSON: {error}") from error
    clamped = oom.clamp_config(config, lowest)
    if clamped is not config:
        durable.write(path, json.dumps(clamped).encode())


def _facts(bundle: Path) -> Mapping[str, object]:
    data = durable.read(bundle / "monitor.json", limit_bytes=_CONFIG_LIMIT_BYTES)
    if data is None:
        raise NotFoundError(f"container {bundle.name} has no monitor")
    try:
        facts: object = json.loads(data)
    except ValueError as error:
        raise HostError(f"{bundle / 'monitor.json'} is torn") from error
    return cast("Mapping[str, object]", facts) if isinstance(facts, dict) else {}


def _container_runs(bundle: Path) -> bool:
    pid = _pid_in(bundle / "container.pid")
    return pid is not None and pids.identify(pid) is not None


def _pid_in(file: Path) -> int | None:
    data = durable.read(file, limit_bytes=_SIZE_LIMIT_BYTES)
    return int(data) if data is not None and data.strip().isdigit() else None


async def _read_sync(descriptor: int) -> bytes:
    """Read conmon's one line; empty when it ended without one."""
    line = bytearray()
    while b"\n" not in line and len(line) < _SYNC_LIMIT_BYTES:
        data = await pipes.read(descriptor)
        if not data:
            break
        line += data
    return bytes(line)


def _created_pid(answer: bytes, runtime: OciRuntime, request: MonitorRequest) -> int:
    said = ""
    try:
        # strict=False: conmon leaves some control characters of the runtime's message as they are.
        parsed: object = json.loads(answer.decode(errors="replace"), strict=False)
    except ValueError:
        parsed = None
    if isinstance(parsed, dict):
        fields = cast("Mapping[str, object]", parsed)
        pid = fields.get("data")
        if isinstance(pid, int) and pid > 0:
            return pid
        said = clean_message(str(fields.get("message", "")))
    raise HostError(
        f"{runtime.binary.name} create of container {request.container_id} failed: "
        f"{said or 'the monitor ended without a word; is config.json whole?'}"
    )
