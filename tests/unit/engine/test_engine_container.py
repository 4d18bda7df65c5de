"""Containers: created once, started once, stopped always, with the reason of their end."""

from __future__ import annotations

import asyncio
import json
from dataclasses import replace
from pathlib import Path

import pytest

from noderuntime.api.revision import RevisionHandler, RevisionProfile, make_revision
from noderuntime.api.securityprofile import SecurityProfileSpec
from noderuntime.engine.engine import Engine
from noderuntime.engine.state import ContainerState
from noderuntime.errors import (
    DeadlineExceededError,
    DeniedError,
    FailedPreconditionError,
    HostError,
    ImageError,
    InvalidArgumentError,
    NotFoundError,
)
from noderuntime.policy.model import Device, Mount, PodIdentity, Resources
from tests.fakes.engine import IMAGE_ID, World, container_config, sandbox_config
from tests.unit.engine.containers_kit import created, ended, running


def serve(world: World, **changes: object) -> str:
    """Write a revision with the handler `restricted`; return its digest."""
    profile = RevisionProfile(name="web", spec=SecurityProfileSpec())
    handler = RevisionHandler(name="restricted", node_runtime="r", profile=profile)
    return world.publish(make_revision((handler.model_copy(update=changes),)))


async def test_a_container_goes_from_created_to_completed(engine: Engine, world: World) -> None:
    container_id = await created(engine, log_path="app/0.log")
    record = engine.container(container_id)
    assert record.state is ContainerState.CREATED
    assert record.image_id == IMAGE_ID
    assert engine.log_file(record) == Path("/nowhere/logs/app/0.log")
    await engine.start_container(container_id)
    record = engine.container(container_id)
    assert (record.state, record.pid) == (ContainerState.RUNNING, 4_000_000)
    assert record.started_at_ns >= record.created_at_ns > 0
    world.end(container_id, 0)
    record = await ended(engine, container_id)
    assert (record.exit_code, record.reason, record.finished_at_ns) == (0, "Completed", 42)
    assert world.cgroups == set()


@pytest.mark.parametrize(
    ("code", "oom", "reason"),
    [(0, False, "Completed"), (3, False, "Error"), (137, True, "OOMKilled")],
)
async def test_the_reason_says_how_a_container_ended(
    engine: Engine, world: World, code: int, oom: bool, reason: str
) -> None:
    container_id = await running(engine)
    world.end(container_id, code, oom=oom)
    record = await ended(engine, container_id)
    assert (record.exit_code, record.reason) == (code, reason)


async def test_the_bundle_has_the_sandboxes_files_and_namespaces(
    engine: Engine, world: World
) -> None:
    container_id = await created(engine)
    bundle = world.root / "run" / "containers" / container_id
    assert (bundle / "config.json").stat().st_mode & 0o777 == 0o600
    spec = json.loads((bundle / "config.json").read_text())
    sandbox = world.root / "run" / "sandboxes" / engine.container(container_id).sandbox_id
    paths = {n["type"]: n.get("path") for n in spec["linux"]["namespaces"]}
    assert {paths[kind] for kind in ("network", "ipc", "uts")} == {
        str(sandbox / "ns" / kind) for kind in ("net", "ipc", "uts")
    }
    sources = {mount["destination"]: mount["source"] for mount in spec["mounts"]}
    assert sources["/etc/resolv.conf"] == str(sandbox / "resolv.conf")
    assert sources["/etc/hostname"] == str(sandbox / "hostname")
    assert sources["/dev/shm"] == str(sandbox / "shm")
    assert spec["hostname"] == "web"
    assert "annotations" not in spec


async def test_the_same_name_and_attempt_is_one_container_when_it_is_asked_for_again(
    engine: Engine, world: World
) -> None:
    sandbox_id = await engine.run_sandbox(sandbox_config(), "")
    config = container_config()
    ids = await asyncio.gather(*(engine.create_container(sandbox_id, config) for _ in range(4)))
    assert len(set(ids)) == 1
    assert world.calls.count("images.prepare") == 1
    await engine.start_container(ids[0])
    assert await engine.create_container(sandbox_id, config) == ids[0]
    await engine.start_container(ids[0])
    assert world.calls.count("monitor.create") == 1
    await engine.stop_container(ids[0], 1.0)
    with pytest.raises(FailedPreconditionError, match="has exited; remove it first"):
        await engine.create_container(sandbox_id, config)
    with pytest.raises(FailedPreconditionError, match="only a created one can be started"):
        await engine.start_container(ids[0])


async def test_a_start_that_fails_is_seen_as_start_error_and_can_be_removed(
    engine: Engine, world: World
) -> None:
    container_id = await created(engine)
    world.failing["runtime.start"] = HostError("exec /app: no such file or directory")
    with pytest.raises(HostError, match="no such file"):
        await engine.start_container(container_id)
    record = engine.container(container_id)
    assert (record.state, record.exit_code, record.reason) == (
        ContainerState.EXITED,
        128,
        "StartError",
    )
    assert record.message == "exec /app: no such file or directory"
    assert (world.processes, world.monitors, world.cgroups) == ({}, set(), set())
    await engine.remove_container(container_id)


async def test_a_step_ends_with_an_error_when_it_takes_too_long(
    engine: Engine, world: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    from noderuntime.engine import container_create

    slow = tuple(replace(step, deadline_s=0.0) for step in container_create.CREATE_CONTAINER.steps)
    verb = replace(container_create.CREATE_CONTAINER, steps=slow)
    monkeypatch.setattr(container_create, "CREATE_CONTAINER", verb)
    with pytest.raises(DeadlineExceededError, match="create_container: step bundle took more"):
        await created(engine)
    assert world.snapshots == set()


async def test_a_running_container_is_ended_when_it_is_removed(
    engine: Engine, world: World
) -> None:
    container_id = await running(engine)
    await engine.remove_container(container_id)
    assert engine.containers() == ()
    assert (world.processes, world.snapshots, world.monitors) == ({}, set(), set())


async def test_a_mount_without_its_source_is_named_in_the_error(engine: Engine) -> None:
    mount = Mount(container_path="/data", host_path="/nowhere/data")
    with pytest.raises(InvalidArgumentError, match="mount at /data: host path /nowhere/data"):
        await created(engine, mounts=(mount,))
    with pytest.raises(InvalidArgumentError, match="mount at /image has neither"):
        await created(engine, mounts=(Mount(container_path="/image", host_path=""),))


async def test_a_mount_is_bound_from_the_path_that_was_judged(engine: Engine, world: World) -> None:
    (world.root / "real").mkdir()
    (world.root / "link").symlink_to(world.root / "real")
    mount = Mount(container_path="/data", host_path=str(world.root / "link"))
    container_id = await created(engine, mounts=(mount,))
    path = world.root / "run" / "containers" / container_id / "config.json"
    mounts = json.loads(path.read_text())["mounts"]
    source = next(m["source"] for m in mounts if m["destination"] == "/data")
    assert source == str(world.root / "real")


async def test_a_device_is_refused_when_it_is_none(engine: Engine, world: World) -> None:
    await created(
        engine, devices=(Device(container_path="/dev/x", host_path="/dev/null", permissions="r"),)
    )
    bad = Device(container_path="/dev/x", host_path="/etc", permissions="r")
    with pytest.raises(InvalidArgumentError, match="/etc is not a device of this node"):
        await created(engine, devices=(bad,), name="other")


@pytest.mark.parametrize("path", ["/abs.log", "../up.log", "a/../../b"])
async def test_a_log_path_is_refused_when_it_leaves_the_log_directory(
    engine: Engine, path: str
) -> None:
    with pytest.raises(InvalidArgumentError, match=r"config\.log_path"):
        await created(engine, log_path=path)


async def test_a_container_without_its_image_or_name_is_refused(engine: Engine) -> None:
    with pytest.raises(NotFoundError, match="image other:1 is not on this node; pull it first"):
        await created(engine, image="other:1")
    with pytest.raises(InvalidArgumentError, match="needs a name"):
        await created(engine, name="")
    with pytest.raises(FailedPreconditionError, match="without a log path"):
        engine.log_file(engine.container(await created(engine)))


async def test_an_exec_runs_under_the_containers_own_process_settings(
    engine: Engine, world: World
) -> None:
    container_id = await running(engine)
    result = await engine.exec_sync(container_id, ("id", "-u"), 1.0)
    assert result.stdout == b"['id', '-u']"
    with pytest.raises(InvalidArgumentError, match="cmd"):
        await engine.exec_sync(container_id, (), 1.0)
    await engine.reopen_log(container_id)
    await engine.stop_container(container_id, 1.0)
    with pytest.raises(FailedPreconditionError, match="is not running"):
        await engine.exec_sync(container_id, ("id",), 1.0)
    with pytest.raises(FailedPreconditionError, match="is not running"):
        await engine.exec(container_id, ("id",), tty=False, stdin=False)
    with pytest.raises(FailedPreconditionError, match="is not running"):
        await engine.attach(container_id)


async def test_an_update_of_resources_is_in_the_record(engine: Engine, world: World) -> None:
    container_id = await running(engine, resources=Resources(cpu_shares=10, oom_score_adj=5))
    await engine.update_resources(container_id, Resources(memory_limit_bytes=1 << 20))
    resources = engine.container(container_id).config.resources
    assert (resources.cpu_shares, resources.memory_limit_bytes, resources.oom_score_adj) == (
        10,
        1 << 20,
        5,
    )
    assert "runtime.update" in world.calls


async def test_stats_of_a_container_are_zero_when_it_has_ended(
    engine: Engine, world: World
) -> None:
    container_id = await running(engine)
    assert (await engine.container_stats(container_id)).cgroup.pids == 1
    await engine.stop_container(container_id, 1.0)
    stats = await engine.container_stats(container_id)
    assert (stats.cgroup.pids, stats.writable_layer.mountpoint) == (0, world.images.root)
    sandbox = await engine.sandbox_stats(engine.container(container_id).sandbox_id)
    assert (sandbox.cgroup.pids, sandbox.network) == (0, ())


async def test_images_are_pulled_and_used_only_from_what_the_handler_allows(
    engine: Engine, world: World
) -> None:
    serve(world, allowed_registries=("allowed.example.com",))
    await engine.pull_image("registry.example.com/app:1", None, handler="")
    with pytest.raises(DeniedError, match=r"registry\.example\.com/app:1"):
        await engine.pull_image("registry.example.com/app:1", None, handler="restricted")
    with pytest.raises(ImageError):
        await engine.pull_image("allowed.example.com/missing:1", None, handler="restricted")
    sandbox_id = await engine.run_sandbox(sandbox_config(), "restricted")
    volume = Mount(container_path="/model", image=IMAGE_ID, readonly=True)
    for config in (
        container_config(),
        container_config(image=IMAGE_ID),
        container_config(image=IMAGE_ID, image_reference="registry.example.com/app:1"),
        container_config(
            image=IMAGE_ID, image_reference="allowed.example.com/app:1", mounts=(volume,)
        ),
    ):
        with pytest.raises(DeniedError, match="SecurityProfile"):
            await engine.create_container(sandbox_id, config)
    allowed = container_config(image=IMAGE_ID, image_reference="allowed.example.com/app:1")
    container_id = await engine.create_container(sandbox_id, allowed)
    assert engine.container(container_id).image_reference == "allowed.example.com/app:1"
    await engine.remove_image(IMAGE_ID)
    await engine.remove_image(IMAGE_ID)
    assert engine.list_images() == ()
    assert engine.find_image(IMAGE_ID) is None
    assert (await engine.image_fs()).mountpoint == world.images.root


async def test_running_containers_are_stale_when_the_profile_changed(
    engine: Engine, world: World
) -> None:
    first = serve(world)
    sandbox_id = await engine.run_sandbox(sandbox_config(), "restricted")
    assert engine.sandbox(sandbox_id).revision == first
    container_id = await engine.create_container(sandbox_id, container_config())
    await engine.start_container(container_id)
    other = PodIdentity(name="plain", namespace="shop", uid="u-2")
    plain = await engine.run_sandbox(sandbox_config(pod=other), "")
    await engine.start_container(await engine.create_container(plain, container_config()))
    status = engine.status()
    assert (status.revision, status.stale_containers) == (first, ())
    assert status.ungoverned_pods == 1
    assert [handler.name for handler in status.handlers] == ["", "crun", "restricted"]
    second = serve(world, allowed_registries=("registry.example.com",))
    status = engine.status()
    assert (status.revision, status.revision_error) == (second, "")
    assert status.stale_containers == ("shop/web/app",)
    new = await engine.create_container(sandbox_id, container_config(attempt=1))
    await engine.start_container(new)
    await engine.stop_container(container_id, 1.0)
    assert engine.status().stale_containers == ()
    (world.root / "etc" / "current").write_text("{")
    assert engine.status().revision == ""
    with pytest.raises(FailedPreconditionError, match="is not served"):
        await engine.create_container(sandbox_id, container_config(attempt=2))
    assert engine.status().stale_containers == ("shop/web/app",)
    assert engine.status().ungoverned_pods == 1
    await engine.stop_sandbox(plain)
    assert engine.status().ungoverned_pods == 0


@pytest.mark.parametrize(
    ("source", "seen"),
    [
        pytest.param("/", "/host{run}", id="the whole node"),
        pytest.param("{run}", "/host", id="run_dir"),
        pytest.param("{run}/sandboxes", "/host", id="a part of it"),
        pytest.param("{run}/../link", "/host/run", id="by a link"),
        pytest.param("/etc", None, id="something else"),
    ],
)
async def test_what_binds_run_dir_gets_no_mount_of_others(
    engine: Engine, world: World, source: str, seen: str | None
) -> None:
    run = world.root / "run"
    (world.root / "link").symlink_to(world.root)
    path = source.format(run=run).replace("/run/../", "/")
    mount = Mount(container_path="/host", host_path=path, readonly=True)
    sandbox_id = await engine.run_sandbox(sandbox_config(), "")
    container_id = await engine.create_container(sandbox_id, container_config(mounts=(mount,)))
    await engine.start_container(container_id)
    pid = engine.container(container_id).pid
    wanted = {} if seen is None else {pid: (seen.format(run=run.resolve()),)}
    assert world.left_out == wanted
    assert str(run / "containers" / container_id / "rootfs") in world.sealed
