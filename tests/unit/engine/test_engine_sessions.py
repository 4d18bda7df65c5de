"""Exec, attach and port-forward at the gate: what they get, and what the decision log says of them."""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING, Any

import pytest

from noderuntime.errors import DeniedError
from noderuntime.policy.model import ContainerSecurity, NamespaceMode, Namespaces
from noderuntime.telemetry import metrics
from tests.fakes.engine import PROC_MOUNT_DEFAULT, World, container_config, sandbox_config
from tests.unit.engine.test_engine_decisions import POD, engine, told
from tests.unit.engine.test_engine_gate import serve

if TYPE_CHECKING:
    from noderuntime.engine.engine import Engine

__all__ = ["engine"]

WIDE: dict[str, Any] = {
    "noNewPrivileges": "Optional",
    "capabilities": {"default": ["KILL", "NET_RAW"]},
    "privileged": "Allow",
    "hostNamespaces": ["Network"],
}
TIGHT: dict[str, Any] = {"capabilities": {"default": ["KILL"]}}
ARGV = ("/bin/sh",)


async def live(
    engine: Engine,
    security: ContainerSecurity = PROC_MOUNT_DEFAULT,
    *,
    handler: str = "restricted",
    namespaces: Namespaces | None = None,
) -> str:
    sandbox_id = await engine.run_sandbox(
        sandbox_config(
            pod=POD, privileged=security.privileged, namespaces=namespaces or Namespaces()
        ),
        handler,
    )
    container_id = await engine.create_container(sandbox_id, container_config(security=security))
    await engine.start_container(container_id)
    return container_id


async def every_session(engine: Engine, container_id: str) -> None:
    await (await engine.exec(container_id, ARGV, tty=False, stdin=False)).close()
    await engine.exec_sync(container_id, ARGV, 1.0)
    await (await engine.attach(container_id)).close()
    await engine.admit_port_forward(engine.container(container_id).sandbox_id)


async def test_each_session_has_a_line(engine: Engine, world: World) -> None:
    serve(world, WIDE)
    container_id = await live(engine)
    await every_session(engine, container_id)
    lines = (await told(engine, world))[2:]
    found = [(line["verb"], line["verdict"], line.get("container", "")) for line in lines]
    name = container_config().name
    assert found == [
        ("Exec", "Allowed", name),
        ("ExecSync", "Allowed", name),
        ("Attach", "Allowed", name),
        ("PortForward", "Allowed", ""),
    ]
    record = engine.container(container_id)
    for line in lines:
        assert (line["namespace"], line["pod"], line["handler"]) == ("shop", "web-0", "restricted")
        assert (line["nodeRuntime"], line["profile"]) == ("r", "web")
        assert (line["revision"], "servedRevision" in line) == (record.revision, False)


async def test_sessions_of_the_nodes_own_handlers_are_no_decisions(
    engine: Engine, world: World
) -> None:
    await every_session(engine, await live(engine, handler="crun"))
    assert await told(engine, world) == []


async def test_an_exec_gets_what_both_revisions_give(engine: Engine, world: World) -> None:
    serve(world, WIDE)
    container_id = await live(engine, replace(PROC_MOUNT_DEFAULT, no_new_privs=False))
    before = engine.container(container_id).revision
    serve(world, TIGHT)
    await engine.exec_sync(container_id, ARGV, 1.0)
    process: Any = world.execs[0].process
    assert process["capabilities"]["bounding"] == ["CAP_KILL"]
    assert (process["noNewPrivileges"], process["args"]) == (True, ["/bin/sh"])
    line = (await told(engine, world))[-1]
    assert (line["verb"], line["verdict"], line["revision"]) == ("ExecSync", "Allowed", before)
    assert line["servedRevision"] not in ("", before)
    assert line["changes"] == [
        "capabilities CAP_NET_RAW are taken away, as the profile gives less now",
        "noNewPrivileges is set, as it is Required now",
    ]


async def test_a_probe_is_counted_always_and_told_when_something_is_new(
    engine: Engine, world: World
) -> None:
    def count() -> float:
        labels = {"verdict": "Allowed", "profile": "web", "section": ""}
        name = "noderuntime_policy_decisions_total"
        return metrics.REGISTRY.get_sample_value(name, labels) or 0.0

    serve(world, WIDE)
    container_id = await live(engine)
    before = count()
    for _ in range(3):
        await engine.exec_sync(container_id, ARGV, 1.0)
    serve(world, TIGHT)
    for _ in range(3):
        await engine.exec_sync(container_id, ARGV, 1.0)
    assert count() == before + 6
    lines = [each for each in await told(engine, world) if each["verb"] == "ExecSync"]
    assert ["changes" in each for each in lines] == [False, True]


async def test_a_privileged_container_gets_no_session_and_its_probes_go_on(
    engine: Engine, world: World
) -> None:
    serve(world, WIDE)
    container_id = await live(engine, ContainerSecurity(privileged=True))
    serve(world, TIGHT)
    for session in (
        engine.exec(container_id, ARGV, tty=False, stdin=False),
        engine.attach(container_id),
    ):
        with pytest.raises(DeniedError, match=r"privileged is Deny; .*have the Pod made anew"):
            await session
    await engine.exec_sync(container_id, ARGV, 1.0)
    process: Any = world.execs[0].process
    assert process["capabilities"]["bounding"] == ["CAP_KILL"]
    lines = (await told(engine, world))[2:]
    assert [(line["verb"], line["verdict"]) for line in lines] == [
        ("Exec", "Denied"),
        ("Attach", "Denied"),
        ("ExecSync", "Audited"),
    ]
    assert [line["denials"][0]["section"] for line in lines[:2]] == ["privileged"] * 2
    assert lines[2]["findings"][0]["section"] == "privileged"


async def test_a_port_of_the_node_is_not_forwarded_when_the_profile_has_no_host_network_now(
    engine: Engine, world: World
) -> None:
    serve(world, WIDE)
    on_node = Namespaces(network=NamespaceMode.NODE)
    container_id = await live(engine, namespaces=on_node)
    sandbox_id = engine.container(container_id).sandbox_id
    assert (await engine.admit_port_forward(sandbox_id)).id == sandbox_id
    serve(world, TIGHT)
    with pytest.raises(DeniedError, match="hostNetwork"):
        await engine.admit_port_forward(sandbox_id)


@pytest.mark.parametrize("text", ["{", None], ids=["is damaged", "is gone"])
async def test_what_runs_keeps_its_own_bounds_when_the_revision(
    engine: Engine, world: World, text: str | None
) -> None:
    serve(world, WIDE)
    container_id = await live(engine)
    revision = world.root / "etc" / "current"
    if text is None:
        revision.unlink()
    else:
        revision.write_text(text)
    await every_session(engine, container_id)
    process: Any = world.execs[0].process
    assert process["capabilities"]["bounding"] == ["CAP_KILL", "CAP_NET_RAW"]
    lines = (await told(engine, world))[2:]
    assert {(line["verdict"], line["profile"], line["servedRevision"]) for line in lines} == {
        ("Allowed", "web", "")
    }
    assert len(lines) == 4


async def test_what_an_ended_exception_gave_is_taken_from_an_exec(
    engine: Engine, world: World
) -> None:
    exception = {
        "namespace": "shop",
        "sections": ["capabilities"],
        "expires": "2999-01-01T00:00:00Z",
    }
    serve(world, {**TIGHT, "exceptions": [exception]})
    asked = replace(PROC_MOUNT_DEFAULT, capabilities_add=("NET_RAW",))
    container_id = await live(engine, asked)
    await engine.exec_sync(container_id, ARGV, 1.0)
    serve(world, {**TIGHT, "exceptions": [{**exception, "expires": "2001-01-01T00:00:00Z"}]})
    await engine.exec_sync(container_id, ARGV, 1.0)
    held: Any = [each.process["capabilities"] for each in world.execs]
    assert [each["bounding"] for each in held] == [["CAP_KILL", "CAP_NET_RAW"], ["CAP_KILL"]]
    await engine.close()
