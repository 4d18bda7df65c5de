"""The API server, as far as the agent needs it: its node's state, one revision, one status.

The answers are parsed here; what is not as the resources say is an error of ours, not a crash.
Source: Kubernetes API conventions; server-side apply; lightkube 1.0.
"""

from __future__ import annotations

import asyncio
from contextlib import aclosing
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Final, Protocol, cast

import httpx2
from lightkube import ApiError, AsyncClient
from lightkube.core.exceptions import ConfigError as LightkubeConfigError
from lightkube.generic_resource import (
    create_global_resource,  # pyright: ignore[reportUnknownVariableType]  # untyped `verbs`
    create_namespaced_resource,  # pyright: ignore[reportUnknownVariableType]
)
from lightkube.models.meta_v1 import ObjectMeta
from pydantic import ValidationError

from noderuntime.api.model import API_VERSION, GROUP, VERSION
from noderuntime.api.revision import Revision, digest_of
from noderuntime.api.state import NodeRuntimeStateSpec, NodeRuntimeStateStatus
from noderuntime.errors import ConfigError, NotFoundError, UnavailableError

if TYPE_CHECKING:
    from collections.abc import AsyncGenerator, AsyncIterator

FIELD_MANAGER: Final = "noderuntime-agent"
WATCH_S: Final = (
    240  # the API server ends the watch after this; a dead connection is cut a bit later
)
_State = create_global_resource(GROUP, VERSION, "NodeRuntimeState", "noderuntimestates")
_ControllerRevision = create_namespaced_resource(
    "apps", "v1", "ControllerRevision", "controllerrevisions"
)


@dataclass(frozen=True, slots=True, kw_only=True)
class NodeState:
    """A NodeRuntimeState: what the node is to serve, and what its status says now."""

    name: str
    uid: str
    generation: int
    spec: NodeRuntimeStateSpec
    status: NodeRuntimeStateStatus = field(default_factory=NodeRuntimeStateStatus)


class Cluster(Protocol):
    """What the agent asks of the API server. Every call raises UnavailableError when it is away."""

    def watch(self, name: str) -> AsyncIterator[NodeState | None]:
        """Yield the state as it is, then each change; None when it is gone. Ends now and then.

        Raises ConfigError for a state that this version does not read.
        """
        ...

    async def revision(self, name: str, digest: str) -> Revision:
        """Read a revision; raises NotFoundError, or ConfigError when its content is not ``digest``."""
        ...

    async def write_status(self, state: NodeState, status: NodeRuntimeStateStatus) -> NodeState:
        """Replace the status that is ours; NotFoundError when the state is gone or another one."""
        ...


class ApiServer:
    """The real one, through lightkube."""

    def __init__(self, client: AsyncClient, namespace: str) -> None:
        """``namespace`` is where the operator keeps revisions."""
        self._client = client
        self._namespace = namespace

    async def watch(self, name: str) -> AsyncGenerator[NodeState | None]:
        """See Cluster."""
        try:
            async with asyncio.timeout(WATCH_S + 30):
                async with aclosing(self._events(name)) as events:
                    async for verb, found in events:
                        yield None if verb == "DELETED" else state_of(found)
        except TimeoutError:
            return
        except (httpx2.HTTPError, LightkubeConfigError, ValueError) as error:
            raise away(error) from error

    def _events(self, name: str) -> AsyncGenerator[tuple[str, dict[str, Any]]]:
        events = self._client.watch(  # pyright: ignore[reportUnknownMemberType]
            _State, fields={"metadata.name": name}, server_timeout=WATCH_S
        )
        # Typed as an iterable, but a generator, which must be closed to give its connection back.
        return cast("AsyncGenerator[tuple[str, dict[str, Any]]]", events)

    async def revision(self, name: str, digest: str) -> Revision:
        """See Cluster."""
        try:
            got = await self._client.get(_ControllerRevision, name, namespace=self._namespace)
        except (httpx2.HTTPError, LightkubeConfigError) as error:
            if is_not_found(error):
                raise NotFoundError(
                    f"there is no ControllerRevision {self._namespace}/{name}"
                ) from error
            raise away(error) from error
        found = cast("dict[str, Any]", got)
        return checked_revision(found.get("data"), name, digest)

    async def write_status(self, state: NodeState, status: NodeRuntimeStateStatus) -> NodeState:
        """See Cluster. The UID makes sure that it is not another state of the same name."""
        body = _State.Status(
            apiVersion=API_VERSION,
            kind="NodeRuntimeState",
            metadata=ObjectMeta(name=state.name, uid=state.uid),
            status=status.model_dump(mode="json", by_alias=True, exclude_none=True),
        )
        try:
            written = await self._client.apply(
                body, state.name, field_manager=FIELD_MANAGER, force=True
            )
        except (httpx2.HTTPError, LightkubeConfigError) as error:
            if is_not_found(error) or is_conflict(error):
                raise NotFoundError(f"NodeRuntimeState {state.name} is gone") from error
            raise away(error) from error
        return state_of(cast("dict[str, Any]", written))


def state_of(found: dict[str, Any]) -> NodeState:
    """Parse the object. Raises ConfigError; a status that is not ours is taken for none."""
    metadata = dict(found.get("metadata") or {})
    name = str(metadata.get("name", ""))
    try:
        spec = NodeRuntimeStateSpec.model_validate(found.get("spec"))
    except ValidationError as error:
        raise ConfigError(
            f"NodeRuntimeState {name} is not one that this version reads: {error}"
        ) from error
    try:
        status = NodeRuntimeStateStatus.model_validate(found.get("status") or {})
    except ValidationError:
        status = NodeRuntimeStateStatus()
    return NodeState(
        name=name,
        uid=str(metadata.get("uid", "")),
        generation=int(metadata.get("generation", 0)),
        spec=spec,
        status=status,
    )


def checked_revision(data: object, name: str, digest: str) -> Revision:
    """Parse a ControllerRevision's data and compute its digest anew. Raises ConfigError."""
    try:
        revision = Revision.model_validate(data)
    except ValidationError as error:
        first = error.errors()[0]
        where = ".".join(map(str, first["loc"])) or "data"
        raise ConfigError(f"revision {name} does not parse: {where}: {first['msg']}") from error
    computed = digest_of(revision.handlers, revision.default)
    if computed != revision.digest or computed != digest:
        raise ConfigError(
            f"revision {name} holds {computed}, but {digest} is declared: it was changed, "
            "or the agent is of another version than the operator"
        )
    return revision


def is_not_found(error: Exception) -> bool:
    """Tell whether the API server said 404."""
    return isinstance(error, ApiError) and error.status.code == 404


def is_conflict(error: Exception) -> bool:
    """Tell whether the API server said 409: with a UID given, another object has the name."""
    return isinstance(error, ApiError) and error.status.code == 409


def away(error: Exception) -> UnavailableError:
    """Return our error for one of the HTTP client's; many of those have no text."""
    return UnavailableError(f"the API server: {str(error) or type(error).__name__}")
