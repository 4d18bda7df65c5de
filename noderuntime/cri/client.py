"""Asking a runtime over its CRI socket: what ``noderuntime status`` and the agent need.

This is the only client of ours. It gives plain values, so that protobuf stays in ``cri``; of what the
runtime says in the verbose part of Status, keys that a newer runtime adds are passed over.
Source: runtime.v1 of k8s.io/cri-api, RuntimeService.Version and Status.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, TypeVar

import grpc
from grpc import aio
from pydantic import BaseModel, ConfigDict, Field, ValidationError
from pydantic.alias_generators import to_camel

from noderuntime.cri.runtime_v1 import api_pb2
from noderuntime.errors import FailedPreconditionError, UnavailableError

if TYPE_CHECKING:
    from pathlib import Path

    from google.protobuf.message import Message

Answer = TypeVar("Answer", bound="Message")
INFO_KEY = "noderuntime"


class WithheldHandler(BaseModel):
    """A handler of the revision that the node cannot offer, and why."""

    model_config = ConfigDict(extra="ignore", frozen=True)

    name: str
    reason: str
    message: str


class Default(BaseModel):
    """Which handler governs the Pods that name none, and where not."""

    model_config = ConfigDict(
        extra="ignore", frozen=True, alias_generator=to_camel, populate_by_name=True
    )

    handler: str
    exempt_namespaces: tuple[str, ...] = ()


class Served(BaseModel):
    """``Status(verbose).info["noderuntime"]``: which revision is served, and what runs under another."""

    model_config = ConfigDict(
        extra="ignore", frozen=True, alias_generator=to_camel, populate_by_name=True
    )

    revision: str = ""
    revision_error: str = ""
    handlers: tuple[str, ...] = ()
    stale_containers: tuple[str, ...] = ()
    ungoverned_pods: int = Field(default=0, ge=0)
    default: Default | None = None
    unknown_syscalls: Mapping[str, tuple[str, ...]] = Field(
        default_factory=dict[str, tuple[str, ...]]
    )
    withheld_handlers: tuple[WithheldHandler, ...] = ()


@dataclass(frozen=True, slots=True, kw_only=True)
class RuntimeCondition:
    """RuntimeCondition of CRI: RuntimeReady, NetworkReady."""

    type: str
    status: bool
    reason: str
    message: str


@dataclass(frozen=True, slots=True, kw_only=True)
class RuntimeStatus:
    """What Version and Status answered. ``handlers`` has "" for the node's default."""

    name: str
    version: str
    conditions: tuple[RuntimeCondition, ...]
    handlers: tuple[str, ...]
    served: Served


async def read_status(socket: Path, timeout_s: float) -> RuntimeStatus:
    """Ask the runtime at ``socket``.

    Raises UnavailableError when it does not answer in time, FailedPreconditionError when it is
    another runtime than ours.
    """
    async with aio.insecure_channel(f"unix://{socket}") as channel:
        try:
            version = await _call(
                channel, "Version", api_pb2.VersionRequest(), api_pb2.VersionResponse, timeout_s
            )
            status = await _call(
                channel,
                "Status",
                api_pb2.StatusRequest(verbose=True),
                api_pb2.StatusResponse,
                timeout_s,
            )
        except aio.AioRpcError as error:
            raise UnavailableError(
                f"the runtime at {socket} does not answer: {_reason(error)}"
            ) from error
    return RuntimeStatus(
        name=version.runtime_name,
        version=version.runtime_version,
        conditions=tuple(
            RuntimeCondition(type=c.type, status=c.status, reason=c.reason, message=c.message)
            for c in status.status.conditions
        ),
        handlers=tuple(handler.name for handler in status.runtime_handlers),
        served=_served(status.info.get(INFO_KEY, ""), version.runtime_name, socket),
    )


async def _call(
    channel: aio.Channel, method: str, request: Message, answer: type[Answer], timeout_s: float
) -> Answer:
    call = channel.unary_unary(
        f"/runtime.v1.RuntimeService/{method}",
        request_serializer=_bytes_of,
        response_deserializer=answer.FromString,
    )
    return await call(request, timeout=timeout_s)


def _bytes_of(request: Message) -> bytes:
    return request.SerializeToString()


def _served(text: str, name: str, socket: Path) -> Served:
    if not text:
        raise FailedPreconditionError(f"the runtime at {socket} is {name}, not noderuntime")
    try:
        return Served.model_validate_json(text)
    except ValidationError as error:
        raise FailedPreconditionError(
            f"the runtime at {socket} tells its state in a way that this version does not read"
        ) from error


def _reason(error: aio.AioRpcError) -> str:
    if error.code() is grpc.StatusCode.DEADLINE_EXCEEDED:
        return "no answer in time"
    if error.code() is grpc.StatusCode.UNAVAILABLE:
        return "nothing listens there"
    return (error.details() or error.code().name).splitlines()[0]
