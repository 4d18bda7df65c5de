"""Sandboxes: one for each Pod and attempt, stopped whole, removed whole."""

from __future__ import annotations

import asyncio
from pathlib import Path

import pytest

from noderuntime.api.config import HandlerConfig
from noderuntime.engine import network
from noderuntime.engine.engine import Engine
from noderuntime.engine.sandbox_files import resolv_conf
from noderuntime.engine.state import SandboxState
from noderuntime.errors import (
    FailedPreconditionError,
    InvalidArgumentError,
    NetworkError,
    NotFoundError,
)
from noderuntime.network.ports import Attachment
from noderuntime.policy.model import Dns, NamespaceMode, Namespaces, PodIdentity
from tests.fakes.engine import FakeNetwork, World, container_config, new_engine, sandbox_config


async def test_a_sandbox_is_ready_with_its_files_when_it_was_run(
    engine: Engine, world: World
) -> None:
    dns = Dns(servers=("10.96.0.10",), searches=("shop.svc",), options=("ndots:5",))
    sandbox_id = await engine.run_sandbox(sandbox_config(dns=dns), "")
    record = engine.sandbox(sandbox_id[:12])
    assert (record.state, record.addresses) == (SandboxState.READY, ("10.0.0.7",))
    folder = world.root / "run" / "sandboxes" / sandbox_id
    text = "nameserver 10.96.0.10\nsearch shop.svc\noptions ndots:5\n"
    assert (folder / "resolv.conf").read_text() == text
    assert (folder / "hostname").read_text() == "web\n"
    assert {Path(pin).name for pin in world.pins} == {"net", "ipc", "uts"}
    assert world.hostnames == ["web"]


def test_resolv_conf_is_the_nodes_own_when_the_pod_says_nothing(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    own = tmp_path / "resolv.conf"
    own.write_text("nameserver 192.0.2.53\n")
    monkeypatch.setattr("noderuntime.engine.sandbox_files.HOST_RESOLV_CONF", own)
    assert resolv_conf(Dns()) == "nameserver 192.0.2.53\n"


async def test_a_pod_with_the_nodes_namespaces_gets_none_of_its_own(
    engine: Engine, world: World
) -> None:
    namespaces = Namespaces(network=NamespaceMode.NODE, ipc=NamespaceMode.NODE)
    sandbox_id = await engine.run_sandbox(sandbox_config(namespaces=namespaces, hostname=""), "")
    assert (world.pins, world.attachments, world.mounts) == (set(), set(), set())
    assert engine.sandbox(sandbox_id).addresses == ()
    await engine.stop_sandbox(sandbox_id)
    assert "network.detach" not in world.calls


async def test_a_handlers_own_network_has_its_pods_until_they_are_gone(world: World) -> None:
    own = Path("/etc/cni/lab.d")
    handlers = {"crun": HandlerConfig(), "lab": HandlerConfig(cni_conf_dir=own)}
    engine = new_engine(world, handlers=handlers)
    await engine.recover()
    sandbox_id = await engine.run_sandbox(sandbox_config(), "lab")
    await engine.run_sandbox(sandbox_config(attempt=1), "crun")
    await engine.close()
    again = new_engine(world)  # where the handler has no network of its own any more
    await again.recover()
    await again.stop_sandbox(sandbox_id)
    assert world.networks == [own, None, own]


async def test_the_same_pod_and_attempt_is_one_sandbox_when_it_is_asked_for_again(
    engine: Engine, world: World
) -> None:
    config = sandbox_config()
    ids = await asyncio.gather(*(engine.run_sandbox(config, "") for _ in range(5)))
    assert {*ids, await engine.run_sandbox(config, "")} == {ids[0]}
    assert world.calls.count("namespaces.create") == 1
    assert await engine.run_sandbox(sandbox_config(attempt=1), "") != ids[0]


async def test_the_same_pod_is_refused_when_it_comes_with_another_handler(engine: Engine) -> None:
    await engine.run_sandbox(sandbox_config(), "")
    with pytest.raises(FailedPreconditionError, match='before it is run under "crun"'):
        await engine.run_sandbox(sandbox_config(), "crun")


async def test_the_same_attempt_is_refused_when_its_sandbox_was_stopped(engine: Engine) -> None:
    sandbox_id = await engine.run_sandbox(sandbox_config(), "")
    await engine.stop_sandbox(sandbox_id)
    with pytest.raises(FailedPreconditionError, match="was stopped; remove it first"):
        await engine.run_sandbox(sandbox_config(), "")
    await engine.remove_sandbox(sandbox_id)
    assert await engine.run_sandbox(sandbox_config(), "") != sandbox_id


@pytest.mark.parametrize(
    "pod",
    [
        PodIdentity(name="", namespace="shop", uid="u"),
        PodIdentity(name="web", namespace="", uid="u"),
        PodIdentity(name="web", namespace="shop", uid=""),
    ],
)
async def test_a_pod_without_an_identity_is_refused(engine: Engine, pod: PodIdentity) -> None:
    with pytest.raises(InvalidArgumentError, match=r"config\.metadata"):
        await engine.run_sandbox(sandbox_config(pod=pod), "")


@pytest.mark.parametrize(
    ("namespaces", "words"),
    [
        (Namespaces(pid=NamespaceMode.TARGET), r"namespace_options\.pid: TARGET"),
        (Namespaces(network=NamespaceMode.CONTAINER), r"namespace_options\.network: CONTAINER"),
        (Namespaces(ipc=NamespaceMode.TARGET), r"namespace_options\.ipc: TARGET"),
    ],
)
async def test_a_namespace_mode_that_is_not_served_is_refused_by_its_name(
    engine: Engine, world: World, namespaces: Namespaces, words: str
) -> None:
    with pytest.raises(InvalidArgumentError, match=words):
        await engine.run_sandbox(sandbox_config(namespaces=namespaces), "")
    assert world.census()["files"] == []


async def test_a_sandbox_is_not_run_when_its_handler_is_not_served(
    engine: Engine, world: World
) -> None:
    before = world.census()
    with pytest.raises(FailedPreconditionError, match='handler "restricted" is not served'):
        await engine.run_sandbox(sandbox_config(), "restricted")
    assert world.census() == before


async def test_stopping_ends_the_containers_and_releases_the_network_once(
    engine: Engine, world: World
) -> None:
    sandbox_id = await engine.run_sandbox(sandbox_config(), "")
    running = await engine.create_container(sandbox_id, container_config())
    await engine.start_container(running)
    world.calls.clear()
    await engine.stop_sandbox(sandbox_id)
    assert engine.sandbox(sandbox_id).state is SandboxState.NOT_READY
    assert engine.container(running).exit_code == 137
    assert (world.pins, world.attachments) == (set(), set())
    assert [call for call in world.calls if "kill" in call] == ["runtime.kill SIGKILL"]
    await engine.stop_sandbox(sandbox_id)
    await engine.remove_sandbox(sandbox_id)
    assert world.calls.count("network.detach") == 1
    assert not engine.containers()
    assert not engine.sandboxes()


async def test_stopping_or_removing_what_is_unknown_is_success(engine: Engine) -> None:
    await engine.stop_sandbox("0" * 64)
    await engine.remove_sandbox("0" * 64)
    await engine.stop_container("0" * 64, 1.0)
    await engine.remove_container("0" * 64)
    with pytest.raises(NotFoundError):
        engine.sandbox("0" * 64)
    with pytest.raises(NotFoundError):
        engine.container("0" * 64)


async def test_a_sandbox_stops_although_its_network_does_not_let_go_which_is_tried_again(
    world: World, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(network, "PAUSES_S", (0.0, 0.0))
    monkeypatch.setattr(network, "TRY_AGAIN_S", 0.005)
    engine = new_engine(world)
    await engine.recover()
    running = asyncio.Task(engine.run())
    sandbox_id = await engine.run_sandbox(sandbox_config(), "")
    world.failing["network.detach"] = NetworkError("no chain by that name")

    await engine.stop_sandbox(sandbox_id)

    assert engine.sandbox(sandbox_id).state is SandboxState.NOT_READY
    assert world.calls.count("network.detach") >= 3
    assert any("no chain" in str(record.__dict__.get("error")) for record in caplog.records)
    await engine.remove_sandbox(sandbox_id)
    assert world.attachments == {sandbox_id}
    world.failing.clear()
    async with asyncio.timeout(2):
        while world.attachments:
            await asyncio.sleep(0.002)
    running.cancel()


async def test_a_plugin_that_fails_once_is_asked_again_at_once(
    engine: Engine, world: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(network, "PAUSES_S", (0.0, 0.0))
    sandbox_id = await engine.run_sandbox(sandbox_config(), "")
    failing = iter([NetworkError("the table is locked")])
    detach = FakeNetwork.detach

    async def once(self: FakeNetwork, attachment: Attachment) -> None:
        for error in failing:
            raise error
        await detach(self, attachment)

    monkeypatch.setattr(FakeNetwork, "detach", once)
    await engine.stop_sandbox(sandbox_id)
    assert not world.attachments


async def test_an_attachment_of_no_sandbox_goes_at_the_next_start(world: World) -> None:
    first = new_engine(world)
    await first.recover()
    kept = await first.run_sandbox(sandbox_config(), "")
    await first.close()
    world.attachments.add("f" * 64)
    second = new_engine(world)
    await second.recover()
    assert world.attachments == {kept}
    await second.close()


async def test_nothing_is_begun_in_a_sandbox_when_it_was_stopped(engine: Engine) -> None:
    sandbox_id = await engine.run_sandbox(sandbox_config(), "")
    created = await engine.create_container(sandbox_id, container_config())
    await engine.stop_sandbox(sandbox_id)
    with pytest.raises(FailedPreconditionError, match="is not ready"):
        await engine.start_container(created)
    with pytest.raises(FailedPreconditionError, match="is not ready"):
        await engine.create_container(sandbox_id, container_config(attempt=1))
    with pytest.raises(FailedPreconditionError, match="is not ready"):
        await engine.port_forward(sandbox_id, 80)


async def test_a_container_in_the_making_is_waited_for_when_its_sandbox_is_removed(
    engine: Engine, world: World
) -> None:
    empty = world.census()
    sandbox_id = await engine.run_sandbox(sandbox_config(), "")
    making = asyncio.Task(engine.create_container(sandbox_id, container_config()))
    await asyncio.sleep(0.002)
    await engine.remove_sandbox(sandbox_id)
    await asyncio.wait([making])
    assert making.exception() is None or isinstance(
        making.exception(), (FailedPreconditionError, NotFoundError)
    )
    assert world.census() == empty


async def test_many_pods_come_and_go_at_once(engine: Engine, world: World) -> None:
    empty = world.census()

    async def live(number: int) -> None:
        pod = PodIdentity(name=f"web-{number}", namespace="shop", uid=f"u-{number}")
        sandbox_id = await engine.run_sandbox(sandbox_config(pod=pod), "")
        container_id = await engine.create_container(sandbox_id, container_config())
        await engine.start_container(container_id)
        await engine.stop_sandbox(sandbox_id)
        await engine.remove_sandbox(sandbox_id)

    await asyncio.gather(*(live(number) for number in range(10)))
    assert world.census() == empty


async def test_metrics_are_of_ready_pods_and_their_running_containers(
    engine: Engine, world: World
) -> None:
    sandbox_id = await engine.run_sandbox(sandbox_config(cgroup_parent="/kubepods/p"), "")
    running = await engine.create_container(sandbox_id, container_config())
    await engine.create_container(sandbox_id, container_config(attempt=1))
    await engine.start_container(running)
    world.cgroups.add(engine.container(running).cgroup_path)
    stopped = await engine.run_sandbox(sandbox_config(attempt=1), "")
    await engine.stop_sandbox(stopped)
    (pod,) = [each async for each in engine.pod_metrics()]
    assert pod.record.id == sandbox_id
    assert pod.cgroup is not None
    assert pod.cgroup.id == "/kubepods/p"
    assert [each.record.id for each in pod.containers] == [running]
