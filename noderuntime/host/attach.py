"""The client of conmon's attach socket (conmon 2.1 ``src/conn_sock.c``).

A SOCK_SEQPACKET socket: each packet from conmon is one byte (2 = stdout, 3 = stderr) and the data;
what we send is stdin. conmon writes blockingly: a client that does not read holds the container up.
"""

from __future__ import annotations

import asyncio
import os
import socket
from collections.abc import AsyncIterator
from contextlib import suppress
from pathlib import Path
from typing import Final

from noderuntime.errors import HostError
from noderuntime.host import pipes
from noderuntime.host.syscalls import host_error

_PACKET_BYTES: Final = 8192 + 2
_STDIN_PACKET_BYTES: Final = 8192
_RESIZE: Final = 1
_REOPEN: Final = 2
_LARGEST: Final = 0xFFFF  # a terminal's size is two unsigned shorts


def send_control(bundle: Path, message: str) -> None:
    """Write one line to the monitor's control FIFO; raises HostError when nobody reads it."""
    fifo = bundle / "ctl"
    try:
        descriptor = os.open(fifo, os.O_WRONLY | os.O_NONBLOCK | os.O_CLOEXEC | os.O_NOFOLLOW)
        try:
            os.write(descriptor, message.encode())
        finally:
            os.close(descriptor)
    except OSError as error:
        raise host_error(f"no monitor listens at {fifo}", error.errno or 0) from error


def send_reopen(bundle: Path) -> None:
    """Ask for the log to be opened anew."""
    send_control(bundle, f"{_REOPEN} 0 0\n")


class ConmonAttach:
    """The ``AttachStream`` of ports.py for a container's own process."""

    def __init__(self, bundle: Path, connection: socket.socket, *, terminal: bool) -> None:
        """Own ``connection``."""
        self._bundle = bundle
        self._socket = connection
        self._owned = pipes.Owned(connection.fileno(), connection.close)
        self._terminal = terminal
        self._is_stdin_open = True

    @classmethod
    async def connect(cls, bundle: Path, *, terminal: bool) -> ConmonAttach:
        """Connect; a path longer than the 107 bytes of sun_path is reached through its folder."""
        connection = socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET | socket.SOCK_NONBLOCK)
        try:
            folder = os.open(bundle, os.O_PATH | os.O_DIRECTORY | os.O_CLOEXEC)
            try:
                address = f"/proc/self/fd/{folder}/attach"
                await asyncio.get_running_loop().sock_connect(connection, address)
            finally:
                os.close(folder)
        except OSError as error:
            connection.close()
            what = "cannot attach: the container's monitor does not answer"
            raise host_error(what, error.errno or 0) from error
        except BaseException:
            connection.close()
            raise
        return cls(bundle, connection, terminal=terminal)

    async def __aiter__(self) -> AsyncIterator[tuple[int, bytes]]:
        """Yield output; ends when the container ended or this stream was closed."""
        while self._owned.is_open:
            with self._owned.use() as descriptor:
                packet = pipes.read_now(descriptor, _PACKET_BYTES)
                if packet is None:
                    await pipes.wait_ready(readable=(descriptor,), until=(self._owned.closed,))
                    continue
            if not packet:
                return
            yield packet[0], packet[1:]

    async def write(self, data: bytes) -> None:
        """Send to stdin, waiting while the process does not read; raises HostError at its end."""
        if not self._is_stdin_open or not self._owned.is_open:
            raise HostError("stdin of this session is closed")
        try:
            with self._owned.use() as descriptor:
                for start in range(0, len(data), _STDIN_PACKET_BYTES):
                    packet = data[start : start + _STDIN_PACKET_BYTES]
                    await pipes.write(descriptor, packet, (self._owned.closed,))
        except OSError as error:
            what = "the container does not take input any more"
            raise host_error(what, error.errno or 0) from error

    async def close_stdin(self) -> None:
        """Half-close; conmon passes it on unless the container's stdin outlives its sessions."""
        if self._is_stdin_open and self._owned.is_open:
            self._is_stdin_open = False
            with suppress(OSError):
                self._socket.shutdown(socket.SHUT_WR)

    async def resize(self, width: int, height: int) -> None:
        """Set the terminal's size; a size of 0 or past a short is left alone."""
        if self._terminal and 0 < width <= _LARGEST and 0 < height <= _LARGEST:
            send_control(self._bundle, f"{_RESIZE} {height} {width}\n")

    async def close(self) -> None:
        """Let go; the container goes on."""
        self._owned.close()
