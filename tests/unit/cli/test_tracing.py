from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING

import pytest

from noderuntime.api.noderuntime import Tracing
from noderuntime.api.revision import Revision, RevisionHandler, RevisionProfile, make_revision
from noderuntime.api.securityprofile import SecurityProfileSpec
from noderuntime.cli import tracing
from noderuntime.telemetry import trace

if TYPE_CHECKING:
    from pathlib import Path


def a_revision(**endpoints: str) -> Revision:
    profile = RevisionProfile(name="web", spec=SecurityProfileSpec())
    return make_revision(
        tuple(
            RevisionHandler(
                name=name,
                node_runtime=name,
                profile=profile,
                tracing=Tracing(endpoint=url, sampling_rate_per_million=7) if url else None,
            )
            for name, url in endpoints.items()
        )
    )


def test_the_first_handler_by_name_that_has_tracing_decides() -> None:
    settings = tracing.settings_of(a_revision(c="http://c:1", b="http://b:1", a=""))
    assert settings is not None
    assert settings.endpoint == "http://b:1"
    assert settings.sampling_rate_per_million == 7


@pytest.mark.parametrize("revision", [None, a_revision(), a_revision(a="")])
def test_no_handler_with_tracing_is_tracing_off(revision: Revision | None) -> None:
    assert tracing.settings_of(revision) is None


async def test_tracing_follows_what_is_served_and_not_what_is_in_the_file(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    configured: list[trace.TraceSettings | None] = []
    monkeypatch.setattr(trace, "configure", configured.append)
    monkeypatch.setattr(trace, "preload", lambda: None)
    monkeypatch.setattr(tracing, "LOOK_S", 0.002)
    first, second = a_revision(a="http://one:1"), a_revision(a="")
    file = tmp_path / "current"
    served = [""]

    async def settle(count: int) -> None:
        async with asyncio.timeout(2):
            while len(configured) < count:
                await asyncio.sleep(0.002)

    async with asyncio.TaskGroup() as group:
        following = group.create_task(tracing.follow(file, lambda: served[0]))
        file.write_text(first.model_dump_json(by_alias=True))
        await asyncio.sleep(0.02)
        assert configured == []  # not served yet
        served[0] = first.digest
        await settle(1)
        file.write_text(second.model_dump_json(by_alias=True))
        await asyncio.sleep(0.02)
        assert len(configured) == 1
        served[0] = second.digest
        await settle(2)
        served[0] = first.digest  # the file is behind: looked at again
        await asyncio.sleep(0.02)
        following.cancel()
    assert configured[0] is not None
    assert configured[0].endpoint == "http://one:1"
    assert configured[1] is None
    assert len(configured) == 2
