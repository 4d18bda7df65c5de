"""One look at the cluster: lists, trimmed at once to what the decisions need."""

from __future__ import annotations

from collections.abc import AsyncIterator, Mapping
from typing import Any, Final

from lightkube import AsyncClient

from noderuntime_operator import parse
from noderuntime_operator.kinds import NODE, POD, RESOURCES
from noderuntime_operator.reconcile.names import AGENT, LABELS
from noderuntime_operator.reconcile.observed import Observed, PodSeen, Settings
from noderuntime_operator.reconcile.plan import Kind

_CHUNK: Final = 500


async def observe(client: AsyncClient, settings: Settings) -> Observed:
    """List everything; Pods only while a NodeRuntime is being deleted. Raises lightkube's errors."""
    runtimes = [
        parse.node_runtime(each) async for each in _list(client, RESOURCES[Kind.NODE_RUNTIME])
    ]
    profiles = [
        parse.profile(each) async for each in _list(client, RESOURCES[Kind.SECURITY_PROFILE])
    ]
    states = [parse.state(each) async for each in _list(client, RESOURCES[Kind.STATE])]
    nodes = [parse.node(each) async for each in _list(client, NODE)]
    classes = [
        parse.runtime_class(each) async for each in _list(client, RESOURCES[Kind.RUNTIME_CLASS])
    ]
    namespace = settings.namespace
    ours: dict[str, Any] = {"namespace": namespace, "labels": LABELS}
    revisions = [
        parse.revision(each) async for each in _list(client, RESOURCES[Kind.REVISION], **ours)
    ]
    named: dict[str, Any] = {"namespace": namespace, "fields": {"metadata.name": AGENT}}
    daemonsets = [each async for each in _list(client, RESOURCES[Kind.DAEMON_SET], **named)]
    pods: list[PodSeen] = []
    if any(each.deleting for each in runtimes):
        everywhere = _list(client, POD, namespace="*")
        pods = [pod async for each in everywhere if (pod := parse.pod(each)) is not None]
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


def _list(client: AsyncClient, resource: Any, **options: Any) -> AsyncIterator[Mapping[str, Any]]:  # noqa: ANN401
    listing: Any = client.list  # pyright: ignore[reportUnknownMemberType, reportUnknownVariableType]
    found: Any = listing(resource, chunk_size=_CHUNK, **options)
    items: AsyncIterator[Mapping[str, Any]] = aiter(found)
    return items
