"""TCP connections made inside a network namespace.

A socket belongs to the namespace of the thread that makes it, for ever; so a thread enters the
namespace, makes the sockets and dies, and the event loop connects them. socket(2), setns(2).
"""

from __future__ import annotations

import asyncio
import os
import socket
from pathlib import Path
from typing import Final

from noderuntime.errors import HostError
from noderuntime.host import syscalls
from noderuntime.host.threads import in_own_thread

_TIMEOUT_S: Final = 10.0
_FAMILIES: Final = ((socket.AF_INET, "127.0.0.1"), (socket.AF_INET6, "::1"))


class NetnsPortForward:
    """The ``PortForward`` of ports.py."""

    async def connect(
        self, netns: Path | None, port: int
    ) -> tuple[asyncio.StreamReader, asyncio.StreamWriter]:
        """Connect to localhost:``port``, IPv4 then IPv6; raises HostError when neither answers."""
        if not 0 < port <= 65535:
            raise HostError(f"port {port} is not a TCP port")
        sockets = await (in_own_thread(_make, netns) if netns else in_own_thread(_make, None))
        refused: list[str] = []
        try:
            for connection, address in sockets:
                try:
                    async with asyncio.timeout(_TIMEOUT_S):
                        await asyncio.get_running_loop().sock_connect(connection, (address, port))
                except OSError as error:  # TimeoutError is one, without a number
                    # asyncio's text has the address in it, as Python shows a tuple.
                    why = os.strerror(error.errno).lower() if error.errno else "no answer in time"
                    refused.append(f"{address}: {why}")
                    continue
                chosen = connection.dup()
                return await asyncio.open_connection(sock=chosen)
        finally:
            for connection, _ in sockets:
                connection.close()
        raise HostError(f"cannot connect to port {port} in the pod ({'; '.join(refused)})")


def _make(netns: Path | None) -> tuple[tuple[socket.socket, str], ...]:
    if netns is not None:
        syscalls.setns(netns, syscalls.CLONE_NEWNET)
    made: list[tuple[socket.socket, str]] = []
    for family, address in _FAMILIES:
        try:
            connection = socket.socket(family, socket.SOCK_STREAM | socket.SOCK_NONBLOCK)
        except OSError:
            continue  # a kernel without IPv6
        made.append((connection, address))
    return tuple(made)
