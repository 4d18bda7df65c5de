"""All verbs that are made of steps, and the list of their steps that the census tests run over."""

from __future__ import annotations

from typing import Final

from noderuntime.engine.container_create import CREATE_CONTAINER
from noderuntime.engine.container_remove import REMOVE_CONTAINER
from noderuntime.engine.container_start import START_CONTAINER
from noderuntime.engine.container_stop import STOP_CONTAINER
from noderuntime.engine.sandbox_remove import REMOVE_SANDBOX
from noderuntime.engine.sandbox_run import RUN_SANDBOX
from noderuntime.engine.sandbox_stop import STOP_SANDBOX
from noderuntime.engine.steps import Verb
from noderuntime.engine.work import ContainerWork, SandboxWork

SANDBOX_VERBS: Final[tuple[Verb[SandboxWork], ...]] = (RUN_SANDBOX, STOP_SANDBOX, REMOVE_SANDBOX)
CONTAINER_VERBS: Final[tuple[Verb[ContainerWork], ...]] = (
    CREATE_CONTAINER,
    START_CONTAINER,
    STOP_CONTAINER,
    REMOVE_CONTAINER,
)


def steps_of() -> tuple[str, ...]:
    """Return ``verb/step`` for every step, in order."""
    sandbox = tuple(f"{verb.name}/{step.name}" for verb in SANDBOX_VERBS for step in verb.steps)
    return sandbox + tuple(
        f"{verb.name}/{step.name}" for verb in CONTAINER_VERBS for step in verb.steps
    )
