"""``noderuntime-operator release``: take our finalizer off every NodeRuntime, when the operator is removed.

Without it, a NodeRuntime that is deleted after the operator would wait for ever. The objects stay.
"""

from __future__ import annotations

from typing import Any

from lightkube import ApiError, AsyncClient

from noderuntime.api.model import API_VERSION
from noderuntime_operator.kinds import RESOURCES
from noderuntime_operator.reconcile.names import FIELD_MANAGER, FINALIZER
from noderuntime_operator.reconcile.plan import Kind


async def release(client: AsyncClient) -> list[str]:
    """Return the names of those that had it. Raises ApiError."""
    resource = RESOURCES[Kind.NODE_RUNTIME]
    names: list[str] = []
    try:
        listing: Any = client.list  # pyright: ignore[reportUnknownMemberType, reportUnknownVariableType]
        async for each in listing(resource):
            metadata = each["metadata"]
            if FINALIZER in metadata.get("finalizers", ()):
                await _release(client, resource, metadata)
                names.append(metadata["name"])
    except ApiError as error:
        if error.status.code != 404:  # the CRDs are gone: nothing is held
            raise
    return names


async def _release(client: AsyncClient, resource: Any, metadata: dict[str, Any]) -> None:  # noqa: ANN401
    body: dict[str, Any] = {
        "apiVersion": API_VERSION,
        "kind": Kind.NODE_RUNTIME.value,
        "metadata": {"name": metadata["name"], "uid": metadata["uid"], "finalizers": []},
    }
    await client.apply(resource(body), metadata["name"], field_manager=FIELD_MANAGER, force=True)
