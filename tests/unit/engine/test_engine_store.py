"""Records and intents on disk: found by ID, prefix and name; a torn one is set aside."""

from __future__ import annotations

import logging
from dataclasses import replace
from pathlib import Path

import pytest

from noderuntime.engine.disk import Disk
from noderuntime.engine.journal import Intent, Journal
from noderuntime.engine.state import SandboxId, SandboxRecord, SandboxState
from noderuntime.engine.store import Store
from noderuntime.errors import NotFoundError
from noderuntime.policy.model import Dns, PodIdentity, PortMapping, SandboxConfig


def record(digit: str, **changes: str) -> SandboxRecord:
    pod = PodIdentity(name=changes.get("name", digit), namespace="shop", uid="u")
    config = SandboxConfig(
        pod=pod,
        dns=Dns(servers=("10.96.0.10",)),
        port_mappings=(PortMapping(protocol="tcp", container_port=80, host_port=8080),),
        sysctls={"net.core.somaxconn": "10"},
    )
    return SandboxRecord(
        id=SandboxId(changes.get("id", digit * 64)),
        config=config,
        handler="",
        revision="",
        oci_runtime="/usr/bin/crun",
        state=SandboxState.READY,
        created_at_ns=1,
    )


async def loaded(tmp_path: Path) -> Store:
    store = Store(tmp_path, Disk())
    await store.sandboxes.load()
    return store


async def test_a_record_is_the_same_when_it_is_read_again(tmp_path: Path) -> None:
    store = await loaded(tmp_path)
    await store.sandboxes.put(record("a"))
    again = await loaded(tmp_path)
    assert again.sandboxes.all() == (record("a"),)
    assert again.sandboxes.named(record("a").config.pod) == record("a")


async def test_a_record_is_found_by_prefix_when_it_is_the_only_one(tmp_path: Path) -> None:
    store = await loaded(tmp_path)
    first = record("a", id="aa" + "0" * 62)
    second = record("b", id="ab" + "0" * 62)
    for each in (first, second):
        await store.sandboxes.put(each)
    assert store.sandboxes.find("aa") == first
    assert store.sandboxes.find("ac") is None
    assert store.sandboxes.find("") is None
    with pytest.raises(NotFoundError, match="sandbox a is ambiguous"):
        store.sandboxes.find("a")
    with pytest.raises(NotFoundError, match="sandbox ac is not there"):
        store.sandboxes.require("ac")


async def test_a_name_is_free_again_when_its_record_is_dropped(tmp_path: Path) -> None:
    store = await loaded(tmp_path)
    await store.sandboxes.put(record("a"))
    await store.sandboxes.put(replace(record("a"), state=SandboxState.NOT_READY))
    assert len(store.sandboxes.all()) == 1
    await store.sandboxes.drop("a" * 64)
    await store.sandboxes.drop("a" * 64)
    assert store.sandboxes.named(record("a").config.pod) is None
    assert (await loaded(tmp_path)).sandboxes.all() == ()


@pytest.mark.parametrize(
    "content",
    [b"", b'{"id": "aaaa', b"[]", b'{"id": 1}', b"\xff\xfe", b'{"id":"' + b"b" * 64 + b'"}'],
)
async def test_a_record_is_set_aside_when_it_cannot_be_read(
    tmp_path: Path, content: bytes, caplog: pytest.LogCaptureFixture
) -> None:
    store = await loaded(tmp_path)
    await store.sandboxes.put(record("c"))
    broken = tmp_path / "sandboxes" / ("a" * 64 + ".json")
    broken.write_bytes(content)
    again = Store(tmp_path, Disk())
    with caplog.at_level(logging.ERROR):
        assert await again.sandboxes.load() == ("a" * 64,)
    assert again.sandboxes.all() == (record("c"),)
    assert broken.with_name(broken.name + ".corrupt").read_bytes() == content
    assert not broken.exists()
    assert "set aside" in caplog.text


async def test_a_record_of_another_id_is_set_aside_when_it_was_copied(tmp_path: Path) -> None:
    store = await loaded(tmp_path)
    await store.sandboxes.put(record("a"))
    original = tmp_path / "sandboxes" / ("a" * 64 + ".json")
    original.rename(original.with_name("b" * 64 + ".json"))
    assert await Store(tmp_path, Disk()).sandboxes.load() == ("b" * 64,)


async def test_an_intent_is_there_until_it_is_ended(tmp_path: Path) -> None:
    journal = Journal(tmp_path, Disk())
    assert await journal.load() == ()
    intent = Intent(verb="run_sandbox", sandbox=record("a"))
    other = Intent(verb="stop_sandbox", sandbox=record("a"))
    await journal.begin(intent)
    await journal.begin(other)
    assert await Journal(tmp_path, Disk()).load() == (intent, other)
    await journal.end_others(intent)
    assert await Journal(tmp_path, Disk()).load() == (intent,)
    await journal.end(intent)
    assert await Journal(tmp_path, Disk()).load() == ()


async def test_what_a_kill_left_half_written_is_removed(tmp_path: Path) -> None:
    await loaded(tmp_path)
    torn = tmp_path / "sandboxes" / ("a" * 64 + ".json.tmp")
    torn.write_bytes(b'{"id"')
    assert (await loaded(tmp_path)).sandboxes.all() == ()
    assert not torn.exists()


async def test_an_intent_is_set_aside_when_it_cannot_be_read(tmp_path: Path) -> None:
    (tmp_path / "run_sandbox-x.json").write_bytes(b"{")
    assert await Journal(tmp_path, Disk()).load() == ()
    assert (tmp_path / "run_sandbox-x.json.corrupt").exists()
