"""One Pod from its sandbox to its end, in the order in which a kubelet does it.

Init containers one after another, sidecars (init containers with ``restartPolicy: Always``) from
their turn on, then the containers; when the last of these has ended the sidecars are stopped. A
container that ends is not started again, whatever ``restartPolicy`` says: what is tried is the Pod,
once. Source: kubelet ``pkg/kubelet/kuberuntime/kuberuntime_manager.go`` (SyncPod, KEP-753).
"""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Mapping
from contextlib import AsyncExitStack, aclosing, suppress
from dataclasses import dataclass, field
from typing import Final

from noderuntime.cli.manifest.model import Container
from noderuntime.cli.manifest.requests import Place as ListName
from noderuntime.cli.manifest.requests import each_container
from noderuntime.cli.running import request, volumes
from noderuntime.cli.running.here import Here
from noderuntime.cli.running.logs import Follower, Output
from noderuntime.cli.signals import first_of
from noderuntime.cri.calls import Calls
from noderuntime.cri.runtime_v1 import api_pb2 as pb
from noderuntime.errors import FailedPreconditionError, NodeRuntimeError
from noderuntime.host.threads import in_pool

LOOK_AGAIN_S: Final = 1.0  # should an event be lost
_ALWAYS: Final = "Always"

Tell = Callable[[str], None]


@dataclass(slots=True, kw_only=True)
class Started:
    """A container that was started; ``code`` is None until it has ended."""

    id: str
    container: Container
    is_sidecar: bool
    follower: Follower
    code: int | None = None


async def _nothing() -> None:
    """Do nothing at the end."""


@dataclass(slots=True, kw_only=True)
class Control:
    """What the one who watches can do: stop it, with the Pod's grace, or kill it.

    ``at_end`` is called once, before the Pod is taken away, whatever its end is.
    """

    at_end: Callable[[], Awaitable[None]] = _nothing

    stopping: asyncio.Event = field(default_factory=asyncio.Event)
    killing: asyncio.Event = field(default_factory=asyncio.Event)
    changed: asyncio.Event = field(default_factory=asyncio.Event)  # look at the containers now
    is_unread: bool = False  # nobody reads any more what the containers write

    def stop(self) -> None:
        """Stop; the second time kill."""
        if self.stopping.is_set():
            self.killing.set()
        self.stopping.set()
        self.changed.set()


def require_possible(here: Here) -> None:
    """Refuse what cannot be run without a cluster, before anything is made. Raises ConfigError."""
    spec = here.workload.pod.spec
    volumes.require_possible(here)
    request.sandbox(here)
    for place, index, _ in each_container(spec):
        if place != "ephemeralContainers":
            request.container(here, place, index, None, "127.0.0.1")


class PodRun:
    """One run of one Pod."""

    def __init__(
        self, calls: Calls, here: Here, handler: str, output: Output, *, tell: Tell
    ) -> None:
        """``tell`` gets sentences for the person who waits."""
        self._calls, self._here, self._handler = calls, here, handler
        self._output, self._tell, self._control = output, tell, Control()
        self._sandbox = pb.PodSandboxConfig()
        self._sandbox_id = ""
        self._ip = ""
        self._started: list[Started] = []

    async def run(self, control: Control) -> Mapping[str, int]:
        """Run to the end; returns the exit codes by container, in the Pod's order, without sidecars.

        After a stop those that were started have one. Raises DeniedError and what else the runtime
        says; whatever happens, the Pod is gone then.
        """
        self._control = control
        try:
            async with asyncio.TaskGroup() as group:
                events = group.create_task(self._hear(), name="events")
                followers = group.create_task(self._run_with_logs(), name="pod")
                codes = await followers
                events.cancel()
        except BaseExceptionGroup as errors:
            raise first_of(errors) from errors
        return codes

    async def _run_with_logs(self) -> Mapping[str, int]:
        async with AsyncExitStack() as stack:
            stack.push_async_callback(self._remove)
            stack.push_async_callback(self._control.at_end)
            async with asyncio.TaskGroup() as group:
                try:
                    return await self._run(group)
                finally:
                    for each in self._started:
                        each.follower.end()

    async def _run(self, followers: asyncio.TaskGroup) -> Mapping[str, int]:
        here, spec = self._here, self._here.workload.pod.spec
        self._sandbox = request.sandbox(here)
        await in_pool(volumes.make, here)
        self._sandbox_id = await self._calls.run_sandbox(self._sandbox, self._handler)
        self._ip = (await self._calls.sandbox_status(self._sandbox_id)).network.ip
        await in_pool(volumes.tell, here, self._ip)
        for volume in spec.volumes:
            if volume.image is not None:
                await self._image(pb.ImageSpec(image=volume.image.reference), "IfNotPresent")
        for index, each in enumerate(spec.init_containers):
            started = await self._start(followers, "initContainers", index, each)
            if started is None:
                break
            if not started.is_sidecar and await self._end_of([started]) != 0:
                break
        else:
            for index, each in enumerate(spec.containers):
                await self._start(followers, "containers", index, each)
        ends = [each for each in self._started if not each.is_sidecar]
        await self._end_of(ends)
        await self._stop([each for each in self._started if each.is_sidecar])
        return {each.container.name: each.code or 0 for each in ends}

    async def _start(
        self, followers: asyncio.TaskGroup, place: ListName, index: int, each: Container
    ) -> Started | None:
        """Pull, create, start; None once it is to stop."""
        if self._control.stopping.is_set():
            return None
        wanted = pb.ImageSpec(image=each.image, runtime_handler=self._handler)
        image = await self._image(wanted, each.image_pull_policy)
        if image is None:
            return None
        config = request.container(self._here, place, index, image, self._ip)
        await in_pool(volumes.prepare, self._here, each)
        container_id = await self._calls.create_container(self._sandbox_id, config, self._sandbox)
        path = self._here.logs / config.log_path
        path.parent.mkdir(exist_ok=True)

        async def reopen() -> None:
            await self._calls.reopen_log(container_id)

        started = Started(
            id=container_id,
            container=each,
            is_sidecar=place == "initContainers" and each.restart_policy == _ALWAYS,
            follower=Follower(each.name, path, self._output, reopen),
        )
        await self._calls.start_container(container_id)
        self._started.append(started)
        followers.create_task(self._follow(started.follower), name=f"log of {each.name}")
        return started

    async def _follow(self, follower: Follower) -> None:
        try:
            await follower.run()
        except BrokenPipeError:  # `| head`: who reads has enough
            self._control.is_unread = True
            self._control.stop()

    async def _image(self, wanted: pb.ImageSpec, policy: str) -> pb.Image | None:
        """Return the image, pulled where it is not there; None once it is to stop."""
        found = None if policy == _ALWAYS else await self._calls.image_status(wanted)
        if found is not None:
            return found
        if policy == "Never":
            raise FailedPreconditionError(
                f"the image {wanted.image} is not there, and imagePullPolicy is Never"
            )
        self._tell(f"pulling {wanted.image}")
        began_s = asyncio.get_running_loop().time()
        async with asyncio.TaskGroup() as group:
            pull = group.create_task(
                self._calls.pull_image(wanted, self._sandbox, timeout_s=None), name="pull"
            )
            stop = group.create_task(self._control.stopping.wait(), name="stop")
            await asyncio.wait({pull, stop}, return_when=asyncio.FIRST_COMPLETED)
            was_stopped = not pull.done()
            stop.cancel()
            pull.cancel()
        if was_stopped:
            return None
        took_s = asyncio.get_running_loop().time() - began_s
        found = await self._calls.image_status(wanted)
        if found is not None:
            self._tell(f"pulled {wanted.image} in {took_s:.1f} s ({found.size / 1e6:.1f} MB)")
        return found

    async def _end_of(self, wanted: list[Started]) -> int:
        """Wait until all have ended, and stop them when asked to. Returns the first code but 0."""
        told = len(wanted) < 2
        while any(each.code is None for each in wanted):
            if self._control.stopping.is_set():
                await self._stop(wanted)
                break
            self._control.changed.clear()
            for each in wanted:
                if each.code is None and await self._look(each) and each.code and not told:
                    self._tell(f"container {each.container.name} ended with exit code {each.code}")
            if any(each.code is None for each in wanted):
                await self._wait_for_change()
        return next((each.code for each in wanted if each.code), 0)

    async def _wait_for_change(self) -> None:
        with suppress(TimeoutError):
            async with asyncio.timeout(LOOK_AGAIN_S):
                await self._control.changed.wait()

    async def _look(self, started: Started) -> bool:
        """Ask after a container; True when it has ended."""
        status = await self._calls.container_status(started.id)
        if status.state != pb.CONTAINER_EXITED:
            return False
        started.code = status.exit_code
        started.follower.end()
        if status.reason == "OOMKilled":
            self._tell(
                f"container {started.container.name} had more memory than its limit (OOMKilled)"
            )
        return True

    async def _stop(self, wanted: list[Started]) -> None:
        """Stop them, the last started first where they are sidecars; at once when it is to be killed."""
        grace_s = self._here.workload.pod.spec.termination_grace_period_seconds
        async with asyncio.TaskGroup() as group:
            kill = group.create_task(self._kill_when_told(wanted), name="kill")
            if all(each.is_sidecar for each in wanted):
                for each in reversed(wanted):
                    await self._calls.stop_container(each.id, grace_s)
            else:
                async with asyncio.TaskGroup() as stops:
                    for each in wanted:
                        stops.create_task(self._calls.stop_container(each.id, grace_s))
            kill.cancel()
        for each in wanted:
            await self._look(each)

    async def _kill_when_told(self, wanted: list[Started]) -> None:
        await self._control.killing.wait()
        for each in wanted:
            await self._calls.stop_container(each.id, 0)

    async def _hear(self) -> None:
        """Wake the waiting for each event; without events it looks every second."""
        with suppress(NodeRuntimeError):
            async with aclosing(self._calls.events()) as events:
                async for _ in events:
                    self._control.changed.set()

    async def _remove(self) -> None:
        if self._sandbox_id:
            await self._calls.stop_sandbox(self._sandbox_id)
            await self._calls.remove_sandbox(self._sandbox_id)
