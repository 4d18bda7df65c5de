"""Carries a plan out: server-side apply with one field manager, and deletes."""

from __future__ import annotations

import asyncio
import logging
from typing import Any, Final, assert_never

from lightkube import ApiError, AsyncClient

from noderuntime_operator.kinds import NAMESPACED, RESOURCES
from noderuntime_operator.reconcile.names import FIELD_MANAGER
from noderuntime_operator.reconcile.plan import Action, Apply, Delete, Plan

_AT_ONCE: Final = 16
_MOVED_ON: Final = (404, 409)  # gone, or another object by now: the next look sees what is true

_log = logging.getLogger(__name__)


async def carry_out(client: AsyncClient, plan: Plan, namespace: str) -> None:
    """Do the steps in order, the actions of a step together.

    Raises ApiError or an HTTP error: the first of the step that failed, when the others of it are done.
    """
    for step in plan.steps:
        slots = asyncio.Semaphore(_AT_ONCE)
        tasks = [_limited(slots, client, action, namespace) for action in step.actions]
        outcomes = await asyncio.gather(*tasks, return_exceptions=True)
        failures = [each for each in outcomes if isinstance(each, BaseException)]
        if failures:
            failures[0].add_note(f"{len(failures)} of {len(outcomes)} actions of step {step.name}")
            raise failures[0]
        _log.info("step done", extra={"step": step.name, "actions": len(outcomes)})


async def _limited(
    slots: asyncio.Semaphore, client: AsyncClient, action: Action, namespace: str
) -> None:
    async with slots:
        try:
            await _do(client, action, namespace)
        except ApiError as error:
            if error.status.code not in _MOVED_ON:
                raise
            _log.info("object moved on", extra={"object": f"{action.kind}/{action.name}"})


async def _do(client: AsyncClient, action: Action, namespace: str) -> None:
    place: dict[str, Any] = {"namespace": namespace} if action.kind in NAMESPACED else {}
    resource = RESOURCES[action.kind]
    match action:
        case Apply():
            target = resource.Status if action.status else resource
            await client.apply(
                target(action.body), action.name, field_manager=FIELD_MANAGER, force=True, **place
            )
        case Delete():
            await client.delete(resource, action.name, **place)
        case _:
            assert_never(action)
