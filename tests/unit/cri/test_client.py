from __future__ import annotations

import asyncio
from contextlib import asynccontextmanager
from typing import TYPE_CHECKING

import grpc
import pytest
from grpc import aio

from noderuntime.cri.client import INFO_KEY, read_status
from noderuntime.cri.runtime_v1 import api_pb2
from noderuntime.errors import FailedPreconditionError, UnavailableError

if TYPE_CHECKING:
    from collections.abc import AsyncGenerator
    from pathlib import Path


@asynccontextmanager
async def a_runtime(path: Path, info: str, delay_s: float = 0.0) -> AsyncGenerator[None]:
    async def version(_: bytes, __: object) -> bytes:
        await asyncio.sleep(delay_s)
        answer = api_pb2.VersionResponse(runtime_name="noderuntime", runtime_version="0.1.0")
        return answer.SerializeToString()

    async def status(raw: bytes, _: object) -> bytes:
        assert api_pb2.StatusRequest.FromString(raw).verbose
        ready = api_pb2.RuntimeCondition(type="RuntimeReady", status=True)
        return api_pb2.StatusResponse(
            status=api_pb2.RuntimeStatus(conditions=[ready]),
            runtime_handlers=[api_pb2.RuntimeHandler(name="restricted")],
            info={INFO_KEY: info} if info else {},
        ).SerializeToString()

    server = aio.server()
    methods: dict[str, grpc.RpcMethodHandler[bytes, bytes]] = {
        "Version": grpc.unary_unary_rpc_method_handler(version),
        "Status": grpc.unary_unary_rpc_method_handler(status),
    }
    handler = grpc.method_handlers_generic_handler("runtime.v1.RuntimeService", methods)
    server.add_generic_rpc_handlers((handler,))
    server.add_insecure_port(f"unix:{path}")
    await server.start()
    try:
        yield
    finally:
        await server.stop(0)


async def test_read_status_gives_plain_values(tmp_path: Path) -> None:
    info = '{"revision": "sha256:1", "handlers": ["restricted"], "addedLater": 1}'
    async with a_runtime(tmp_path / "s", info):
        status = await read_status(tmp_path / "s", 2)
    assert (status.name, status.version) == ("noderuntime", "0.1.0")
    assert status.handlers == ("restricted",)
    assert status.conditions[0].type == "RuntimeReady"
    assert status.served.revision == "sha256:1"
    assert status.served.stale_containers == ()


async def test_read_status_says_so_when_no_runtime_listens(tmp_path: Path) -> None:
    with pytest.raises(UnavailableError, match="does not answer"):
        await read_status(tmp_path / "none", 0.2)


async def test_read_status_says_so_when_the_runtime_is_too_slow(tmp_path: Path) -> None:
    async with a_runtime(tmp_path / "s", "{}", delay_s=1):
        with pytest.raises(UnavailableError, match="no answer in time"):
            await read_status(tmp_path / "s", 0.05)


@pytest.mark.parametrize("info", ["", "not JSON", '{"handlers": 1}'])
async def test_read_status_refuses_what_is_not_ours(tmp_path: Path, info: str) -> None:
    async with a_runtime(tmp_path / "s", info):
        with pytest.raises(FailedPreconditionError, match="the runtime at"):
            await read_status(tmp_path / "s", 2)
