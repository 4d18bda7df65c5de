from __future__ import annotations

from collections.abc import Iterator

import pytest

from tests.fakes.registry import FakeRegistry


@pytest.fixture
def registry() -> Iterator[FakeRegistry]:
    with FakeRegistry().running() as running:
        yield running


@pytest.fixture
def other() -> Iterator[FakeRegistry]:
    """A second host: a mirror, a token server, where a redirect leads."""
    with FakeRegistry().running() as running:
        yield running
