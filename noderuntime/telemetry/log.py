"""Structured logs: JSON lines, with the fields that are bound around the current call.

A message is constant and its values are fields, so that lines can be counted and searched. Values
whose name speaks of a secret are never written.
"""

from __future__ import annotations

import json
import logging
import sys
from contextlib import contextmanager
from contextvars import ContextVar
from datetime import UTC, datetime
from typing import IO, TYPE_CHECKING, Final

from noderuntime.telemetry import trace

if TYPE_CHECKING:
    from collections.abc import Generator, Mapping

MAX_VALUE_CHARS: Final = 8192
_SECRET_WORDS: Final = ("password", "token", "secret", "authorization", "credential")
_STANDARD: Final = frozenset(vars(logging.makeLogRecord({}))) | {"message", "asctime", "taskName"}

_EMPTY: Final[dict[str, str]] = {}
_bound: ContextVar[Mapping[str, str]] = ContextVar("noderuntime_log_fields", default=_EMPTY)


@contextmanager
def fields(**values: str) -> Generator[None]:
    """Bind fields (rpc, sandbox_id, container_id, pod, namespace, handler) to every line within."""
    token = _bound.set({**_bound.get(), **values})
    try:
        yield
    finally:
        _bound.reset(token)


def bound_fields() -> Mapping[str, str]:
    """Return the fields that are bound here."""
    return _bound.get()


def timestamp(epoch_s: float) -> str:
    """Return a time as lines have it: UTC, with milliseconds."""
    when = datetime.fromtimestamp(epoch_s, UTC)
    return when.isoformat(timespec="milliseconds").replace("+00:00", "Z")


class JsonFormatter(logging.Formatter):
    """One line of JSON a record: time, level, logger, message, then the fields."""

    def format(self, record: logging.LogRecord) -> str:
        """Return the line, without its newline."""
        line: dict[str, object] = {
            "time": timestamp(record.created),
            "level": record.levelname.lower(),
            "logger": record.name,
            "message": record.getMessage(),
        }
        if trace_id := trace.trace_id():
            line["trace_id"] = trace_id
        line.update(_bound.get())
        extra = {key: value for key, value in vars(record).items() if key not in _STANDARD}
        line.update(extra)
        if record.exc_info:
            line["error"] = self.formatException(record.exc_info)
        return json.dumps({key: _plain(key, value) for key, value in line.items()}, default=str)


def _plain(key: str, value: object) -> object:
    if any(word in key.lower() for word in _SECRET_WORDS):
        return "[hidden]"
    if isinstance(value, str) and len(value) > MAX_VALUE_CHARS:
        return value[:MAX_VALUE_CHARS] + "[cut]"
    return value


def setup(level: int = logging.INFO, stream: IO[str] | None = None) -> None:
    """Write every record from ``level`` up as JSON to ``stream`` (stderr), and nowhere else."""
    handler = logging.StreamHandler(stream or sys.stderr)
    handler.setFormatter(JsonFormatter())
    logging.basicConfig(level=level, handlers=[handler], force=True)
    # A logger that fails to write says so on stderr, which is the same place.
    logging.raiseExceptions = False
    for chatty in ("httpx2", "httpcore2", "grpc", "asyncio"):
        logging.getLogger(chatty).setLevel(max(level, logging.WARNING))
