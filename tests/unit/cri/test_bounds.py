"""What leaves the server is bounded and plain, whatever was asked or is there. Found by the fuzzer."""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING, Any

import grpc
import pytest
from grpc import aio

from noderuntime.cri.boundary import MAX_MESSAGE_BYTES, shortened
from noderuntime.cri.runtime_v1 import api_pb2 as pb
from noderuntime.errors import NotFoundError
from noderuntime.host.ports import ExecResult
from noderuntime.policy.model import ContainerConfig, PodIdentity, SandboxConfig

if TYPE_CHECKING:
    from tests.unit.cri.conftest import Client


async def container(cri: Client, **annotations: str) -> str:
    sandbox = await cri.engine.run_sandbox(
        SandboxConfig(pod=PodIdentity(name="a", namespace="b", uid="c"), annotations=annotations),
        "",
    )
    config = ContainerConfig(name="app", image="app:1", annotations=annotations)
    container_id = await cri.engine.create_container(sandbox, config)
    await cri.engine.start_container(container_id)
    return container_id


@pytest.mark.parametrize("text", ["💥" * 3000, "%" * 3000, "x" * 9000])
async def test_a_long_error_arrives_with_its_code_when_it_grows_on_the_way(
    cri: Client, text: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    async def remove(_sandbox_id: str) -> None:
        raise NotFoundError(f"sandbox {text} is not there")

    monkeypatch.setattr(cri.engine, "remove_sandbox", remove)
    with pytest.raises(aio.AioRpcError) as caught:
        await cri.call("RemovePodSandbox", pb.RemovePodSandboxRequest(pod_sandbox_id="x"))
    assert caught.value.code() is grpc.StatusCode.NOT_FOUND
    assert (caught.value.details() or "").startswith(f"sandbox {text[:100]}")


@pytest.mark.parametrize("text", ["\x1b[2J", "\x9b31m", "\u202egnp", "\u200b", "a\nb", "\x00"])
def test_an_error_is_one_line_that_a_terminal_only_shows(text: str) -> None:
    sentence = NotFoundError(f"sandbox {text} is not there").for_kubelet()
    assert sentence.isprintable()
    assert sentence.startswith("sandbox ")
    assert NotFoundError("grüß 💥").for_kubelet() == "grüß 💥"


def test_a_sentence_that_fits_is_left_as_it_is() -> None:
    assert shortened("x" * 2000) == "x" * 2000
    assert shortened("x" * 2001) == "x" * 2000
    assert shortened("💥" * 600) == "💥" * 500


async def test_a_list_that_no_client_takes_is_refused_and_comes_as_a_stream(cri: Client) -> None:
    for _ in range(18):
        await container(cri, note="x" * (1 << 20))
    for name in ("ListContainers", "ListPodSandbox"):
        with pytest.raises(aio.AioRpcError, match="by its Stream method") as caught:
            await cri.call(name)
        assert caught.value.code() is grpc.StatusCode.RESOURCE_EXHAUSTED
    found = [c for part in await cri.call("StreamContainers") for c in part.containers]
    assert len(found) == 18
    found = [s for part in await cri.call("StreamPodSandboxes") for s in part.pod_sandboxes]
    assert len(found) == 18


@pytest.mark.parametrize(("stdout", "stderr"), [(16, 0), (0, 16), (16, 16), (15, 3)])
async def test_what_a_command_says_is_cut_to_what_the_kubelet_takes(
    cri: Client, stdout: int, stderr: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    result = ExecResult(stdout=b"o" * (stdout << 20), stderr=b"e" * (stderr << 20), exit_code=7)

    async def exec_sync(*_: object) -> ExecResult:
        return replace(result)

    monkeypatch.setattr(cri.engine, "exec_sync", exec_sync)
    request = pb.ExecSyncRequest(container_id=await container(cri), cmd=["x"])
    raw = request.SerializeToString()
    channel = aio.insecure_channel(
        f"unix:{cri.path}", options=[("grpc.max_receive_message_length", MAX_MESSAGE_BYTES)]
    )
    async with channel:
        unary: Any = channel.unary_unary("/runtime.v1.RuntimeService/ExecSync")
        answer = pb.ExecSyncResponse.FromString(await unary(raw, timeout=20))
    assert answer.exit_code == 7
    assert len(answer.stdout) + len(answer.stderr) > 15 << 20
    assert bool(answer.stdout) == bool(stdout)
    assert bool(answer.stderr) == bool(stderr)
