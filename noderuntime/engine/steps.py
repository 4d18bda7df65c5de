"""Verbs as tuples of steps, and the two ways to carry one out.

``perform`` is for what makes something: cut off or failed, it is undone whole. ``carry_through`` is
for what takes something away: cut off or failed, it is done again, by the next call or start.
Both write one intent before the first step; the last step of each writes (or removes) the record.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from functools import partial
from typing import Generic, Protocol, TypeVar

from noderuntime.engine.disk import NO_ROOM
from noderuntime.engine.journal import Intent
from noderuntime.engine.node import Node
from noderuntime.engine.undo import Undo
from noderuntime.errors import DeadlineExceededError, HostError, NodeRuntimeError
from noderuntime.telemetry.trace import span


class Work(Protocol):
    """What the steps of one verb share: the node, the object's record, what earlier steps made.

    Undo may use only the node and the record, since after a crash there is nothing else.
    """

    @property
    def node(self) -> Node:
        """The node."""
        ...

    def intent(self, verb: str) -> Intent:
        """Return the intent that this work can be rebuilt from."""
        ...


W = TypeVar("W", bound=Work)

_log = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True, kw_only=True)
class Step(Generic[W]):
    """One step. ``undo`` succeeds where ``do`` never ran; ``span`` is the name in traces."""

    name: str
    do: Callable[[W], Awaitable[None]]
    undo: Callable[[W], Awaitable[None]] | None = None
    span: str = ""
    deadline_s: float = 60.0


@dataclass(frozen=True, slots=True, kw_only=True)
class Verb(Generic[W]):
    """A verb of the engine."""

    name: str
    steps: tuple[Step[W], ...]


async def perform(verb: Verb[W], work: W) -> None:
    """Do all steps or none. Raises the first failing step's error, failed undos as its notes."""
    intent = work.intent(verb.name)
    await work.node.journal.begin(intent)
    undo = Undo()
    try:
        for step in verb.steps:
            undo.push(step.name, _undo_of(step, work))
            await _fault(verb, step, work, "before")
            await _run(verb, step, work)
            await _fault(verb, step, work, "after")
    except BaseException as error:
        if await undo.unwind(error):
            await work.node.journal.end(intent)
        else:
            work.node.journal.keep(intent)
        raise
    await work.node.journal.end(intent)


async def take_back(verb: Verb[W], work: W) -> None:
    """Undo a verb that an earlier process began. Raises UndoFailedError."""
    undo = Undo()
    for step in verb.steps:
        undo.push(step.name, _undo_of(step, work))
    error = UndoFailedError(f"{verb.name} could not be undone")
    if not await undo.unwind(error):
        raise error


class UndoFailedError(NodeRuntimeError):
    """Something of a half-made object could not be taken back; its notes say what."""

    reason = "UndoFailed"


async def carry_through(verb: Verb[W], work: W, *, covered: bool = False) -> None:
    """Do all steps. On an error the intent stays on disk, so that the next start ends the work.

    ``covered``: the intent of a verb around this one, on disk, makes a restart do all of it again.
    A disk that takes no intent is no reason not to take something away: that is what makes room,
    and what is cut off then is still on record, for the caller's retry.
    """
    intent = work.intent(verb.name)
    if not covered:
        await _begin(work.node, intent)
    done = 0
    try:
        for step in verb.steps:
            await _fault(verb, step, work, "before")
            await _run(verb, step, work)
            done += 1
            await _fault(verb, step, work, "after")
    finally:
        if done == len(verb.steps) and not covered:
            await work.node.journal.end(intent)


async def _begin(node: Node, intent: Intent) -> None:
    try:
        await node.journal.begin(intent)
    except HostError as error:
        if error.errno not in NO_ROOM:
            raise
        _log.warning(
            "what takes something away goes on without an intent",
            extra={"verb": intent.verb, "id": intent.id, "error": str(error)},
        )


async def _run(verb: Verb[W], step: Step[W], work: W) -> None:
    with span(step.span or f"{verb.name}.{step.name}"):
        try:
            async with asyncio.timeout(step.deadline_s):
                await step.do(work)
        except TimeoutError as error:
            raise DeadlineExceededError(
                f"{verb.name}: step {step.name} took more than {step.deadline_s:g} s"
            ) from error


async def _fault(verb: Verb[W], step: Step[W], work: W, when: str) -> None:
    if work.node.faults is not None:
        await work.node.faults(verb.name, f"{step.name}:{when}")


def _undo_of(step: Step[W], work: W) -> Callable[[], Awaitable[None]] | None:
    return None if step.undo is None else partial(step.undo, work)
