"""How ``noderuntime plan`` comes to the API server, and what it says where it does not."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import httpx2
import pytest
from lightkube import AsyncClient, SingleConfig
from lightkube.config.models import Cluster, Context, User

from noderuntime.cli.main import main
from noderuntime.cli.planning.cluster import ApiServer, Kind, connected
from noderuntime.errors import UnavailableError

ADDRESS = "https://10.0.0.1:6443"
CHANGE = json.dumps(
    {
        "apiVersion": "noderuntime.io/v1alpha1",
        "kind": "SecurityProfile",
        "metadata": {"name": "web"},
        "spec": {},
    }
)
Handler = Callable[[httpx2.Request], httpx2.Response]


async def listed(handler: Handler, kind: Kind, namespace: str = "") -> list[str]:
    config = SingleConfig(
        context_name="x",
        context=Context(cluster="x"),
        cluster=Cluster(server=ADDRESS),
        user=User(token="t"),
    )
    transport = httpx2.MockTransport(handler)
    async with AsyncClient(config=config, transport=transport) as client:
        server = ApiServer(client, ADDRESS)
        return [each["metadata"]["name"] async for each in server.items(kind, namespace)]


def status(code: int, message: str) -> httpx2.Response:
    body = {"kind": "Status", "status": "Failure", "message": message, "code": code}
    return httpx2.Response(code, json=body)


async def test_pods_come_page_by_page_and_with_fields_that_nobody_knows() -> None:
    asked: list[str] = []

    def answer(request: httpx2.Request) -> httpx2.Response:
        asked.append(str(request.url).removeprefix(ADDRESS))
        page = int(dict(request.url.params).get("continue", "0"))
        item = {"metadata": {"name": f"p{page}"}, "spec": {"future": [1]}}
        more = {"continue": str(page + 1)} if page < 2 else {}
        return httpx2.Response(200, json={"metadata": more, "items": [item]})

    assert await listed(answer, Kind.POD, "web") == ["p0", "p1", "p2"]
    assert len(asked) == 3
    assert asked[0].startswith("/api/v1/namespaces/web/pods?")
    assert "limit=250" in asked[0]
    asked.clear()
    await listed(answer, Kind.POD)
    assert asked[0].startswith("/api/v1/pods?")


async def test_a_cluster_without_noderuntime_has_none_of_its_objects() -> None:
    def absent(_: httpx2.Request) -> httpx2.Response:
        return status(404, "the server could not find the requested resource")

    assert await listed(absent, Kind.NODE_RUNTIME) == []
    with pytest.raises(UnavailableError, match="could not find"):
        await listed(absent, Kind.POD)


@pytest.mark.parametrize(
    ("answer", "said"),
    [
        (lambda _: status(403, 'pods is forbidden: User "ci" cannot list'), "pods is forbidden"),
        (lambda _: httpx2.Response(200, text="<html>log in</html>"), "no list of Pods: "),
        (lambda _: httpx2.Response(200, json=["x"]), "no list of Pods: "),
        (lambda _: httpx2.Response(200, json={"metadata": {}, "items": None}), "no list of Pods: "),
        (lambda _: httpx2.Response(502, text="\x1b[31mbad gateway"), "no list of Pods: "),
    ],
)
async def test_an_answer_that_is_none_is_one_sentence_with_the_address(
    answer: Handler, said: str
) -> None:
    with pytest.raises(UnavailableError, match="the API server at https://10.0.0.1:6443: ") as told:
        await listed(answer, Kind.POD)
    assert said in str(told.value)
    assert "\x1b" not in str(told.value)


def a_kubeconfig(path: Path, **cluster: Any) -> Path:
    document = {
        "current-context": "one",
        "contexts": [{"name": "one", "context": {"cluster": "c"}}],
        "clusters": [{"name": "c", "cluster": {"server": ADDRESS} | cluster}],
    }
    path.write_text(json.dumps(document))
    return path


async def test_the_kubeconfig_is_the_named_one_that_of_the_environment_or_the_usual(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("HOME", str(tmp_path))
    (tmp_path / ".kube").mkdir()
    a_kubeconfig(tmp_path / ".kube" / "config", server="https://usual")
    second = a_kubeconfig(tmp_path / "second", server="https://second")
    named = a_kubeconfig(tmp_path / "named", server="https://named")
    addresses: list[str] = []
    for variable, file in (("", ""), (f"{tmp_path}/none:{second}", ""), (str(second), str(named))):
        monkeypatch.setenv("KUBECONFIG", variable)
        async with connected(file, "") as server:
            addresses.append(server.address)
    assert addresses == ["https://usual", "https://second", "https://named"]


@pytest.mark.parametrize(
    ("text", "said"),
    [
        (None, "not found"),
        ("", ""),
        ("a: [", "flow"),
        ("[1, 2]", ""),
        ("clusters: 1\ncontexts: []", ""),
        ("clusters: []\ncontexts: []", "No current context"),
        ("clusters: []\ncontexts: []\ncurrent-context: x", "Context 'x' not found"),
        ('{"clusters": [], "contexts": [{"name": "x", "context": {"cluster": "c"}}], '
         '"current-context": "x"}', "it has no 'c'"),
    ],
)  # fmt: skip
def test_a_wrong_kubeconfig_is_one_sentence_and_code_1(
    text: str | None, said: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "change.json").write_text(CHANGE)
    file = tmp_path / "kubeconfig"
    if text is not None:
        file.write_text(text)
    assert main(["plan", str(tmp_path / "change.json"), "--kubeconfig", str(file)]) == 1
    error = capsys.readouterr().err
    assert error.startswith(
        f"noderuntime: there is no way to the API server: the kubeconfig {file}"
    )
    assert said in error
    assert "--context" in error


def test_an_api_server_that_does_not_answer_is_named_with_its_address(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "change.json").write_text(CHANGE)
    server = "http://127.0.0.1:1"
    file = a_kubeconfig(tmp_path / "kubeconfig", server=server)
    assert main(["plan", str(tmp_path / "change.json"), "--kubeconfig", str(file)]) == 1
    assert f"noderuntime: the API server at {server}: " in capsys.readouterr().err


def test_a_certificate_that_is_none_is_code_1(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    change = tmp_path / "change.json"
    change.write_text(CHANGE)
    file = a_kubeconfig(tmp_path / "kubeconfig", **{"certificate-authority": str(change)})
    assert main(["plan", str(tmp_path / "change.json"), "--kubeconfig", str(file)]) == 1
    assert "there is no way to the API server: " in capsys.readouterr().err
