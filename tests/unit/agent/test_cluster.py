from __future__ import annotations

import json
from typing import TYPE_CHECKING, Any

import httpx2
import pytest
from lightkube import AsyncClient
from lightkube.config.kubeconfig import KubeConfig
from lightkube.config.models import Cluster, User

from noderuntime.agent.cluster import ApiServer, NodeState, checked_revision, state_of
from noderuntime.api.revision import make_revision
from noderuntime.api.state import NodeRuntimeStateSpec, NodeRuntimeStateStatus, RevisionRef
from noderuntime.errors import ConfigError, NotFoundError, UnavailableError

if TYPE_CHECKING:
    from collections.abc import Callable

EMPTY = make_revision(())
SPEC = NodeRuntimeStateSpec(
    node_name="node-a", revision=RevisionRef(name="noderuntime-x", digest=EMPTY.digest)
)
STATE = NodeState(name="node-a", uid="u1", generation=2, spec=SPEC)
OBJECT: dict[str, Any] = {
    "apiVersion": "noderuntime.io/v1alpha1",
    "kind": "NodeRuntimeState",
    "metadata": {"name": "node-a", "uid": "u1", "generation": 2},
    "spec": SPEC.model_dump(mode="json", by_alias=True),
}


def answering(answer: Callable[[httpx2.Request], httpx2.Response]) -> ApiServer:
    config = KubeConfig.from_one(cluster=Cluster(server="http://api"), user=User(token="t"))
    client = AsyncClient(config=config, transport=httpx2.MockTransport(answer))
    return ApiServer(client, "noderuntime-system")


def status_object(code: int, reason: str) -> httpx2.Response:
    return httpx2.Response(
        code, json={"kind": "Status", "apiVersion": "v1", "code": code, "message": reason}
    )


async def test_watch_asks_for_the_nodes_own_state_and_yields_it() -> None:
    asked: list[httpx2.Request] = []

    def answer(request: httpx2.Request) -> httpx2.Response:
        asked.append(request)
        lines = [{"type": "ADDED", "object": OBJECT}, {"type": "DELETED", "object": OBJECT}]
        return httpx2.Response(200, text="".join(json.dumps(line) + "\n" for line in lines))

    seen: list[NodeState | None] = []
    async for state in answering(answer).watch("node-a"):
        seen.append(state)
        if len(seen) == 2:
            break
    assert seen == [STATE, None]
    assert asked[0].url.path == "/apis/noderuntime.io/v1alpha1/noderuntimestates"
    assert dict(asked[0].url.params)["fieldSelector"] == "metadata.name=node-a"


@pytest.mark.parametrize("code", [401, 403, 404, 500])
async def test_watch_says_that_the_api_server_is_away_when_it_refuses(code: int) -> None:
    server = answering(lambda _: status_object(code, "no"))
    with pytest.raises(UnavailableError, match="the API server"):
        await anext(server.watch("node-a"))


async def test_watch_says_so_when_the_connection_is_refused() -> None:
    def refuse(request: httpx2.Request) -> httpx2.Response:
        raise httpx2.ConnectError("", request=request)

    with pytest.raises(UnavailableError, match="ConnectError"):
        await anext(answering(refuse).watch("node-a"))


async def test_revision_reads_and_checks_the_controller_revision() -> None:
    def answer(request: httpx2.Request) -> httpx2.Response:
        assert request.url.path.endswith("/noderuntime-system/controllerrevisions/noderuntime-x")
        data = EMPTY.model_dump(mode="json", by_alias=True)
        return httpx2.Response(200, json={"kind": "ControllerRevision", "data": data})

    assert await answering(answer).revision("noderuntime-x", EMPTY.digest) == EMPTY


async def test_revision_says_so_when_it_is_not_there() -> None:
    server = answering(lambda _: status_object(404, "not found"))
    with pytest.raises(NotFoundError, match="noderuntime-system/noderuntime-x"):
        await server.revision("noderuntime-x", EMPTY.digest)


@pytest.mark.parametrize(
    ("data", "message"),
    [
        pytest.param(None, "does not parse", id="no data"),
        pytest.param({"digest": EMPTY.digest, "handlers": ["torn"]}, "does not parse", id="torn"),
        pytest.param({"digest": EMPTY.digest, "more": 1}, "does not parse", id="unknown field"),
        pytest.param({"digest": "sha256:0", "handlers": []}, "is declared", id="wrong digest"),
    ],
)
def test_a_revision_is_refused(data: object, message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        checked_revision(data, "noderuntime-x", EMPTY.digest)


def test_a_revision_is_refused_when_another_one_is_declared() -> None:
    with pytest.raises(ConfigError, match="is declared"):
        checked_revision(EMPTY.model_dump(by_alias=True), "x", "sha256:" + "0" * 64)


async def test_write_status_applies_only_the_status_of_that_very_object() -> None:
    def answer(request: httpx2.Request) -> httpx2.Response:
        assert request.method == "PATCH"
        assert request.url.path.endswith("/noderuntimestates/node-a/status")
        assert request.headers["content-type"] == "application/apply-patch+yaml"
        assert dict(request.url.params) == {"fieldManager": "noderuntime-agent", "force": "true"}
        body = json.loads(request.content)
        assert body["metadata"] == {"name": "node-a", "uid": "u1"}
        assert "spec" not in body
        return httpx2.Response(200, json={**OBJECT, "status": body["status"]})

    status = NodeRuntimeStateStatus(observed_generation=2, handlers=("a",))
    written = await answering(answer).write_status(STATE, status)
    assert written.status == status


@pytest.mark.parametrize("code", [404, 409])
async def test_write_status_says_so_when_the_state_is_gone(code: int) -> None:
    server = answering(lambda _: status_object(code, "no"))
    with pytest.raises(NotFoundError, match="is gone"):
        await server.write_status(STATE, NodeRuntimeStateStatus())


def test_a_state_is_refused_when_its_spec_is_not_read() -> None:
    with pytest.raises(ConfigError, match="node-a"):
        state_of({**OBJECT, "spec": {"nodeName": "node-a"}})


def test_a_status_of_another_version_is_taken_for_none() -> None:
    assert state_of({**OBJECT, "status": {"unknown": 1}}) == STATE
