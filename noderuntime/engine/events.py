"""What happens to sandboxes and containers, told to subscribers as it happens (GetContainerEvents).

Events come from the changes of records, which every verb, every end and every undo goes through, so
none can be forgotten at a call site. Nothing waits for a subscriber: each has a bounded queue, and
one that does not read is cut off with an error. It then lists and subscribes again, as the kubelet
does. Records are immutable, so that an event costs a few references, and nothing without subscribers.
Source: ContainerEventResponse of ``runtime.v1``; kubelet ``pkg/kubelet/pleg/evented.go``, KEP-3386.
"""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import AsyncIterator, Callable
from dataclasses import dataclass
from enum import StrEnum
from typing import Final

from noderuntime.engine.state import ContainerRecord, ContainerState, SandboxRecord, SandboxState
from noderuntime.engine.store import Store
from noderuntime.errors import ResourceExhaustedError

MAX_WAITING: Final = 1000  # ten events each for a node full of Pods
MAX_SUBSCRIBERS: Final = 16  # there is one kubelet; people look as well


class EventKind(StrEnum):
    """ContainerEventType of CRI."""

    CREATED = "CONTAINER_CREATED_EVENT"
    STARTED = "CONTAINER_STARTED_EVENT"
    STOPPED = "CONTAINER_STOPPED_EVENT"
    DELETED = "CONTAINER_DELETED_EVENT"


@dataclass(frozen=True, slots=True, kw_only=True)
class Event:
    """One event, with the Pod as it was just after it. ``sandbox`` is its last record if removed."""

    kind: EventKind
    object_id: str  # of the container, or of the sandbox itself
    created_at_ns: int
    sandbox: SandboxRecord | None
    containers: tuple[ContainerRecord, ...]


class Subscription:
    """The events of one subscriber, from now on."""

    def __init__(self, feed: Feed) -> None:
        """Made by ``Feed.subscribe``."""
        self._feed = feed
        self._waiting: deque[Event] = deque()
        self._news = asyncio.Event()
        self._is_closed = False
        self._is_late = False

    async def __aiter__(self) -> AsyncIterator[Event]:
        """Yield events; ends when closed. Raises ResourceExhaustedError when it read too slowly."""
        while True:
            await self._news.wait()
            if self._is_late:
                raise ResourceExhaustedError(
                    f"events were read too slowly: more than {MAX_WAITING} waited and were dropped; "
                    "list what there is and ask for events again"
                )
            while self._waiting:
                yield self._waiting.popleft()
            if self._is_closed:
                return
            if not self._is_late:
                self._news.clear()

    def close(self) -> None:
        """Hear no more. What waits is dropped."""
        self._is_closed = True
        self._waiting.clear()
        self._news.set()
        self._feed.drop(self)

    def offer(self, event: Event) -> None:
        """Take one event, or cut the subscriber off."""
        if len(self._waiting) >= MAX_WAITING:
            self._is_late = True
            self._waiting.clear()
            self._feed.drop(self)
        else:
            self._waiting.append(event)
        self._news.set()


class Feed:
    """All subscribers of a node."""

    def __init__(self, store: Store, now_ns: Callable[[], int]) -> None:
        """Listen to the store's changes."""
        self._store = store
        self._now_ns = now_ns
        self._subscriptions: set[Subscription] = set()
        store.sandboxes.watch(self._sandbox_changed)
        store.containers.watch(self._container_changed)

    def subscribe(self) -> Subscription:
        """Return a new subscription, to be closed. Raises ResourceExhaustedError."""
        if len(self._subscriptions) >= MAX_SUBSCRIBERS:
            raise ResourceExhaustedError(f"{MAX_SUBSCRIBERS} callers get events already")
        subscription = Subscription(self)
        self._subscriptions.add(subscription)
        return subscription

    def subscriptions(self) -> tuple[Subscription, ...]:
        """Return who listens now."""
        return tuple(self._subscriptions)

    def drop(self, subscription: Subscription) -> None:
        """Forget a subscription."""
        self._subscriptions.discard(subscription)

    def close(self) -> None:
        """End every subscription."""
        for subscription in tuple(self._subscriptions):
            subscription.close()

    def _sandbox_changed(self, before: SandboxRecord | None, now: SandboxRecord | None) -> None:
        record = now or before
        if record is None or not self._subscriptions:
            return
        for kind in kinds_of_sandbox(before, now):
            self._tell(kind, record.id, record)

    def _container_changed(
        self, before: ContainerRecord | None, now: ContainerRecord | None
    ) -> None:
        record = now or before
        if record is None or not self._subscriptions:
            return
        if kind := kind_of_container(before, now):
            self._tell(kind, record.id, self._store.sandboxes.get(record.sandbox_id))

    def _tell(self, kind: EventKind, object_id: str, sandbox: SandboxRecord | None) -> None:
        containers = () if sandbox is None else self._store.containers_of(sandbox.id)
        event = Event(
            kind=kind,
            object_id=object_id,
            created_at_ns=self._now_ns(),
            sandbox=sandbox,
            containers=containers,
        )
        for subscription in tuple(self._subscriptions):
            subscription.offer(event)


def kinds_of_sandbox(
    before: SandboxRecord | None, now: SandboxRecord | None
) -> tuple[EventKind, ...]:
    """Return what a change of a sandbox's record means. A sandbox runs as soon as it is there."""
    if now is None:
        return (EventKind.DELETED,)
    if before is None:
        return (EventKind.CREATED, EventKind.STARTED)
    if before.state is not now.state and now.state is SandboxState.NOT_READY:
        return (EventKind.STOPPED,)
    return ()


def kind_of_container(
    before: ContainerRecord | None, now: ContainerRecord | None
) -> EventKind | None:
    """Return what a change of a container's record means; None for limits or an undone start."""
    if now is None:
        return EventKind.DELETED
    if before is None:
        return EventKind.CREATED
    if before.state is now.state:
        return None
    kinds = {ContainerState.RUNNING: EventKind.STARTED, ContainerState.EXITED: EventKind.STOPPED}
    return kinds.get(now.state)
