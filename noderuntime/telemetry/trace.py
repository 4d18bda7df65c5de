"""Spans. ``span`` costs next to nothing while tracing is off."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager


@contextmanager
def span(name: str, **attributes: str | int | bool) -> Iterator[None]:
    """Time a block as a child of the current span; ``name`` is ``part.verb``, such as ``oci.create``."""
    del name, attributes
    yield
