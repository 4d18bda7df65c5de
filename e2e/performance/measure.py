"""What is measured, in which order: rounds of starts and removals, then the questions about many Pods.

The runtimes take turns, round by round and question by question, so that what else the machine
does meanwhile meets both.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Awaitable, Callable, Iterator
from dataclasses import dataclass, field
from functools import partial
from itertools import count
from typing import Final

from e2e.performance.cri import Client, Pod
from e2e.performance.figures import Samples
from e2e.performance.groups import memory
from e2e.performance.rivals import Rival

AT_ONCE: Final = (1, 8, 16)
READY_S: Final = 60.0
SETTLE_S: Final = 2.0
BUILT_IN: Final = ", built-in network"


@dataclass(frozen=True, slots=True, kw_only=True)
class Plan:
    """How much is measured."""

    rounds: int
    pods: dict[int, int]  # at once → Pods a round
    many: int  # the standing Pods
    questions: int
    cold_starts: int
    idle_s: float


SHORT: Final = Plan(
    rounds=2, pods={1: 8, 8: 24, 16: 32}, many=100, questions=20, cold_starts=2, idle_s=15
)
FULL: Final = Plan(
    rounds=6, pods={1: 20, 8: 48, 16: 64}, many=100, questions=100, cold_starts=6, idle_s=60
)


@dataclass(slots=True)
class Side:
    """One runtime under measurement, and its standing Pods."""

    rival: Rival
    client: Client
    standing: list[Pod] = field(default_factory=list[Pod])
    numbers: Iterator[int] = field(default_factory=count)

    @property
    def name(self) -> str:
        return self.rival.name

    def pods(self, amount: int, *, seccomp: bool = False) -> list[Pod]:
        parent, image = self.rival.group.pods, self.rival.places.image
        return [Pod(next(self.numbers), parent, image, seccomp=seccomp) for _ in range(amount)]


class Measurement:
    """One run of the plan."""

    def __init__(
        self, plan: Plan, sides: list[Side], samples: Samples, tell: Callable[[str], None]
    ) -> None:
        self._plan = plan
        self._sides = sides
        self._samples = samples
        self._tell = tell

    async def run(self, floor: Callable[[int], dict[str, float]]) -> None:
        await self._empty()
        await self._rounds(floor)
        await self._fill()
        await self._questions()
        await self._idle()
        await self._cold_starts()
        for side in self._sides:
            await at_once(16, side.standing, side.client.remove)

    async def _empty(self) -> None:
        self._tell("memory without Pods")
        for side in self._sides:
            await self._start(side)
            await side.client.pull(side.rival.places.image)
            await self._restart(side)
        await asyncio.sleep(SETTLE_S)
        for side in self._sides:
            self._weigh(side, 0)
        for side in self._sides:  # the first Pod of a runtime makes the bridge, and more
            pods = side.pods(2)
            await at_once(1, pods, side.client.start)
            await at_once(1, pods, side.client.remove)

    async def _start(self, side: Side) -> None:
        side.rival.start()
        try:
            await side.client.wait_ready(READY_S)
        except TimeoutError as error:
            raise RuntimeError(f"{side.name} is not ready: {side.rival.said()}") from error

    async def _restart(self, side: Side) -> None:
        await side.client.close()
        side.rival.kill()
        await self._start(side)

    def _weigh(self, side: Side, pods: int) -> None:
        found = memory(side.rival.group.processes())
        self._samples.add(f"PSS at {pods} Pods", side.name, found.pss)
        self._samples.add(f"memory at {pods} Pods", side.name, found.whole)

    async def _rounds(self, floor: Callable[[int], dict[str, float]]) -> None:
        for number in range(self._plan.rounds):
            for at in AT_ONCE:
                self._tell(f"round {number + 1} of {self._plan.rounds}, {at} at once")
                for side in self._in_turn(number):
                    await self._round(side, at, f"at {at}")
            for side in self._in_turn(number):
                await self._round(side, 1, "with seccomp", seccomp=True)
            for each in range(self._plan.pods[1]):
                for step, taken in floor(number * 1000 + each).items():
                    self._samples.add(f"floor: {step}", "floor", taken)

    async def built_in(self, ours: Side) -> None:
        """Rounds of ours on its own network and containerd on its plugins: rows of their own."""
        sides = [ours, self._sides[1]]
        await self._start(ours)
        await ours.client.pull(ours.rival.places.image)
        pods = ours.pods(2)
        await at_once(1, pods, ours.client.start)
        await at_once(1, pods, ours.client.remove)
        for number in range(self._plan.rounds):
            for at in AT_ONCE:
                self._tell(f"built-in network, round {number + 1}, {at} at once")
                for side in sides if number % 2 == 0 else sides[::-1]:
                    await self._round(side, at, f"at {at}{BUILT_IN}")

    def _in_turn(self, number: int) -> list[Side]:
        return self._sides if number % 2 == 0 else self._sides[::-1]

    async def _round(self, side: Side, at: int, what: str, *, seccomp: bool = False) -> None:
        pods = side.pods(self._plan.pods[at], seccomp=seccomp)
        group, add = side.rival.group, self._samples.add
        before, begun = group.cpu_ms(), time.perf_counter()
        add(f"start {what}", side.name, *await at_once(at, pods, side.client.start))
        add(f"rate {what}", side.name, len(pods) / (time.perf_counter() - begun))
        between = group.cpu_ms()
        add(f"remove {what}", side.name, *await at_once(at, pods, side.client.remove))
        add(f"CPU of a start {what}", side.name, (between - before) / len(pods))
        add(f"CPU of a removal {what}", side.name, (group.cpu_ms() - between) / len(pods))

    async def _fill(self) -> None:
        for part in (self._plan.many // 2, self._plan.many):
            self._tell(f"memory with {part} Pods")
            for side in self._sides:
                pods = side.pods(part - len(side.standing))
                await at_once(8, pods, side.client.start)
                side.standing += pods
            await asyncio.sleep(SETTLE_S)
            for side in self._sides:
                self._weigh(side, part)

    async def _questions(self) -> None:
        self._tell(f"questions with {self._plan.many} Pods")
        for number in range(self._plan.questions):
            for side in self._in_turn(number):
                container = side.standing[number % len(side.standing)].container
                await self._time(side, "ExecSync", partial(side.client.exec_true, container))
                await self._time(side, "ListContainerStats", side.client.stats)
                await self._time(side, "ListPodSandbox", side.client.sandboxes)
                await self._time(side, "ListContainers", side.client.containers)

    async def _time(self, side: Side, work: str, ask: Callable[[], Awaitable[object]]) -> None:
        begun = time.perf_counter()
        answer = await ask()
        self._samples.add(work, side.name, (time.perf_counter() - begun) * 1000)
        if isinstance(answer, int) and answer != len(side.standing):
            raise RuntimeError(f"{side.name}: {work} told of {answer} of {len(side.standing)}")

    async def _idle(self) -> None:
        """What a kubelet asks for by itself: its list of Pods each second, stats each ten."""
        self._tell(f"{self._plan.idle_s:g} s of an idle node, asked as a kubelet asks")
        before = {side.name: side.rival.group.cpu_ms() for side in self._sides}
        begun = time.perf_counter()
        for second in range(int(self._plan.idle_s)):
            for side in self._sides:
                await side.client.sandboxes()
                await side.client.containers()
                if second % 10 == 0:
                    await side.client.stats()
                if second % 5 == 0:
                    await side.client.is_ready()
            await asyncio.sleep(max(0.0, begun + second + 1 - time.perf_counter()))
        minutes = (time.perf_counter() - begun) / 60
        for side in self._sides:
            used = side.rival.group.cpu_ms() - before[side.name]
            self._samples.add("CPU a minute", side.name, used / minutes)

    async def _cold_starts(self) -> None:
        for number in range(self._plan.cold_starts):
            self._tell(f"cold start {number + 1} of {self._plan.cold_starts}")
            for side in self._in_turn(number):
                await side.client.close()
                side.rival.kill()
                before, begun = side.rival.group.cpu_ms(), time.perf_counter()
                await self._start(side)
                await _all_listed(side)
                self._samples.add("cold start", side.name, (time.perf_counter() - begun) * 1000)
                used = side.rival.group.cpu_ms() - before
                self._samples.add("CPU of a cold start", side.name, used)


async def _all_listed(side: Side) -> None:
    wanted = len(side.standing)
    client = side.client
    while True:
        if await client.sandboxes() == wanted and await client.containers() == wanted:
            return
        await asyncio.sleep(0.005)


async def at_once(
    amount: int, pods: list[Pod], work: Callable[[Pod], Awaitable[float]]
) -> list[float]:
    """Do the work for every Pod, so many at once; returns what each took."""
    left, taken = iter(pods), list[float]()

    async def worker() -> None:
        for pod in left:
            taken.append(await work(pod))

    async with asyncio.TaskGroup() as group:
        for _ in range(amount):
            group.create_task(worker())
    return taken
