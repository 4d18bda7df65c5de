"""``noderuntime run``: a Pod on this machine under a profile, once, without a cluster.

Exit codes: the first of a container's that is not 0, else 0; 3 the profile refuses the Pod; 2 the
files or the command line are wrong; 1 something else is (told by ``main``); 124 the time is up; 130
and 143 it was interrupted, 141 nobody reads its output. Where a container ends with such a code, stderr
says whose it is.
"""

from __future__ import annotations

import asyncio
import json
import signal
from collections.abc import Awaitable, Callable, Generator, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Any, Final

from noderuntime.cli import output
from noderuntime.cli.explaining import declared
from noderuntime.cli.manifest.files import content
from noderuntime.cli.manifest.workloads import Workload, workloads
from noderuntime.cli.output import tell
from noderuntime.cli.running import sources
from noderuntime.cli.running.here import Here
from noderuntime.cli.running.logs import Terminal
from noderuntime.cli.running.places import Place
from noderuntime.cli.running.pod import Control, require_possible
from noderuntime.cli.running.session import Session, Settings
from noderuntime.cli.running.sources import Sources
from noderuntime.cli.signals import first_of
from noderuntime.errors import ConfigError, DeniedError

if TYPE_CHECKING:
    import argparse
    from pathlib import Path

TIME_IS_UP: Final = 124
SIGNALS: Final = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)


@dataclass(frozen=True, slots=True, kw_only=True)
class Asked:
    """What the files say: a Pod, what it uses, and how it is to be run."""

    workload: Workload
    sources: Sources
    settings: Settings

    @property
    def has_several(self) -> bool:
        """Whether lines of output must tell whose they are."""
        spec = self.workload.pod.spec
        return len(spec.containers) + len(spec.init_containers) > 1


@dataclass(slots=True)
class Interrupted:
    """Why the Pod was stopped, as an exit code; 0 when it ended by itself."""

    control: Control = field(default_factory=Control)
    code: int = 0

    def stop(self, code: int) -> None:
        """Stop the Pod; the second time kill it."""
        self.code = self.code or code
        if self.control.stopping.is_set():
            tell("killing the Pod")
        elif code != TIME_IS_UP:
            tell("stopping the Pod; once more kills it")
        self.control.stop()


Doing = Callable[[Asked, Control], Awaitable[Mapping[str, int]]]
"""What is done with a Pod; returns the exit codes by container."""


def main(options: argparse.Namespace) -> int:
    """Run the Pod and return the exit code. Raises NodeRuntimeError for what goes wrong besides."""
    try:
        asked = read(options)
    except ConfigError as error:
        tell(str(error))
        return output.WRONG
    for each in notes(asked):
        tell(each)
    try:
        return asyncio.run(run(asked, options.timeout))
    except DeniedError as error:
        tell(str(error))
        return output.REFUSED


def read(options: argparse.Namespace) -> Asked:
    """Read the files and refuse what cannot be run here. Raises ConfigError."""
    found = declared.read(
        {name: content(name) for name in (*options.profile, *options.node_runtime)}
    )
    asked = read_pod(options)
    pod = asked.workload
    runtime = declared.chosen_runtime(found, pod.pod.spec.runtime_class_name, pod.namespace)
    profile = declared.chosen_profile(found, options.profile_name, runtime)
    declared.rules(found, profile, runtime)  # it compiles, or the reason is told here
    handler = declared.handler(profile, found.profiles, runtime, found.runtimes.get(runtime))
    return replace(asked, settings=replace(asked.settings, handlers=(handler,)))


def read_pod(options: argparse.Namespace) -> Asked:
    """Read the Pod, and refuse what cannot be run here; no handler yet. Raises ConfigError."""
    shown, data = "standard input" if options.pod == "-" else options.pod, content(options.pod)
    pods = workloads(shown, data, options.namespace)
    if len(pods) > 1:
        names = ", ".join(f"{each.kind} {each.name}" for each in pods)
        raise ConfigError(f"{shown}: holds {len(pods)} Pods ({names}); one is run at a time")
    if options.timeout is not None and not options.timeout > 0:
        raise ConfigError("--timeout: must be more than 0 seconds")
    asked = Asked(
        workload=pods[0],
        sources=sources.read(shown, data, options.namespace),
        settings=Settings(
            state_dir=options.state_dir.absolute(), hosts_dir=options.hosts_dir.absolute()
        ),
    )
    # Any place will do: it is in no sentence.
    place = Place(number=0, run=options.state_dir, state=options.state_dir)
    require_possible(Here(workload=pods[0], place=place, sources=asked.sources, cgroup="/"))
    return asked


def notes(asked: Asked) -> Iterator[str]:
    """Yield what is not done here, of what the manifest asks for."""
    spec = asked.workload.pod.spec
    if spec.ephemeral_containers:
        yield "ephemeral containers are not started"
    if any(each.has_probes for each in (*spec.init_containers, *spec.containers)):
        yield "probes are not run; a container that ends is not started again"


async def run(asked: Asked, timeout_s: float | None, doing: Doing | None = None) -> int:
    """Run the Pod, or do something else with it; returns the exit code. Raises NodeRuntimeError."""
    interrupted = Interrupted()
    try:
        async with asyncio.TaskGroup() as group:
            clock = group.create_task(_stop_after(interrupted, timeout_s), name="timeout")
            with _signals(interrupted):
                try:
                    codes = await (doing or _in_session)(asked, interrupted.control)
                finally:
                    clock.cancel()
    except BaseExceptionGroup as errors:
        raise first_of(errors) from errors
    if interrupted.control.is_unread:
        interrupted.code = interrupted.code or 128 + signal.SIGPIPE
    failed = [code for code in codes.values() if code]
    for name, code in codes.items():
        if code and not interrupted.code:
            tell(f"container {name} ended with exit code {code}")
    return interrupted.code or (failed[0] if failed else 0)


async def _in_session(asked: Asked, control: Control) -> Mapping[str, int]:
    async with Session(asked.settings, tell=tell) as session:
        try:
            return await session.run(
                asked.workload,
                follow=Terminal(prefix=asked.has_several),
                sources=asked.sources,
                control=control,
            )
        finally:
            for each in recorded(session.place.decisions):
                tell(each)


async def _stop_after(interrupted: Interrupted, timeout_s: float | None) -> None:
    if timeout_s is not None:
        await asyncio.sleep(timeout_s)
        tell(f"the time is up ({timeout_s:g} s): stopping the Pod")
        interrupted.stop(TIME_IS_UP)
        await interrupted.control.killing.wait()


@contextmanager
def _signals(interrupted: Interrupted) -> Generator[None]:
    """Let SIGINT, SIGTERM and SIGHUP stop the Pod, the second one kill it."""
    loop = asyncio.get_running_loop()
    for number in SIGNALS:
        loop.add_signal_handler(number, interrupted.stop, 128 + number)
    try:
        yield
    finally:
        for number in SIGNALS:
            loop.remove_signal_handler(number)


def recorded(log: Path) -> Iterator[str]:
    """Yield what the profile would have refused, was it in Enforce, as the decision log has it."""
    try:
        lines = log.read_text().splitlines()
    except OSError:
        return
    for line in lines:
        try:
            decision: Mapping[str, Any] = json.loads(line)
        except ValueError:
            continue
        for each in decision.get("findings", ()):
            yield f"recorded only: {each['field']}: {each['value']}; {each['rule']}; {each['remedy']}"
