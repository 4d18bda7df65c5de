"""A new process on an old node: what ended, what was lost, what was torn, what was cut off."""

from __future__ import annotations

import asyncio
import logging
import shutil

import pytest

from noderuntime.engine.engine import Engine
from noderuntime.engine.state import ContainerRecord, ContainerState, SandboxState
from noderuntime.engine.store import COPY
from noderuntime.errors import HostError, NetworkError
from noderuntime.host.ports import Exit
from tests.fakes.engine import World, container_config, new_engine, sandbox_config


async def with_container(world: World, *, start: bool = True) -> tuple[str, str]:
    """Run a Pod with one container, then let the engine go, as a kill does between two calls."""
    engine = new_engine(world)
    await engine.recover()
    sandbox_id = await engine.run_sandbox(sandbox_config(), "")
    container_id = await engine.create_container(sandbox_id, container_config())
    if start:
        await engine.start_container(container_id)
    await engine.close()
    return sandbox_id, container_id


async def restarted(world: World, boot_id: str = "boot-1") -> Engine:
    engine = new_engine(world, boot_id=boot_id)
    await engine.recover()
    return engine


async def recovered(world: World, container_id: str, boot_id: str = "boot-1") -> ContainerRecord:
    engine = await restarted(world, boot_id)
    await engine.close()
    return engine.container(container_id)


async def test_a_running_container_runs_on_when_only_the_runtime_ended(world: World) -> None:
    sandbox_id, container_id = await with_container(world)
    before = world.census()
    engine = await restarted(world)
    assert world.census() == before
    assert engine.container(container_id).state is ContainerState.RUNNING
    assert engine.sandbox(sandbox_id).state is SandboxState.READY
    await engine.close()


async def test_execs_that_the_last_run_left_are_ended_at_the_start(world: World) -> None:
    await with_container(world)
    assert "exec.sweep" not in world.calls
    await (await restarted(world)).close()
    assert world.calls.count("exec.sweep") == 1


async def test_an_end_while_nobody_watched_is_found(world: World) -> None:
    _, container_id = await with_container(world)
    world.end(container_id, 3)
    record = await recovered(world, container_id)
    assert (record.exit_code, record.reason, record.finished_at_ns) == (3, "Error", 42)
    assert world.cgroups == set()


async def test_an_end_before_the_watch_began_is_found(world: World) -> None:
    _, container_id = await with_container(world)
    engine = await restarted(world)
    world.end(container_id, 0)
    running = asyncio.Task(engine.run())
    async with asyncio.timeout(2):
        while engine.container(container_id).state is not ContainerState.EXITED:
            await asyncio.sleep(0.002)
    running.cancel()
    await asyncio.wait([running])


async def test_a_container_of_which_nothing_is_left_is_exited_with_255(world: World) -> None:
    _, container_id = await with_container(world)
    world.processes.clear()
    world.monitors.clear()
    record = await recovered(world, container_id)
    assert (record.state, record.exit_code, record.reason) == (
        ContainerState.EXITED,
        255,
        "Unknown",
    )
    assert record.finished_at_ns > 0


async def test_a_container_runs_on_when_only_its_monitor_is_gone(world: World) -> None:
    _, container_id = await with_container(world)
    world.monitors.clear()
    record = await recovered(world, container_id)
    assert (record.state, record.monitor_lost) == (ContainerState.RUNNING, True)
    assert "nothing that it writes is kept" in record.message
    record = await recovered(world, container_id)
    assert world.calls.count("monitor.end_log") == 1  # said once, not at every look


async def test_the_kernel_is_asked_for_the_end_of_a_container_without_a_monitor(
    world: World,
) -> None:
    _, container_id = await with_container(world)
    world.monitors.clear()
    world.processes.clear()
    world.lost_exits[container_id] = Exit(code=3, finished_at_ns=42)
    record = await recovered(world, container_id)
    assert (record.exit_code, record.reason, record.finished_at_ns) == (3, "Error", 42)
    assert "exit code is the kernel's" in record.message


async def test_a_created_container_can_be_started_after_a_restart(world: World) -> None:
    _, container_id = await with_container(world, start=False)
    engine = await restarted(world)
    await engine.start_container(container_id)
    assert engine.container(container_id).state is ContainerState.RUNNING
    await engine.close()


def reboot(world: World, *, tmpfs: bool) -> None:
    world.pins.clear()
    world.mounts.clear()
    world.processes.clear()
    world.monitors.clear()
    world.cgroups.clear()
    if tmpfs:
        shutil.rmtree(world.root / "run")
        world.exits.clear()


@pytest.mark.parametrize("start", [True, False])
@pytest.mark.parametrize("tmpfs", [True, False])
async def test_sandboxes_are_not_ready_and_containers_exited_when_the_node_was_rebooted(
    world: World, tmpfs: bool, start: bool
) -> None:
    sandbox_id, container_id = await with_container(world, start=start)
    reboot(world, tmpfs=tmpfs)
    engine = await restarted(world, "boot-2")
    assert engine.sandbox(sandbox_id).state is SandboxState.NOT_READY
    record = engine.container(container_id)
    assert (record.state, record.exit_code) == (ContainerState.EXITED, 255)
    assert world.attachments == {sandbox_id}
    await engine.stop_sandbox(sandbox_id)
    assert world.attachments == set()  # the address is free although the boot took the network
    await engine.remove_sandbox(sandbox_id)
    assert world.census()["files"] == []
    await engine.close()


async def test_an_end_just_before_the_reboot_is_still_known(world: World) -> None:
    _, container_id = await with_container(world)
    reboot(world, tmpfs=False)
    world.exits[container_id] = Exit(code=7, finished_at_ns=5)
    record = await recovered(world, container_id, "boot-2")
    assert (record.exit_code, record.reason) == (7, "Error")


@pytest.mark.parametrize("kind", ["sandboxes", "containers"])
async def test_a_corrupted_record_is_set_aside_and_its_leftovers_are_removed(
    world: World, kind: str
) -> None:
    sandbox_id, container_id = await with_container(world)
    name = sandbox_id if kind == "sandboxes" else container_id
    file = world.root / "state" / kind / f"{name}.json"
    file.write_text("{")
    (world.root / "run" / kind / name / COPY).write_text("{")
    engine = await restarted(world)
    assert file.with_name(file.name + ".corrupt").exists()
    assert (world.processes, world.monitors, world.snapshots) == ({}, set(), set())
    assert world.cgroups == set()
    assert engine.containers() == ()
    if kind == "sandboxes":
        assert (world.pins, world.mounts, world.attachments) == (set(), set(), set())
        assert engine.sandboxes() == ()
    else:
        assert engine.sandbox(sandbox_id).state is SandboxState.READY
    new = await engine.run_sandbox(sandbox_config(), "")
    await engine.create_container(new, container_config())
    await engine.close()


@pytest.mark.parametrize("kind", ["sandboxes", "containers"])
async def test_a_corrupted_record_of_what_runs_is_restored_from_its_copy(
    world: World, kind: str
) -> None:
    sandbox_id, container_id = await with_container(world)
    name = sandbox_id if kind == "sandboxes" else container_id
    before = (dict(world.processes), set(world.mounts), set(world.snapshots))
    file = world.root / "state" / kind / f"{name}.json"
    held = file.read_bytes()
    file.write_text("{")
    engine = await restarted(world)
    assert engine.container(container_id).state is ContainerState.RUNNING
    assert engine.sandbox(sandbox_id).state is SandboxState.READY
    assert file.read_bytes() == held
    assert file.with_name(file.name + ".corrupt").exists()
    assert (world.processes, world.mounts, world.snapshots) == before
    await engine.close()


async def test_what_belongs_to_no_record_is_removed(world: World) -> None:
    run = world.root / "run"
    (run / "containers" / ("a" * 64)).mkdir(parents=True)
    (run / "sandboxes" / ("b" * 64) / "ns").mkdir(parents=True)
    world.snapshots.add("c" * 64)
    world.pins.add(str(run / "sandboxes" / ("b" * 64) / "ns" / "net"))
    world.mounts.add(str(run / "containers" / ("a" * 64) / "rootfs"))
    world.processes["a" * 64] = "running"
    engine = await restarted(world)
    census = world.census()
    assert not any(census.values()), census
    await engine.close()


@pytest.mark.parametrize(
    "failing",
    ["runtime.delete", "monitor.remove", "network.detach", "namespaces.remove", "images.discard"],
)
async def test_the_runtime_starts_when_a_cleanup_fails_and_tries_it_again_next_time(
    world: World, failing: str, caplog: pytest.LogCaptureFixture
) -> None:
    sandbox_id, container_id = await with_container(world)
    for kind, name in (("sandboxes", sandbox_id), ("containers", container_id)):
        (world.root / "state" / kind / f"{name}.json").write_text("torn")
        (world.root / "run" / kind / name / COPY).unlink()
    world.failing[failing] = HostError("device or resource busy")
    with caplog.at_level(logging.WARNING):
        engine = await restarted(world)
    assert any("busy" in str(record.__dict__.get("errors")) for record in caplog.records)
    assert engine.sandboxes() == ()
    await engine.close()


async def test_an_undo_that_failed_is_tried_again_by_the_next_start(world: World) -> None:
    engine = new_engine(world)
    await engine.recover()
    empty = world.census()
    world.failing["network.attach"] = NetworkError("no address is left")
    world.failing["namespaces.remove"] = HostError("device or resource busy")
    with pytest.raises(NetworkError, match="no address") as caught:
        await engine.run_sandbox(sandbox_config(), "")
    assert any("busy" in note for note in caught.value.__notes__)
    assert world.pins
    await engine.close()
    again = await restarted(world)  # still busy: it starts all the same
    assert again.sandboxes() == ()
    await again.close()
    world.failing.clear()
    last = await restarted(world)
    assert world.census() == empty
    await last.close()


async def test_an_undo_that_failed_is_tried_again_while_the_runtime_runs(
    world: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("noderuntime.engine.recovery.TRY_AGAIN_S", 0.005)
    engine = new_engine(world)
    await engine.recover()
    empty = world.census()
    running = asyncio.Task(engine.run())
    world.failing["images.prepare"] = HostError("no space left on device")
    world.failing["images.discard"] = HostError("input/output error")
    sandbox_id = await engine.run_sandbox(sandbox_config(), "")
    with pytest.raises(HostError, match="no space"):
        await engine.create_container(sandbox_id, container_config())

    tried = world.calls.count("images.discard")
    while world.calls.count("images.discard") < tried + 2:
        await asyncio.sleep(0.002)
    world.failing.clear()

    await engine.remove_sandbox(sandbox_id)
    async with asyncio.timeout(2):
        while world.census() != empty:
            await asyncio.sleep(0.002)
    running.cancel()
    await asyncio.wait([running])


async def test_a_remove_that_failed_is_done_by_the_next_start(world: World) -> None:
    sandbox_id, container_id = await with_container(world)
    engine = await restarted(world)
    world.failing["images.discard"] = HostError("input/output error")
    with pytest.raises(HostError):
        await engine.remove_sandbox(sandbox_id)
    assert engine.container(container_id)
    await engine.close()
    world.failing.clear()
    again = await restarted(world)
    assert not again.sandboxes()
    assert not again.containers()
    assert world.census()["files"] == []
    await again.close()


async def cut_off_in_the_grace(world: World, grace_s: float) -> tuple[Engine, str]:
    """Stop a container that heeds only SIGKILL, on an engine that freezes while it waits."""
    world.ignored_signals.add(2)
    _, container_id = await with_container(world)
    waiting = asyncio.Event()

    async def freeze(verb: str, step: str) -> None:
        if f"{verb}/{step}" == "stop_container/wait:before":
            waiting.set()
            await asyncio.Event().wait()

    frozen = new_engine(world, faults=freeze)
    await frozen.recover()
    stop = asyncio.Task(frozen.stop_container(container_id, grace_s))
    await waiting.wait()
    stop.cancel()
    await asyncio.wait([stop])
    return frozen, container_id


async def test_a_stop_goes_on_with_the_rest_of_its_grace_after_a_restart(world: World) -> None:
    frozen, container_id = await cut_off_in_the_grace(world, 3600.0)
    engine = await restarted(world)
    assert engine.container(container_id).state is ContainerState.RUNNING
    async with asyncio.timeout(5):
        await engine.stop_container(container_id, 0.0)  # hurries the stop that goes on
    assert engine.container(container_id).exit_code == 137
    await engine.close()
    await frozen.close(grace_s=0.0)


async def test_a_stop_ends_by_itself_after_a_restart(world: World) -> None:
    frozen, container_id = await cut_off_in_the_grace(world, 0.01)
    engine = await restarted(world)
    async with asyncio.timeout(5):
        while engine.container(container_id).state is ContainerState.RUNNING:
            await asyncio.sleep(0.002)
    assert engine.container(container_id).exit_code == 137
    await engine.close()
    await frozen.close(grace_s=0.0)


async def test_torn_files_of_ours_never_keep_the_runtime_from_starting(world: World) -> None:
    _, container_id = await with_container(world)
    intents = world.root / "state" / "intents"
    (intents / "run_sandbox-x.json").write_bytes(b"\0\1\2")
    (intents / "unknown-x.json").write_text('{"verb": "unknown"}')
    (world.root / "run" / "boot_id").write_bytes(b"")
    engine = await restarted(world)
    await engine.close()
    assert engine.container(container_id).state is ContainerState.RUNNING
    names = sorted(path.name for path in intents.iterdir())
    assert names == ["run_sandbox-x.json.corrupt", "unknown-x.json.corrupt"]
