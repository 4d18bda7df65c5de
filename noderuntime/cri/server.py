"""The CRI sockets: a grpc.aio server with every method of both services, and one with few for the agent.

Methods are taken from the service descriptors, so that one that this version does not serve
answers UNIMPLEMENTED with its name. The socket appears only when ``start`` is called, after
recovery, with mode 0660 from its first moment; a stale one is replaced, a live one never.
"""

from __future__ import annotations

import asyncio
import contextlib
import os
import socket
import stat
from typing import TYPE_CHECKING, Final

import grpc
from google.protobuf import message_factory
from grpc import aio

from noderuntime.cri import boundary
from noderuntime.cri.runtime_v1 import api_pb2 as pb
from noderuntime.errors import ConfigError, UnavailableError

if TYPE_CHECKING:
    from collections.abc import Generator
    from pathlib import Path

    from google.protobuf.descriptor import ServiceDescriptor

    from noderuntime.cri.image_service import ImageService
    from noderuntime.cri.runtime_service import RuntimeService

MAX_MESSAGE_BYTES: Final = boundary.MAX_MESSAGE_BYTES
SOCKET_MODE: Final = 0o660
MAX_SOCKET_PATH: Final = 107  # sun_path without its NUL, unix(7)
# What the agent may call: who talks CRI without bounds is root on the node.
AGENT_METHODS: Final = frozenset({"Version", "Status"})
_OPTIONS: Final = (
    ("grpc.max_receive_message_length", MAX_MESSAGE_BYTES),
    ("grpc.max_send_message_length", MAX_MESSAGE_BYTES),
    ("grpc.max_concurrent_streams", 1000),
    ("grpc.so_reuseport", 0),
)


class CriServer:
    """Serves both services on one Unix socket."""

    def __init__(
        self,
        path: Path,
        runtime: RuntimeService,
        images: ImageService,
        *,
        only: frozenset[str] | None = None,
    ) -> None:
        """Prepare; nothing is bound before ``start``. ``only`` names the methods that are served."""
        self._path = path
        self._only = only
        self._services: dict[str, RuntimeService | ImageService] = {
            "RuntimeService": runtime,
            "ImageService": images,
        }
        self._server: aio.Server | None = None

    async def start(self) -> None:
        """Bind and answer. Raises ConfigError or UnavailableError when the path cannot be had."""
        await asyncio.to_thread(clear_the_way, self._path)
        server = aio.server(options=_OPTIONS)
        for name, service in self._services.items():
            descriptor = pb.DESCRIPTOR.services_by_name[name]
            server.add_generic_rpc_handlers((generic_handler(descriptor, service, self._only),))
        with _umask(0o777 ^ SOCKET_MODE):
            try:
                server.add_insecure_port(f"unix:{self._path}")
            except RuntimeError as error:
                raise ConfigError(f"cannot listen on {self._path}: {error}") from error
        self._path.chmod(SOCKET_MODE)
        await server.start()
        self._server = server

    async def stop(self, grace_s: float = 5.0) -> None:
        """Take no new calls, let those under way end for ``grace_s``, remove the socket."""
        if self._server is not None:
            await self._server.stop(grace_s)
            self._server = None
            self._path.unlink(missing_ok=True)


def generic_handler(
    descriptor: ServiceDescriptor,
    service: RuntimeService | ImageService,
    only: frozenset[str] | None = None,
) -> grpc.GenericRpcHandler:
    """Return handlers for every method of the service, or for those in ``only``."""
    handlers: dict[str, boundary.Handler] = {}
    for each in descriptor.methods:
        if only is not None and each.name not in only:
            continue  # grpc answers UNIMPLEMENTED
        request = message_factory.GetMessageClass(each.input_type)
        method = boundary.Method(name=each.name, request=request)
        if each.server_streaming:
            stream = service.streams.get(each.name)
            handlers[each.name] = (
                boundary.streaming(method, stream)
                if stream
                else boundary.unimplemented_stream(method)
            )
        else:
            call = service.methods.get(each.name)
            handlers[each.name] = (
                boundary.unary(method, call) if call else boundary.unimplemented(method)
            )
    return grpc.method_handlers_generic_handler(descriptor.full_name, handlers)


def clear_the_way(path: Path) -> None:
    """Make the folder and remove a socket that nothing answers on.

    Raises ConfigError where the path is something else, UnavailableError where a server answers.
    """
    if len(os.fsencode(path)) > MAX_SOCKET_PATH:
        raise ConfigError(f"socket {path} is longer than {MAX_SOCKET_PATH} bytes: choose another")
    path.parent.mkdir(mode=0o755, parents=True, exist_ok=True)
    try:
        mode = path.lstat().st_mode
    except FileNotFoundError:
        return
    if not stat.S_ISSOCK(mode):
        raise ConfigError(f"{path} is not a socket: move it away, or choose another socket")
    if _answers(path):
        raise UnavailableError(f"another runtime answers on {path}: stop it first")
    path.unlink(missing_ok=True)


def _answers(path: Path) -> bool:
    with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as probe:
        probe.settimeout(1.0)
        try:
            probe.connect(str(path))
        except TimeoutError:
            return True  # a full backlog: somebody listens
        except OSError:
            return False
        return True


@contextlib.contextmanager
def _umask(mask: int) -> Generator[None]:
    before = os.umask(mask)
    try:
        yield
    finally:
        os.umask(before)
