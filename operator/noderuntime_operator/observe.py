"""One look at the cluster: lists, trimmed at once to what the decisions need."""

from __future__ import annotations

from collections.abc import AsyncIterator, Mapping
from typing import Any, Final

import httpx2
from lightkube import AsyncClient

from noderuntime_operator import parse
from noderuntime_operator.kinds import NODE, POD, RESOURCES
from noderuntime_operator.reconcile.names import AGENT, LABELS
from noderuntime_operator.reconcile.observed import AdmissionSeen, Observed, PodSeen, Settings
from noderuntime_operator.reconcile.plan import Kind

_CHUNK: Final = 500
_WITHOUT_ADMISSION: Final = {
    403: "the operator may not list ValidatingAdmissionPolicies: upgrade the chart, whose role says so",
    404: "the API server does not serve ValidatingAdmissionPolicy admissionregistration.k8s.io/v1",
}


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
    admission = await _admission(client)
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
        admission=admission,
        pods=tuple(pods),
    )


async def _admission(client: AsyncClient) -> AdmissionSeen:
    """List what of admission is ours; an API server without it, or that forbids it, is no error."""
    found: dict[Kind, tuple[Mapping[str, Any], ...]] = {}
    for kind in (Kind.ADMISSION_POLICY, Kind.ADMISSION_BINDING):
        try:
            found[kind] = tuple([e async for e in _list(client, RESOURCES[kind], labels=LABELS)])
        except (
            httpx2.HTTPStatusError
        ) as error:  # of a group that is not served, the body is no JSON
            problem = _WITHOUT_ADMISSION.get(error.response.status_code)
            if problem is None:
                raise
            return AdmissionSeen(problem=problem)
    return AdmissionSeen(
        policies=found[Kind.ADMISSION_POLICY], bindings=found[Kind.ADMISSION_BINDING]
    )


def _list(client: AsyncClient, resource: Any, **options: Any) -> AsyncIterator[Mapping[str, Any]]:  # noqa: ANN401
    listing: Any = client.list  # pyright: ignore[reportUnknownMemberType, reportUnknownVariableType]
    found: Any = listing(resource, chunk_size=_CHUNK, **options)
    items: AsyncIterator[Mapping[str, Any]] = aiter(found)
    return items
