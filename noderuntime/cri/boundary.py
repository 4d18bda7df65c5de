"""The one place where a call comes in: read, trace, answer, and turn errors into gRPC codes.

Every RPC of both services runs through ``Boundary``. Log fields are names and IDs, never
payloads: requests carry passwords and environments. An error that was raised on purpose becomes
its code and one sentence; anything else is a bug: INTERNAL, logged here, once.
Source: kubelet ``images/types.go`` (errors of a pull are matched by their text, which the CRI
client leaves alone only under the code UNKNOWN), grpc ``doc/statuscodes.md``.
"""

from __future__ import annotations

import logging
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Generator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, Final, NoReturn, TypeAlias

import grpc
from google.protobuf.message import DecodeError, Message
from grpc import aio

from noderuntime import errors
from noderuntime.telemetry import log, metrics, trace

_log = logging.getLogger(__name__)

CODES: Final[dict[type[errors.NodeRuntimeError], grpc.StatusCode]] = {
    errors.InvalidArgumentError: grpc.StatusCode.INVALID_ARGUMENT,
    errors.NotFoundError: grpc.StatusCode.NOT_FOUND,
    errors.FailedPreconditionError: grpc.StatusCode.FAILED_PRECONDITION,
    errors.DeniedError: grpc.StatusCode.PERMISSION_DENIED,
    errors.UnavailableError: grpc.StatusCode.UNAVAILABLE,
    errors.DeadlineExceededError: grpc.StatusCode.DEADLINE_EXCEEDED,
    errors.ResourceExhaustedError: grpc.StatusCode.RESOURCE_EXHAUSTED,
    errors.UnimplementedError: grpc.StatusCode.UNIMPLEMENTED,
    errors.StateError: grpc.StatusCode.DATA_LOSS,
    errors.ConfigError: grpc.StatusCode.FAILED_PRECONDITION,
}
# Host, network and image errors: the world's fault, neither the caller's nor a bug.
OTHER_CODE: Final = grpc.StatusCode.UNKNOWN
# grpc-message travels percent-encoded in a header whose list is cut at 8 KiB by gRPC's default.
MAX_SENTENCE_CHARS: Final = 2000
MAX_SENTENCE_BYTES: Final = 6000  # as it travels, where a character takes up to twelve
MAX_MESSAGE_BYTES: Final = 16 << 20  # maxMsgSize of k8s.io/cri-client pkg/utils.go

Unary = Callable[[Any], Awaitable[Message]]
Streaming = Callable[[Any], AsyncIterator[Message]]
Context = aio.ServicerContext[Any, Any]
Handler: TypeAlias = "grpc.RpcMethodHandler[Any, Any]"


@dataclass(frozen=True, slots=True, kw_only=True)
class Method:
    """One RPC: its name and the class of its request."""

    name: str
    request: Callable[[], Message]


def code_of(error: errors.NodeRuntimeError) -> grpc.StatusCode:
    """Return the code of the nearest class that has one."""
    for cls in type(error).__mro__:
        if cls in CODES:
            return CODES[cls]
    return OTHER_CODE


def unary(method: Method, call: Unary) -> Handler:
    """Return the handler that answers ``method`` with ``call``."""

    async def handle(raw: bytes, context: Context) -> bytes:
        with _traced(method, context):
            try:
                with trace.span(f"cri.{method.name}"):
                    request = _read(method, raw)
                    with log.fields(**ids_of(request)):
                        answer = await call(request)
                    return _bounded(answer)
            except errors.NodeRuntimeError as error:
                await _refuse(context, error)
            except Exception as error:  # noqa: BLE001  # the boundary: a bug becomes INTERNAL
                await _confess(context, error)

    return grpc.unary_unary_rpc_method_handler(handle)


def streaming(method: Method, call: Streaming) -> Handler:
    """Return the handler that answers ``method`` with the messages of ``call``."""

    async def handle(raw: bytes, context: Context) -> AsyncIterator[bytes]:
        with _traced(method, context):
            try:
                with trace.span(f"cri.{method.name}"):
                    request = _read(method, raw)
                    with log.fields(**ids_of(request)):
                        async for answer in call(request):
                            yield _bounded(answer)
            except errors.NodeRuntimeError as error:
                await _refuse(context, error)
            except Exception as error:  # noqa: BLE001  # the boundary: a bug becomes INTERNAL
                await _confess(context, error)

    return grpc.unary_stream_rpc_method_handler(handle)


def unimplemented(method: Method) -> Handler:
    """Return the handler of an RPC that this version does not serve."""

    async def refuse(_: Message) -> Message:
        raise errors.UnimplementedError(f"{method.name} is not served by this version")

    return unary(method, refuse)


def unimplemented_stream(method: Method) -> Handler:
    """Return the handler of a streaming RPC that this version does not serve."""

    async def refuse(_: Message) -> AsyncIterator[Message]:
        raise errors.UnimplementedError(f"{method.name} is not served by this version")
        yield  # makes this an iterator

    return streaming(method, refuse)


async def contained(what: str, work: Awaitable[None]) -> None:
    """Await work that has no caller to tell of a bug: it is logged here, once."""
    try:
        await work
    except Exception as error:  # noqa: BLE001  # the boundary
        _log.error("work without a caller failed", exc_info=error, extra={"what": what})


def ids_of(request: Message) -> dict[str, str]:
    """Return what names the request's object, for the log."""
    found: dict[str, str] = {}
    for field, name in (("pod_sandbox_id", "sandbox_id"), ("container_id", "container_id")):
        if value := getattr(request, field, ""):
            found[name] = str(value)[:128]
    config: Any = getattr(request, "sandbox_config", None) or getattr(request, "config", None)
    metadata: Any = getattr(config, "metadata", None)
    if namespace := getattr(metadata, "namespace", ""):
        found["namespace"] = str(namespace)[:256]
        found["pod"] = str(metadata.name)[:256]
    handler = getattr(request, "runtime_handler", "")
    if handler:
        found["handler"] = str(handler)[:256]
    return found


def _read(method: Method, raw: bytes) -> Message:
    request = method.request()
    try:
        request.ParseFromString(raw)
    except DecodeError as error:
        raise errors.InvalidArgumentError(
            f"the request of {method.name} is not a valid protobuf message"
        ) from error
    return request


def _bounded(answer: Message) -> bytes:
    """Return the answer's bytes. Raises ResourceExhaustedError, as the caller would not take them."""
    raw = answer.SerializeToString()
    if len(raw) > MAX_MESSAGE_BYTES:
        raise errors.ResourceExhaustedError(
            f"the answer has {len(raw)} bytes, and a CRI client takes {MAX_MESSAGE_BYTES}; ask for "
            "less with a filter, or for a list by its Stream method"
        )
    return raw


def shortened(sentence: str) -> str:
    """Return the sentence as far as it fits into a header of HTTP/2, percent-encoded."""
    left = MAX_SENTENCE_BYTES
    for end, char in enumerate(sentence[:MAX_SENTENCE_CHARS]):
        left -= 1 if " " <= char <= "~" and char != "%" else 3 * len(char.encode())
        if left < 0:
            return sentence[:end]
    return sentence[:MAX_SENTENCE_CHARS]


@contextmanager
def _traced(method: Method, context: Context) -> Generator[None]:
    started = time.monotonic()
    with (
        trace.remote_parent(_traceparent(context)),
        log.fields(rpc=method.name),
    ):
        code = "CANCELLED"
        try:
            yield
            code = "OK"
        except aio.AbortError:
            code = _name_of(context.code())
            raise
        finally:
            metrics.observe_rpc(method.name, code, time.monotonic() - started)


def _name_of(code: Any) -> str:  # noqa: ANN401  # grpc.aio gives the enum or its number
    if isinstance(code, grpc.StatusCode):
        return code.name
    return next((known.name for known in grpc.StatusCode if known.value[0] == code), "UNKNOWN")


def _traceparent(context: Context) -> str:
    for key, value in context.invocation_metadata() or ():
        if key == "traceparent" and isinstance(value, str):
            return value
    return ""


async def _refuse(context: Context, error: errors.NodeRuntimeError) -> NoReturn:
    code = code_of(error)
    sentence = error.for_kubelet()
    _log.info("call refused", extra={"code": code.name, "reason": error.reason, "text": sentence})
    await context.abort(code, shortened(sentence))
    raise AssertionError("abort returns never")  # pragma: no cover


async def _confess(context: Context, error: Exception) -> NoReturn:
    # The text of an unforeseen error may hold what was asked for: only its class is told.
    _log.error("call failed unexpectedly", exc_info=error)
    await context.abort(
        grpc.StatusCode.INTERNAL,
        f"internal error ({type(error).__name__}); see the log of noderuntime",
    )
    raise AssertionError("abort returns never")  # pragma: no cover
