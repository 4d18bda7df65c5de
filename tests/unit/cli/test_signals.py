from __future__ import annotations

import asyncio
import os
import signal
import socket
from typing import TYPE_CHECKING

import pytest

from noderuntime.cli.signals import notify, until_signal
from noderuntime.errors import ConfigError

if TYPE_CHECKING:
    from pathlib import Path


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
async def test_a_service_is_cancelled_and_cleans_up_when_a_signal_comes(
    number: signal.Signals,
) -> None:
    cleaned: list[str] = []

    async def service() -> None:
        os.kill(os.getpid(), number)
        try:
            await asyncio.Event().wait()
        finally:
            await asyncio.sleep(0)
            cleaned.append("up")

    await until_signal(service())
    assert cleaned == ["up"]


async def test_until_signal_ends_when_the_service_ends() -> None:
    await until_signal(asyncio.sleep(0))


async def test_until_signal_raises_our_error_out_of_a_group_of_others() -> None:
    async def service() -> None:
        async with asyncio.TaskGroup() as group:
            group.create_task(fail(ValueError("bug")))
            group.create_task(fail(ConfigError("no such key")))

    async def fail(error: Exception) -> None:
        raise error

    with pytest.raises(ConfigError, match="no such key") as caught:
        await until_signal(service())
    assert caught.value.__notes__ == ["and: ValueError: bug"]


def test_notify_sends_one_datagram(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = str(tmp_path / "notify")
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as systemd:
        systemd.bind(path)
        monkeypatch.setenv("NOTIFY_SOCKET", path)
        notify("READY=1")
        assert systemd.recv(64) == b"READY=1"


@pytest.mark.parametrize("address", ["", "/nowhere/notify", "vsock:1:2"])
def test_notify_is_silent_when_nobody_listens(
    address: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("NOTIFY_SOCKET", address)
    notify("READY=1")
