from __future__ import annotations

import os
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from noderuntime.images import jail
from noderuntime.images.jail import Jail, Layer, Limits
from noderuntime.images.store import ImageStore
from tests.fakes.registry import FakeRegistry


@pytest.fixture(scope="session")
def confined() -> Iterator[Jail]:
    made = jail.start()
    yield made
    made.close()


Unpack = Callable[..., Layer]


@pytest.fixture
def unpack(confined: Jail, tmp_path: Path) -> Unpack:
    """Unpack archive bytes into ``tmp_path/diff``."""

    def run(
        data: bytes,
        *,
        is_base: bool = False,
        limit_bytes: int = 1 << 26,
        max_entries: int = 10_000,
    ) -> Layer:
        archive, diff = tmp_path / "layer", tmp_path / "diff"
        archive.write_bytes(data)
        diff.mkdir()
        file = os.open(archive, os.O_RDONLY)
        folder = os.open(diff, os.O_RDONLY | os.O_DIRECTORY)
        try:
            return confined.unpack(
                file,
                folder,
                Limits(is_base=is_base, limit_bytes=limit_bytes, max_entries=max_entries),
            )
        finally:
            os.close(file)
            os.close(folder)

    return run


@pytest.fixture
def registry() -> Iterator[FakeRegistry]:
    with FakeRegistry().running() as running:
        yield running


@pytest.fixture
async def store(tmp_path: Path) -> ImageStore:
    made = ImageStore(tmp_path / "state", tmp_path / "certs.d")
    await made.recover()
    return made
