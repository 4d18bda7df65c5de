from __future__ import annotations

import asyncio
import io
import json
import logging
from typing import TYPE_CHECKING

import pytest

from noderuntime.telemetry import log

if TYPE_CHECKING:
    from collections.abc import Generator


@pytest.fixture
def stream() -> Generator[io.StringIO]:
    root = logging.getLogger()
    before = (root.level, root.handlers[:])
    root.handlers[:] = []
    written = io.StringIO()
    log.setup(stream=written)
    yield written
    root.handlers[:] = before[1]
    root.setLevel(before[0])
    logging.raiseExceptions = True


def lines(stream: io.StringIO) -> list[dict[str, object]]:
    return [json.loads(line) for line in stream.getvalue().splitlines()]


def test_a_line_holds_the_bound_fields_and_its_own(stream: io.StringIO) -> None:
    with log.fields(rpc="RunPodSandbox"), log.fields(pod="web"):
        logging.getLogger("part").info("sandbox runs", extra={"seconds": 0.5})
    logging.getLogger("part").info("idle")
    first, second = lines(stream)
    assert first["message"] == "sandbox runs"
    assert (first["rpc"], first["pod"], first["seconds"]) == ("RunPodSandbox", "web", 0.5)
    assert first["level"] == "info"
    assert str(first["time"]).endswith("Z")
    assert set(second) == {"time", "level", "logger", "message"}


async def test_fields_are_of_their_task_when_two_run_at_once(stream: io.StringIO) -> None:
    async def call(name: str) -> None:
        with log.fields(pod=name):
            await asyncio.sleep(0)
            logging.getLogger("part").info("done", extra={"mine": name})

    async with asyncio.TaskGroup() as group:
        for name in ("a", "b"):
            group.create_task(call(name))
    assert all(line["pod"] == line["mine"] for line in lines(stream))


@pytest.mark.parametrize("key", ["password", "identity_token", "Authorization", "pull_secret"])
def test_a_secret_is_hidden_when_a_field_is_named_so(stream: io.StringIO, key: str) -> None:
    logging.getLogger("part").info("pulled", extra={key: "hunter2"})
    assert "hunter2" not in stream.getvalue()


def test_a_line_stays_one_line_when_values_hold_newlines(stream: io.StringIO) -> None:
    logging.getLogger("part").info("bad\nmessage", extra={"value": "x\n" * 3, "object": object()})
    assert len(lines(stream)) == 1


def test_a_long_value_is_cut(stream: io.StringIO) -> None:
    logging.getLogger("part").info("long", extra={"value": "x" * 100_000})
    assert len(stream.getvalue()) < 10_000


def test_an_exception_is_a_field(stream: io.StringIO) -> None:
    try:
        int("broken")
    except ValueError:
        logging.getLogger("part").exception("call failed")
    assert "ValueError: invalid literal" in str(lines(stream)[0]["error"])
