"""``noderuntime record``: run a Pod once, and write the least SecurityProfile under which it works.

Exit codes: 0 the profile is written; 3 the Pod is refused under any profile; 2 the files or the
command line are wrong; 1 something else is (told by ``main``). Where a container failed by itself the
profile is written too, and the code is the container's; where the time was up it is 0, as this is how
a server is recorded.
"""

from __future__ import annotations

import asyncio
import os
import platform
import re
import secrets
import sys
import time
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field, replace
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Final

from noderuntime.api.revision import RevisionHandler, RevisionProfile
from noderuntime.cli import output, run
from noderuntime.cli.output import tell
from noderuntime.cli.recording import written
from noderuntime.cli.recording.asked import Asked, asked, needed, wide
from noderuntime.cli.recording.profile import least
from noderuntime.cli.recording.recorder import Recorder
from noderuntime.cli.recording.seen import Recording
from noderuntime.cli.recording.text import as_yaml
from noderuntime.cli.running.logs import Terminal
from noderuntime.cli.running.pod import Control
from noderuntime.cli.running.session import Session
from noderuntime.errors import ConfigError, DeniedError, HostError
from noderuntime.host import durable
from noderuntime.host.threads import in_pool

if TYPE_CHECKING:
    import argparse

_NAME: Final = re.compile(r"[a-z0-9]([-a-z0-9.]{0,251}[a-z0-9])?")
_OLDEST: Final = (5, 19)  # SECCOMP_FILTER_FLAG_WAIT_KILLABLE_RECV
_HANDLER: Final = "recording"


@dataclass(slots=True, kw_only=True)
class Work:
    """One recording. ``names`` are of containers by ID, as far as they are known."""

    asked: Asked
    output: str
    name: str
    began_ns: int = field(default_factory=time.time_ns)
    names: dict[str, str] = field(default_factory=dict[str, str])
    before: dict[str, written.Listing] = field(default_factory=dict[str, written.Listing])
    changed: dict[str, bool | None] = field(default_factory=dict[str, "bool | None"])


def main(options: argparse.Namespace) -> int:
    """Record a Pod and return the exit code. Raises NodeRuntimeError for what goes wrong besides."""
    try:
        pod = run.read_pod(options)
        work = Work(
            asked=asked(pod.workload), output=options.output, name=_name(options, pod.workload.name)
        )
        _require_output(work.output)
    except ConfigError as error:
        tell(str(error))
        return output.WRONG
    _require_kernel()
    for each in run.notes(pod):
        tell(each)
    profile = RevisionProfile(name=work.name, spec=wide(work.asked))
    handler = RevisionHandler(name=_HANDLER, node_runtime=work.name, profile=profile)
    settings = replace(pod.settings, handlers=(handler,), records=True)
    try:
        code = asyncio.run(
            run.run(replace(pod, settings=settings), options.timeout, Doing(work).record)
        )
    except DeniedError as error:
        tell(str(error))
        return output.REFUSED
    was_stopped = code in (run.TIME_IS_UP, *(128 + number for number in run.SIGNALS))
    return 0 if was_stopped else code


def _name(options: argparse.Namespace, pod: str) -> str:
    name = str(options.name or pod)
    if _NAME.fullmatch(name) is None:
        raise ConfigError(f"--name: {name[:80]!r} is not the name of an object of Kubernetes")
    return name


def _require_output(path: str) -> None:
    """Refuse a file that cannot be written before anything is recorded. Raises ConfigError."""
    folder = Path(path).absolute().parent
    if path != "-" and (Path(path).is_dir() or not os.access(folder, os.W_OK)):
        raise ConfigError(f"--output: cannot write {path}")


def _require_kernel() -> None:
    release = platform.release()
    numbers = re.match(r"(\d+)\.(\d+)", release)
    if numbers is None or (int(numbers[1]), int(numbers[2])) < _OLDEST:
        raise HostError(f"recording needs Linux {'.'.join(map(str, _OLDEST))}; this is {release}")


class Doing:
    """What is done with a Pod that is recorded: run it, look at it at its end, write the profile."""

    def __init__(self, work: Work) -> None:
        """Nothing is done yet."""
        self._work = work

    async def record(self, pod: run.Asked, control: Control) -> Mapping[str, int]:
        """Run and record; returns the exit codes. Raises NodeRuntimeError."""
        async with Session(pod.settings, tell=tell) as session:
            recorder = Recorder(session.place.recorder, partial(self._remember, session))
            control.at_end = partial(self._look, session, recorder)
            recorder.start()
            at = f"unix://{session.place.socket}"
            tell(f"recording; for an exec: crictl --runtime-endpoint {at} exec")
            try:
                async with asyncio.TaskGroup() as group:
                    watch = group.create_task(_stop_with(recorder, control), name="recorder")
                    try:
                        codes = await self._run(session, pod, control)
                    finally:
                        watch.cancel()
            finally:
                # Also what a failure left is written; the failure is told as well.
                recording = await in_pool(recorder.stop)
                if self._work.names:
                    await in_pool(self._write, recording)
        return codes

    async def _run(self, session: Session, pod: run.Asked, control: Control) -> Mapping[str, int]:
        stdout = sys.stderr.buffer if self._work.output == "-" else None
        follow = Terminal(prefix=pod.has_several, stdout=stdout)
        return await session.run(pod.workload, follow=follow, sources=pod.sources, control=control)

    def _remember(self, session: Session, container_id: str) -> None:
        """Keep what a container's root has before its program starts; in the recorder's thread."""
        upper = session.place.upper(container_id)
        self._work.before[container_id] = written.listing(upper)

    async def _look(self, session: Session, recorder: Recorder) -> None:
        """Look at what is gone with the Pod: the containers' names, what they wrote."""
        work = self._work
        for container_id, before in list(work.before.items()):
            status = await session.client.container_status(container_id)
            work.names[container_id] = status.metadata.name
            after = await in_pool(written.listing, session.place.upper(container_id))
            seen = recorder.of(container_id)
            if seen is not None:
                seen.written = written.changes(before, after)
        for each in needed(work.asked).host_paths:
            if not each.read_only:
                path = Path(each.path)
                changed = await in_pool(written.is_changed_since, path, work.began_ns)
                work.changed[each.path] = changed

    def _write(self, recording: Recording) -> None:
        """Write the profile: the whole file, or none."""
        work = self._work
        made = least(work.asked, recording, work.names, work.changed)
        text = as_yaml(work.name, made, _heading(work, recording))
        if work.output == "-":
            output.show(text.removesuffix("\n"))
            return
        path = Path(work.output)
        durable.write(path, text.encode(), mode=0o644, writer=secrets.token_hex(8))
        tell(f"the profile is in {path}")


def _heading(work: Work, recording: Recording) -> Iterator[str]:
    pod = work.asked.sandbox.pod
    seconds = (time.time_ns() - work.began_ns) / 1e9
    seen = [recording.containers[key] for key in work.names if key in recording.containers]
    calls = sum(each.calls.total() + each.of_runtime.total() for each in seen)
    execs = sum(each.execs for each in seen)
    yield (
        f"What the Pod {pod.namespace}/{pod.name} used in {seconds:.0f} s: {calls} system calls"
        f"{f' and {execs} execs' if execs else ''} in {len(seen)} "
        f"{'container' if len(seen) == 1 else 'containers'}. What it does at another "
        "time, on another kernel or with another image is not in it: try it with mode Audit first."
    )


async def _stop_with(recorder: Recorder, control: Control) -> None:
    """Kill the Pod when the recorder is no more: all that its programs ask for fails then."""
    await in_pool(recorder.wait)
    control.stop()
    control.stop()
