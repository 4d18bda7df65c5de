"""Exec and attach: streams error, stdin, stdout, stderr and resize, by ``streamtype``.

The exit code goes out on the error stream as metav1.Status in JSON (v4; v5 adds only what SPDY
always had: a half-closed stdin; before v4 it is a text, and only of a failure). An exec whose
peer vanishes is killed; the process of a container is not.
Source: ``k8s.io/cri-streaming`` v0.37.2 ``remotecommand``, KEP-4006.
"""

from __future__ import annotations

import asyncio
import contextlib
import json
import logging
from typing import TYPE_CHECKING, Final, TypeGuard, cast

from noderuntime.cri.streaming.channels import BASE64, BYTES, V5, Channel
from noderuntime.cri.streaming.events import Reset
from noderuntime.cri.streaming.session import Session, Stream, StreamClosedError
from noderuntime.errors import NodeRuntimeError

if TYPE_CHECKING:
    from collections.abc import Coroutine, Mapping

    from noderuntime.cri.streaming.tokens import RemoteCommand
    from noderuntime.engine.engine import Engine
    from noderuntime.host.ports import AttachStream, ExecStream

_log = logging.getLogger(__name__)

PROTOCOLS: Final = ("v5.channel.k8s.io", "v4.channel.k8s.io")
CHANNEL_PROTOCOLS: Final = (V5, *BYTES, *BASE64)
CREATE_S: Final = 30.0  # for the peer to open its streams
DRAIN_S: Final = 2.0  # silence after the exit, when a child of the process keeps the output open
MAX_RESIZE_BYTES: Final = 1024
MAX_CELLS: Final = 65535  # struct winsize has unsigned shorts
_STDOUT: Final = 2
# The numbers of a WebSocket's channels, and whether the peer writes there.
_CHANNELS: Final = {"stdin": True, "stdout": False, "stderr": False, "error": False, "resize": True}


async def serve(session: Session, ticket: RemoteCommand, engine: Engine) -> None:
    """Serve one exec or attach to its end."""
    try:
        async with asyncio.timeout(CREATE_S):
            streams = await _collect(session, _wanted(ticket))
    except TimeoutError:
        _log.warning("streaming peer did not open its streams", extra={"kind": ticket.kind})
        return
    status = await _command(ticket, engine, streams)
    with contextlib.suppress(StreamClosedError):
        for name in ("stdout", "stderr"):
            if name in streams:
                await streams[name].finish()
        await streams["error"].write(_encoded(status, is_plain=session.wire.has_plain_status))
        await streams["error"].finish()


def channels(ticket: RemoteCommand) -> tuple[Channel, ...]:
    """Return the channels of a WebSocket by number; the first that is written gets a greeting."""
    wanted = _wanted(ticket)
    hello = next(name for name in ("stdout", "stderr", "error") if name in wanted)
    return tuple(
        Channel(
            headers={"streamtype": name} if name in wanted else None,
            is_read=is_read,
            is_written=not is_read,
            greeting=b"" if name == hello else None,
        )
        for name, is_read in _CHANNELS.items()
    )


def _encoded(status: Mapping[str, object], *, is_plain: bool) -> bytes:
    if not is_plain:
        return json.dumps(status).encode()
    return str(status.get("message", "")).encode()


async def _command(
    ticket: RemoteCommand, engine: Engine, streams: Mapping[str, Stream]
) -> dict[str, object]:
    """Run it; returns the metav1.Status that the peer gets."""
    try:
        if ticket.argv is None:
            attached = await engine.attach(ticket.container_id)
            return await _session(attached, ticket, streams, None)
        process = await engine.exec(
            ticket.container_id, ticket.argv, tty=ticket.tty, stdin=ticket.stdin
        )
        return await _session(process, ticket, streams, process)
    except NodeRuntimeError as error:
        _log.info("streaming command failed", extra={"reason": error.reason})
        return _failure(ticket, error.for_kubelet())


async def _session(
    process: AttachStream,
    ticket: RemoteCommand,
    streams: Mapping[str, Stream],
    ending: ExecStream | None,
) -> dict[str, object]:
    code, failure = 0, ""
    try:
        async with asyncio.TaskGroup() as group:
            inputs: list[asyncio.Task[None]] = []
            if "stdin" in streams:
                inputs.append(group.create_task(_pump_input(process, streams["stdin"])))
            if "resize" in streams:
                inputs.append(group.create_task(_pump_resize(process, streams["resize"])))
            output = _Output(process, streams)
            pumping = group.create_task(output.pump())
            if ending is not None:
                code = await ending.wait()
                await output.wait_quiet(pumping)
            else:
                await asyncio.wait({pumping})
            for task in (*inputs, pumping):
                task.cancel()
    except* StreamClosedError:
        failure = "the client takes no more output"
    except* NodeRuntimeError as problems:
        failure = str(problems.exceptions[0])
    finally:
        await _surely(process.close())
    return _failure(ticket, failure) if failure else _exited(code)


async def _surely(closing: Coroutine[object, object, None]) -> None:
    """Wait to the end also while this session is cancelled, again and again: the process must go."""
    task = asyncio.get_running_loop().create_task(closing)
    cancelled: asyncio.CancelledError | None = None
    while not task.done():
        try:
            await asyncio.wait({task})
        except asyncio.CancelledError as error:
            cancelled = error
    task.result()
    if cancelled is not None:
        raise cancelled


class _Output:
    """Copies output; knows whether it is waiting for the process or for the peer."""

    def __init__(self, process: AttachStream, streams: Mapping[str, Stream]) -> None:
        self._process = process
        self._streams = streams
        self._moved = 0
        self._writing = False

    async def pump(self) -> None:
        async for channel, data in self._process:
            self._moved += 1
            target = self._streams.get("stdout" if channel == _STDOUT else "stderr")
            if target is not None:
                self._writing = True
                await target.write(data)
                self._writing = False

    async def wait_quiet(self, pumping: asyncio.Task[None]) -> None:
        """Wait until all output is out, or for a silence after the exit."""
        before = -1
        while not pumping.done() and (self._writing or before != self._moved):
            before = self._moved
            await asyncio.wait({pumping}, timeout=DRAIN_S)


async def _pump_input(process: AttachStream, stdin: Stream) -> None:
    try:
        async for data in stdin:
            await process.write(data)
        await process.close_stdin()
    except (OSError, NodeRuntimeError):
        # It reads no more, which is its right (`head -1`); what still comes is dropped.
        stdin.discard()


async def _pump_resize(process: AttachStream, resize: Stream) -> None:
    """Read JSON objects one after another, each ``{"Width": columns, "Height": rows}``."""
    text, decoder = "", json.JSONDecoder()
    async for data in resize:
        text += data.decode("utf-8", "replace")
        while text := text.lstrip():
            try:
                size, end = decoder.raw_decode(text)
            except (ValueError, RecursionError):
                break
            text = text[end:]
            await _resize(process, size)
        if len(text) > MAX_RESIZE_BYTES:
            await resize.reset(Reset.PROTOCOL_ERROR)
            return


async def _resize(process: AttachStream, size: object) -> None:
    if not isinstance(size, dict):
        return
    fields = cast("dict[str, object]", size)
    width, height = fields.get("Width"), fields.get("Height")
    if _is_cells(width) and _is_cells(height):
        with contextlib.suppress(OSError, NodeRuntimeError):
            await process.resize(width, height)


def _is_cells(value: object) -> TypeGuard[int]:
    return isinstance(value, int) and 0 < value <= MAX_CELLS


def _wanted(ticket: RemoteCommand) -> set[str]:
    asked = {"stdin": ticket.stdin, "stdout": ticket.stdout, "stderr": ticket.stderr}
    return {"error", *(n for n, is_asked in asked.items() if is_asked)} | (
        {"resize"} if ticket.tty else set()
    )


async def _collect(session: Session, wanted: set[str]) -> dict[str, Stream]:
    """Accept each wanted stream once; any other is refused."""
    found: dict[str, Stream] = {}
    while found.keys() != wanted:
        stream = await session.opened.get()
        name = stream.headers.get("streamtype", "")
        if name in wanted and name not in found:
            found[name] = stream
            await session.accept(stream)
        else:
            await stream.reset(Reset.REFUSED_STREAM)
    return found


def _exited(code: int) -> dict[str, object]:
    if code == 0:
        return {"metadata": {}, "status": "Success"}
    return {
        "metadata": {},
        "status": "Failure",
        "message": f"command terminated with non-zero exit code: exit status {code}",
        "reason": "NonZeroExitCode",
        "details": {"causes": [{"reason": "ExitCode", "message": str(code)}]},
    }


def _failure(ticket: RemoteCommand, text: str) -> dict[str, object]:
    """Say it with the words in front that the Go servers have: kubectl shows the whole."""
    what = "attaching to container" if ticket.argv is None else "executing command in container"
    return {
        "metadata": {},
        "status": "Failure",
        "message": f"Internal error occurred: error {what}: {text}",
        "reason": "InternalError",
        "code": 500,
    }
