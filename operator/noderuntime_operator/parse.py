"""From the API's JSON to what the decisions read.

An object that cannot be parsed is kept with the reason, never dropped: nodes must not lose what they serve
because a newer operator wrote a field that this one does not know.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Final, TypeVar

from pydantic import BaseModel, ValidationError

from noderuntime.api.noderuntime import NodeRuntimeSpec
from noderuntime.api.revision import Revision
from noderuntime.api.securityprofile import SecurityProfileSpec
from noderuntime.api.state import NodeRuntimeStateSpec, NodeRuntimeStateStatus
from noderuntime_operator.reconcile.names import (
    EMPTIED_AT,
    FIELD_MANAGER,
    FINALIZER,
    MANAGED_BY,
    OWNER_LABEL,
)
from noderuntime_operator.reconcile.observed import (
    NodeRuntimeSeen,
    NodeSeen,
    PodSeen,
    ProfileSeen,
    RevisionSeen,
    RuntimeClassSeen,
    StateSeen,
)

Json = Mapping[str, Any]  # free-form
Model = TypeVar("Model", bound=BaseModel)

ENDED: Final = ("Succeeded", "Failed")


def _parsed(model: type[Model], value: object) -> tuple[Model | None, str]:
    """Return the model, or None and why not in one line."""
    try:
        return model.model_validate(value), ""
    except ValidationError as error:
        first = error.errors(include_url=False)[0]
        where = ".".join(map(str, first["loc"])) or "spec"
        return None, f"{where}: {first['msg'].lower()}"


def _part(body: Json, name: str) -> Json:
    part: Json = body.get(name) or {}
    return part


def node_runtime(body: Json) -> NodeRuntimeSeen:
    """Read a NodeRuntime."""
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
        status=_part(body, "status"),
    )


def profile(body: Json) -> ProfileSeen:
    """Read a SecurityProfile."""
    metadata = body["metadata"]
    spec, problem = _parsed(SecurityProfileSpec, body.get("spec"))
    return ProfileSeen(
        name=metadata["name"],
        generation=metadata.get("generation", 0),
        spec=spec,
        problem=problem,
        status=_part(body, "status"),
    )


def state(body: Json) -> StateSeen:
    """Read a NodeRuntimeState."""
    metadata = body["metadata"]
    return StateSeen(
        name=metadata["name"],
        uid=metadata["uid"],
        spec=_parsed(NodeRuntimeStateSpec, body.get("spec"))[0],
        status=_parsed(NodeRuntimeStateStatus, _part(body, "status"))[0],
        emptied_at=_part(metadata, "annotations").get(EMPTIED_AT, ""),
    )


def node(body: Json) -> NodeSeen:
    """Read a Node."""
    metadata = body["metadata"]
    return NodeSeen(name=metadata["name"], labels=_part(metadata, "labels"))


def runtime_class(body: Json) -> RuntimeClassSeen:
    """Read a RuntimeClass, ours or not."""
    metadata = body["metadata"]
    labels = _part(metadata, "labels")
    return RuntimeClassSeen(
        name=metadata["name"],
        uid=metadata["uid"],
        handler=body["handler"],
        owned=labels.get(MANAGED_BY) == FIELD_MANAGER,
        owner=labels.get(OWNER_LABEL, ""),
        body=dict(body),
    )


def revision(body: Json) -> RevisionSeen:
    """Read a ControllerRevision of ours."""
    metadata = body["metadata"]
    return RevisionSeen(
        name=metadata["name"],
        uid=metadata["uid"],
        created=metadata["creationTimestamp"],
        number=body.get("revision", 0),
        revision=_parsed(Revision, body.get("data"))[0],
    )


def pod(body: Json) -> PodSeen | None:
    """Read a Pod; None where it has ended or names no RuntimeClass."""
    spec: Json = body["spec"]
    status = _part(body, "status")
    runtime_class = spec.get("runtimeClassName")
    if not runtime_class or status.get("phase") in ENDED:
        return None
    metadata = body["metadata"]
    return PodSeen(
        namespace=metadata["namespace"],
        name=metadata["name"],
        runtime_class=runtime_class,
        node=spec.get("nodeName") or "",
    )
