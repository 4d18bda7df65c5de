"""A runtime of one's own on this machine: made for a few Pods, and gone with all that it made.

Its process (``private.py``) ends, and cleans up, when the pipe to it closes: at the end of the
context, and also when this process is killed. What both left is taken away by the next session.
"""

from __future__ import annotations

import asyncio
import json
import os
import sys
import sysconfig
from collections.abc import Mapping
from contextlib import AsyncExitStack
from dataclasses import dataclass
from pathlib import Path
from shutil import which
from typing import TYPE_CHECKING, Final, Self, cast

from noderuntime.api.revision import RevisionHandler, make_revision
from noderuntime.cli.manifest.workloads import Workload
from noderuntime.cli.running import places
from noderuntime.cli.running.here import Here
from noderuntime.cli.running.logs import Output
from noderuntime.cli.running.places import Place
from noderuntime.cli.running.pod import Control, PodRun, Tell, require_possible
from noderuntime.cli.running.sources import Sources
from noderuntime.cri.calls import Calls
from noderuntime.errors import UnavailableError
from noderuntime.host.cgroups import is_systemd

if TYPE_CHECKING:
    from asyncio.subprocess import Process
    from types import TracebackType

START_S: Final = 60.0  # a recovery of what was left is in it
END_S: Final = 120.0  # containers that hang in the kernel have their deadlines within
_LOG: Final = "serve.log"


@dataclass(frozen=True, slots=True, kw_only=True)
class Settings:
    """What the runtime serves, and where; images stay in ``state_dir`` for the next run.

    ``records``: system calls of its containers wait for who listens at ``Place.recorder``.
    """

    state_dir: Path
    hosts_dir: Path
    handlers: tuple[RevisionHandler, ...] = ()
    records: bool = False


class Session:
    """The runtime, from the beginning of the context to its end. One session at a place at a time."""

    def __init__(
        self, settings: Settings, *, tell: Tell = lambda _: None, run: Path = places.RUN
    ) -> None:
        """Nothing is made yet. ``tell`` gets sentences for the person who waits; ``run`` is for tests."""
        self._settings = settings
        self._tell = tell
        self._run = run
        self._stack = AsyncExitStack()
        self.place: Place
        self.client: Calls

    async def __aenter__(self) -> Self:
        """Start and wait until it serves. Raises UnavailableError, ConfigError."""
        programs = _programs(self._settings)
        async with self._stack:
            with places.left(run=self._run) as left:
                for place in left:
                    await _clean(place, self._tell)
            self.place = self._stack.enter_context(
                places.taken(self._settings.state_dir, run=self._run)
            )
            places.make_folders(self.place)
            _write(self.place, self._settings, programs)
            process = await self._stack.enter_async_context(Private(self.place))
            await process.ready()
            self.client = await self._stack.enter_async_context(Calls(self.place.socket))
            self._stack = self._stack.pop_all()
        return self

    async def run(
        self,
        workload: Workload,
        *,
        follow: Output,
        sources: Sources | None = None,
        control: Control | None = None,
    ) -> Mapping[str, int]:
        """Run a Pod to its end under the first handler; returns exit codes by container.

        ``follow`` gets what containers write. Raises ConfigError for what only a cluster has,
        DeniedError, and what else the runtime says.
        """
        here = Here(
            workload=workload,
            place=self.place,
            sources=sources or Sources(),
            cgroup=self.place.cgroup(systemd=is_systemd()),
        )
        require_possible(here)
        handlers = self._settings.handlers
        handler = handlers[0].name if handlers else ""
        pod = PodRun(self.client, here, handler, follow, tell=self._tell)
        return await pod.run(control or Control())

    async def __aexit__(self, *_: object) -> None:
        """Take everything away; raises UnavailableError that says what could not be."""
        await self._stack.aclose()


class Private:
    """The runtime's process."""

    def __init__(self, place: Place) -> None:
        """It serves ``place``, whose settings are written."""
        self._place = place
        self._process: Process
        self._told = -1

    async def __aenter__(self) -> Self:
        """Start it: in a session of its own, as a terminal's Ctrl-C is not for it."""
        self._told, telling = os.pipe2(os.O_CLOEXEC)
        try:
            with (self._place.run / _LOG).open("ab") as log:
                self._process = await asyncio.create_subprocess_exec(
                    *(sys.executable, "-m", "noderuntime.cli.running.private"),
                    *(str(self._place.config), str(telling), str(self._place.lock)),
                    stdin=asyncio.subprocess.PIPE,
                    stdout=log,
                    stderr=log,
                    pass_fds=(telling, self._place.lock),
                    start_new_session=True,
                    cwd="/",  # Python would look for modules where the user is
                    env=_environment(),
                )
        except BaseException:
            os.close(self._told)
            raise
        finally:
            os.close(telling)
        return self

    async def ready(self) -> None:
        """Wait until it answers. Raises UnavailableError."""
        try:
            async with asyncio.timeout(START_S):
                said = await asyncio.get_running_loop().run_in_executor(
                    None, os.read, self._told, 4096
                )
        except TimeoutError as error:
            raise UnavailableError(f"the runtime does not start within {START_S:g} s") from error
        if said != b"ready\n":
            why = said.decode(errors="replace").strip() or self._last_words()
            raise UnavailableError(f"the runtime does not start: {why}")

    async def __aexit__(
        self, _: type[BaseException] | None, first: BaseException | None, __: TracebackType | None
    ) -> None:
        """Let it clean up, and wait for that, also when this is cancelled meanwhile."""
        os.close(self._told)
        if self._process.stdin is not None:
            self._process.stdin.close()
        loop, cancelled = asyncio.get_running_loop(), None
        deadline = loop.time() + END_S
        while self._process.returncode is None:
            try:
                async with asyncio.timeout_at(deadline):
                    await self._process.wait()
            except TimeoutError:
                self._process.kill()
                deadline += END_S
            except asyncio.CancelledError as error:
                cancelled = error
        if self._process.returncode:
            said = f"something is left, which the next run tries to remove: {self._last_words()}"
            if first is None:
                raise UnavailableError(said)
            first.add_note(said)
        if cancelled is not None:
            raise cancelled

    def _last_words(self) -> str:
        try:
            lines = (self._place.run / _LOG).read_text(errors="replace").splitlines()
        except OSError:
            return "it said nothing"
        return _sentence(lines[-1]) if lines else "it said nothing"


def _environment() -> dict[str, str]:
    """Return the variables by which the process finds the same code, from another folder."""
    code, given = str(Path(__file__).parents[3]), os.environ.get("PYTHONPATH", "")
    paths = [os.path.abspath(path) for path in given.split(os.pathsep) if path]  # noqa: PTH100
    if code not in paths and code != sysconfig.get_path("purelib"):
        paths.insert(0, code)
    return {**os.environ, "PYTHONPATH": os.pathsep.join(paths), "GRPC_VERBOSITY": "NONE"}


def _sentence(line: str) -> str:
    """Return what a line of the log says."""
    try:
        found = json.loads(line)
    except ValueError:
        return line[:500]
    return ": ".join(str(found[key])[:500] for key in ("message", "error") if key in found)


async def _clean(place: Place, tell: Tell) -> None:
    """Take away what a dead run left at a place that is held; where it cannot be, tell."""
    try:
        async with Private(place):
            pass
    except UnavailableError as error:
        tell(f"{place.run}: {error}")


def _programs(settings: Settings) -> Mapping[str, Path]:
    """Return the programs that are needed. Raises UnavailableError that says what to install."""
    if os.geteuid():
        raise UnavailableError("only root can run containers: use sudo")
    wanted = dict.fromkeys(handler.oci_runtime for handler in settings.handlers) or {"crun": None}
    found: dict[str, Path] = {}
    for name in ("conmon", *wanted):
        path = which(name)
        if path is None:
            raise UnavailableError(f"{name} is not on the PATH: install the package {name}")
        found[name] = Path(path)
    return found


def _write(place: Place, settings: Settings, programs: Mapping[str, Path]) -> None:
    """Write the revision, then the settings, with which there is something to take away."""
    revision = place.run / "current"
    revision.write_text(make_revision(settings.handlers).model_dump_json(by_alias=True))
    # The node's own handlers have names that a declared one cannot have.
    own = {
        f"own.{name}": {"oci_runtime": str(path)}
        for name, path in programs.items()
        if name != "conmon"
    }
    tables: Mapping[str, object] = {
        "socket": str(place.socket),
        "state_dir": str(place.state / "state"),
        "run_dir": str(place.run),
        "revision": str(revision),
        "default_handler": next(iter(own)),
        "handlers": own,
        "cni": {
            "conf_dir": str(place.run / "cni"),  # there is none: the built-in bridge
            "bridge": place.bridge,
            "bridge_subnets": place.subnets,
        },
        "images": {"hosts_dir": str(settings.hosts_dir)},
        "decisions": {"path": str(place.decisions)},
        **({"recording": {"socket": str(place.recorder)}} if settings.records else {}),
    }
    text = "".join(f"{line}\n" for line in _toml(tables))
    new = place.config.with_suffix(".new")
    new.write_text(text)
    new.replace(place.config)


def _toml(tables: Mapping[str, object], above: str = "") -> list[str]:
    """Return lines of TOML with dotted keys; JSON's texts, numbers and lists are TOML's."""
    lines: list[str] = []
    for key, value in tables.items():
        name = f"{above}{json.dumps(key)}"
        if isinstance(value, Mapping):
            lines += _toml(cast("Mapping[str, object]", value), f"{name}.")
        else:
            lines.append(f"{name} = {json.dumps(value)}")
    return lines
