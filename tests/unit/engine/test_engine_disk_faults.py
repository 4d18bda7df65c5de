"""The disk is full, or read-only, at every single write: nothing half-made, and the retry works."""

from __future__ import annotations

import errno
import os
import threading
from collections.abc import Callable
from pathlib import Path

import pytest

from noderuntime.engine import exits
from noderuntime.engine.engine import Engine
from noderuntime.errors import NodeRuntimeError
from tests.fakes.engine import World, container_config, new_engine, sandbox_config

MOST = 60  # writes and removals of one Pod's life; the test fails when there are more


class Disk:
    """Lets the n-th operation of one kind fail."""

    def __init__(self) -> None:
        self.left = 0
        self.code = 0
        self.failed = 0

    def check(self) -> None:
        self.left -= 1
        if self.left == 0:
            self.failed += 1
            raise OSError(self.code, os.strerror(self.code))

    def wrapped(self, function: Callable[..., object]) -> Callable[..., object]:
        def call(*args: object, **kwargs: object) -> object:
            if threading.current_thread().name.startswith("engine-disk"):  # not the fakes' own
                self.check()
            return function(*args, **kwargs)

        return call


async def life(engine: Engine, told: list[str]) -> None:
    """Run a Pod's whole life; a call that fails is made again, as the kubelet does."""

    async def sure(call: Callable[[], object]) -> None:
        for _ in range(3):
            try:
                await call()  # type: ignore[misc]  # each is a coroutine
            except NodeRuntimeError as error:
                told.append(error.for_kubelet())
            else:
                return
        raise AssertionError(told)

    def sandbox_id() -> str:
        return engine.sandboxes()[0].id

    def container_id() -> str:
        return next((c.id for c in engine.containers()), "")

    await sure(lambda: engine.run_sandbox(sandbox_config(log_directory=""), ""))
    attempt = 0

    async def started() -> None:
        nonlocal attempt
        made = await engine.create_container(sandbox_id(), container_config(attempt))
        try:
            await engine.start_container(made)
        except NodeRuntimeError:
            attempt += (
                1  # a container that could not be started is Exited: the kubelet makes another
            )
            await engine.remove_container(made)
            raise

    await sure(started)
    await sure(lambda: engine.stop_container(container_id(), 0.0))
    await sure(lambda: engine.remove_container(container_id()))
    await sure(lambda: engine.stop_sandbox(sandbox_id()))
    await sure(lambda: engine.remove_sandbox(next((s.id for s in engine.sandboxes()), "")))


@pytest.mark.slow
@pytest.mark.parametrize("code", [errno.ENOSPC, errno.EROFS, errno.EIO], ids=errno.errorcode.get)
@pytest.mark.parametrize(
    ("owner", "name"),
    [(os, "open"), (os, "fsync"), (Path, "replace"), (Path, "unlink"), (Path, "mkdir")],
    ids=["open", "fsync", "rename", "unlink", "mkdir"],
)
async def test_a_write_that_fails_leaves_nothing_half_made_and_the_retry_works(
    world: World, monkeypatch: pytest.MonkeyPatch, owner: object, name: str, code: int
) -> None:
    disk = Disk()
    disk.code = code
    engine = new_engine(world)
    await engine.recover()
    await life(engine, [])
    empty = world.census()
    monkeypatch.setattr(owner, name, disk.wrapped(getattr(owner, name)))
    for number in range(1, MOST):
        before = disk.failed
        disk.left = number
        told: list[str] = []
        await life(engine, told)
        await exits.flush(engine._node)  # as it is done every few seconds
        assert world.census() == empty, (number, told)
        if disk.failed == before:
            break
    else:
        pytest.fail(f"more than {MOST} operations")
    disk.left = 0
    await engine.close()
    again = new_engine(world)
    await again.recover()
    assert world.census() == empty
    await again.close()
