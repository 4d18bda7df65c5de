"""One look at the cluster: lists, trimmed at once to what the decisions need.

An object that cannot be parsed is kept with the reason, never dropped: nodes must not lose what they serve
because a newer operator wrote a field that this one does not know.
"""

from __future__ import annotations

from collections.abc import AsyncIterator, Mapping
from typing import Any, Final, TypeVar

from lightkube import AsyncClient
from pydantic import BaseModel, ValidationError

from noderuntime.api.noderuntime import NodeRuntimeSpec
from noderuntime.api.revision import Revision
from noderuntime.api.securityprofile import SecurityProfileSpec
from noderuntime.api.state import NodeRuntimeStateSpec, NodeRuntimeStateStatus
from noderuntime_operator.kinds import NODE, POD, RESOURCES
from noderuntime_operator.reconcile.names import (
    AGENT,
    EMPTIED_AT,
    FIELD_MANAGER,
    FINALIZER,
    LABELS,
    MANAGED_BY,
    OWNER_LABEL,
)
from noderuntime_operator.reconcile.observed import (
    NodeRuntimeSeen,
    NodeSeen,
    Observed,
    PodSeen,
    ProfileSeen,
    RevisionSeen,
    RuntimeClassSeen,
    Settings,
    StateSeen,
)
from noderuntime_operator.reconcile.plan import Kind

Json = Mapping[str, Any]  # free-form
Model = TypeVar("Model", bound=BaseModel)

_CHUNK: Final = 500
_ENDED: Final = ("Succeeded", "Failed")


async def observe(client: AsyncClient, settings: Settings) -> Observed:
    """List everything; Pods only while a NodeRuntime is being deleted. Raises lightkube's errors."""
    runtimes = [_runtime(each) async for each in _list(client, RESOURCES[Kind.NODE_RUNTIME])]
    profiles = [_profile(each) async for each in _list(client, RESOURCES[Kind.SECURITY_PROFILE])]
    states = [_state(each) async for each in _list(client, RESOURCES[Kind.STATE])]
    nodes = [_node(each) async for each in _list(client, NODE)]
    classes = [_runtime_class(each) async for each in _list(client, RESOURCES[Kind.RUNTIME_CLASS])]
    namespace = settings.namespace
    ours: dict[str, Any] = {"namespace": namespace, "labels": LABELS}
    revisions = [
        _revision(each) async for each in _list(client, RESOURCES[Kind.REVISION], **ours)
    ]
    named: dict[str, Any] = {"namespace": namespace, "fields": {"metadata.name": AGENT}}
    daemonsets = [each async for each in _list(client, RESOURCES[Kind.DAEMON_SET], **named)]
    pods: list[PodSeen] = []
    if any(each.deleting for each in runtimes):
        everywhere = _list(client, POD, namespace="*")
        pods = [pod async for each in everywhere if (pod := _pod(each)) is not None]
    return Observed(
        settings=settings,
        node_runtimes=tuple(runtimes),
        profiles=tuple(profiles),
        nodes=tuple(nodes),
        states=tuple(states),
        revisions=tuple(revisions),
        runtime_classes=tuple(classes),
        daemonset=dict(daemonsets[0]) if daemonsets else None,
        pods=tuple(pods),
    )


def _list(client: AsyncClient, resource: Any, **options: Any) -> AsyncIterator[Json]:  # noqa: ANN401
    found: Any = client.list(resource, chunk_size=_CHUNK, **options)
    items: AsyncIterator[Json] = aiter(found)
    return items


def _parsed(model: type[Model], value: object) -> tuple[Model | None, str]:
    """Return the model, or None and why not in one line."""
    try:
        return model.model_validate(value), ""
    except ValidationError as error:
        first = error.errors(include_url=False)[0]
        where = ".".join(map(str, first["loc"])) or "spec"
        return None, f"{where}: {first['msg'].lower()}"


def _runtime(body: Json) -> NodeRuntimeSeen:
    metadata = body["metadata"]
    spec, problem = _parsed(NodeRuntimeSpec, body.get("spec"))
    return NodeRuntimeSeen(
        name=metadata["name"],
        uid=metadata["uid"],
        generation=metadata.get("generation", 0),
        created=metadata["creationTimestamp"],
        deleting="deletionTimestamp" in metadata,
        claimed=FINALIZER in metadata.get("finalizers", ()),
        spec=spec,
        problem=problem,
        status=body.get("status") or {},
    )


def _profile(body: Json) -> ProfileSeen:
    metadata = body["metadata"]
    spec, problem = _parsed(SecurityProfileSpec, body.get("spec"))
    return ProfileSeen(
        name=metadata["name"],
        generation=metadata.get("generation", 0),
        spec=spec,
        problem=problem,
        status=body.get("status") or {},
    )


def _state(body: Json) -> StateSeen:
    metadata = body["metadata"]
    return StateSeen(
        name=metadata["name"],
        uid=metadata["uid"],
        spec=_parsed(NodeRuntimeStateSpec, body.get("spec"))[0],
        status=_parsed(NodeRuntimeStateStatus, body.get("status") or {})[0],
        emptied_at=(metadata.get("annotations") or {}).get(EMPTIED_AT, ""),
    )


def _node(body: Json) -> NodeSeen:
    metadata = body["metadata"]
    return NodeSeen(name=metadata["name"], labels=metadata.get("labels") or {})


def _runtime_class(body: Json) -> RuntimeClassSeen:
    metadata = body["metadata"]
    labels = metadata.get("labels") or {}
    return RuntimeClassSeen(
        name=metadata["name"],
        uid=metadata["uid"],
        handler=body["handler"],
        owned=labels.get(MANAGED_BY) == FIELD_MANAGER,
        owner=labels.get(OWNER_LABEL, ""),
        body=dict(body),
    )


def _revision(body: Json) -> RevisionSeen:
    metadata = body["metadata"]
    return RevisionSeen(
        name=metadata["name"],
        uid=metadata["uid"],
        created=metadata["creationTimestamp"],
        number=body.get("revision", 0),
        revision=_parsed(Revision, body.get("data"))[0],
    )


def _pod(body: Json) -> PodSeen | None:
    spec, status = body["spec"], body.get("status") or {}
    runtime_class = spec.get("runtimeClassName")
    if not runtime_class or status.get("phase") in _ENDED:
        return None
    metadata = body["metadata"]
    return PodSeen(
        namespace=metadata["namespace"],
        name=metadata["name"],
        runtime_class=runtime_class,
        node=spec.get("nodeName") or "",
    )
