"""Every way to a process goes through the profile's gate: none gets more than it gives."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from noderuntime.api.revision import RevisionHandler, RevisionProfile, make_revision
from noderuntime.api.securityprofile import SecurityProfileSpec
from noderuntime.engine.engine import Engine
from noderuntime.errors import (
    DeniedError,
    FailedPreconditionError,
    InvalidArgumentError,
    UnimplementedError,
)
from noderuntime.policy.model import (
    ContainerSecurity,
    Mount,
    NamespaceMode,
    Namespaces,
    PodIdentity,
    ProfileType,
    Resources,
    SecurityProfileRef,
)
from tests.fakes.engine import (
    IMAGE_ID,
    PROC_MOUNT_DEFAULT,
    World,
    container_config,
    sandbox_config,
)

PAST, FUTURE = "2000-01-01T00:00:00Z", "2999-01-01T00:00:00Z"
PROFILE: dict[str, Any] = {
    "capabilities": {"default": ["KILL", "CHOWN"], "ambient": ["KILL"]},
    "rootFilesystem": "ReadOnly",
    "ulimits": [{"name": "nofile", "soft": 10, "hard": 20}],
    "resources": {"memory": {"max": "1Mi"}, "hugepages": {}, "shm": {"default": "4Mi"}},
}


def serve(world: World, profile: dict[str, Any]) -> None:
    """Serve the profile as handler `restricted`."""
    spec = SecurityProfileSpec.model_validate(profile)
    handler = RevisionHandler(
        name="restricted", node_runtime="r", profile=RevisionProfile(name="web", spec=spec)
    )
    world.publish(make_revision((handler,)))


async def governed(engine: Engine, security: ContainerSecurity | None = None) -> str:
    sandbox_id = await engine.run_sandbox(sandbox_config(), "restricted")
    config = container_config(security=security or PROC_MOUNT_DEFAULT)
    return await engine.create_container(sandbox_id, config)


def process_of(world: World, container_id: str) -> dict[str, Any]:
    path = world.root / "run" / "containers" / container_id / "config.json"
    document: dict[str, Any] = json.loads(path.read_text())
    process: dict[str, Any] = document["process"]
    return process


async def test_an_exec_gets_what_its_container_has(engine: Engine, world: World) -> None:
    serve(world, PROFILE)
    container_id = await governed(engine)
    await engine.start_container(container_id)
    await engine.exec_sync(container_id, ("/bin/sh",), 1.0)
    own, [request] = process_of(world, container_id), world.execs
    assert {**own, "args": ["/bin/sh"], "terminal": False} == request.process
    assert own["rlimits"] == [{"type": "RLIMIT_NOFILE", "soft": 10, "hard": 20}]
    assert own["noNewPrivileges"] is True


async def test_a_profile_that_is_tightened_later_does_not_widen_an_exec(
    engine: Engine, world: World
) -> None:
    serve(world, PROFILE)
    container_id = await governed(engine)
    await engine.start_container(container_id)
    serve(world, {"privileged": "Allow", "capabilities": {"default": ["SYS_ADMIN"]}})
    await engine.exec_sync(container_id, ("/bin/sh",), 1.0)
    assert "CAP_SYS_ADMIN" not in json.dumps(world.execs[0].process["capabilities"])


@pytest.mark.parametrize(
    "asks",
    [
        pytest.param({"capabilities_add": ("SYS_PTRACE",)}, id="a capability"),
        pytest.param({"masked_paths": ()}, id="an unmasked /proc"),
        pytest.param(
            {
                "seccomp": SecurityProfileRef(
                    type=ProfileType.LOCALHOST, localhost_ref="/profiles/none.json"
                )
            },
            id="a filter of its own",
        ),
    ],
)
async def test_an_ephemeral_container_is_judged_like_every_other(
    engine: Engine, world: World, asks: dict[str, Any]
) -> None:
    """kubectl debug --target: it joins the PID namespace of a container, and nothing besides."""
    serve(world, PROFILE)
    target = await governed(engine)
    await engine.start_container(target)
    sandbox_id = engine.container(target).sandbox_id
    joins = replace(
        PROC_MOUNT_DEFAULT, namespaces=Namespaces(pid=NamespaceMode.TARGET, target_id=target)
    )
    with pytest.raises(DeniedError, match="is refused by SecurityProfile web"):
        await engine.create_container(
            sandbox_id, container_config(name="debugger", security=replace(joins, **asks))
        )
    debugger = await engine.create_container(
        sandbox_id, container_config(name="debugger", security=joins)
    )
    assert process_of(world, debugger)["capabilities"] == process_of(world, target)["capabilities"]


async def test_an_ephemeral_container_joins_no_other_pod(engine: Engine, world: World) -> None:
    serve(world, PROFILE)
    target = await governed(engine)
    await engine.start_container(target)
    other = PodIdentity(name="other", namespace="shop", uid="u-2")
    sandbox_id = await engine.run_sandbox(sandbox_config(pod=other), "restricted")
    joins = Namespaces(pid=NamespaceMode.TARGET, target_id=target)
    with pytest.raises(InvalidArgumentError, match="is not a container of this pod"):
        await engine.create_container(
            sandbox_id, container_config(security=replace(PROC_MOUNT_DEFAULT, namespaces=joins))
        )


@pytest.mark.parametrize(
    "asked",
    [
        pytest.param(Resources(memory_limit_bytes=2 << 20), id="memory"),
        pytest.param(Resources(unified={"memory.max": "max"}), id="memory, by its cgroup key"),
        pytest.param(Resources(hugepage_limits_bytes={"2MB": 2 << 20}), id="huge pages"),
        pytest.param(Resources(unified={"hugetlb.2MB.max": "max"}), id="huge pages, by their key"),
    ],
)
async def test_a_resize_in_place_stays_within_the_profile(
    engine: Engine, world: World, asked: Resources
) -> None:
    serve(world, PROFILE)
    container_id = await governed(engine)
    await engine.start_container(container_id)
    with pytest.raises(DeniedError, match="is refused by SecurityProfile web"):
        await engine.update_resources(container_id, asked)
    assert world.updates == []


async def test_a_resize_to_no_limit_is_one_to_the_most(engine: Engine, world: World) -> None:
    serve(world, PROFILE)
    container_id = await governed(engine)
    await engine.start_container(container_id)
    await engine.update_resources(container_id, Resources(memory_limit_bytes=-1))
    assert [each.memory_limit_bytes for each in world.updates] == [1 << 20]


async def test_nothing_is_restored_from_a_checkpoint(engine: Engine, world: World) -> None:
    serve(world, PROFILE)
    container_id = await governed(engine)
    await engine.start_container(container_id)
    with pytest.raises((FailedPreconditionError, UnimplementedError)):  # by what the node has
        await engine.checkpoint_container(container_id)


async def test_the_pods_shared_memory_has_the_profiles_size(engine: Engine, world: World) -> None:
    serve(world, PROFILE)
    await engine.run_sandbox(sandbox_config(), "restricted")
    assert list(world.tmpfs.values()) == [4 << 20]


def excepted(expires: str, **fields: str) -> dict[str, Any]:
    exception = {"namespace": "shop", "sections": ["hostPaths", "images"], "expires": expires}
    return {"images": {"requireDigest": True}, "exceptions": [{**exception, **fields}]}


@pytest.mark.parametrize(("expires", "passes"), [(FUTURE, True), (PAST, False)])
async def test_an_exception_holds_until_its_end(
    engine: Engine, world: World, tmp_path: Path, expires: str, passes: bool
) -> None:
    serve(world, excepted(expires))
    mount = Mount(container_path="/d", host_path=str(tmp_path), readonly=True)
    config = container_config(mounts=(mount,))
    sandbox_id = await engine.run_sandbox(sandbox_config(), "restricted")
    pod = engine.sandboxes()[0].config
    reference = "registry.example.com/app:1"
    if passes:
        await engine.pull_image(reference, None, handler="restricted", pod=pod)
        assert await engine.create_container(sandbox_id, config)
        return
    with pytest.raises(DeniedError, match="requireDigest"):
        await engine.pull_image(reference, None, handler="restricted", pod=pod)
    with pytest.raises(DeniedError, match="requireDigest"):
        await engine.create_container(sandbox_id, config)


async def test_an_exception_does_not_hold_for_a_pull_for_nobody(
    engine: Engine, world: World
) -> None:
    serve(world, excepted(FUTURE))
    with pytest.raises(DeniedError, match="requireDigest"):
        await engine.pull_image("registry.example.com/app:1", None, handler="restricted")


@pytest.mark.parametrize(
    ("reference", "image", "passes"),
    [
        ("registry.example.com/app@sha256:" + "b" * 64, IMAGE_ID, True),
        ("registry.example.com/app:1", IMAGE_ID, False),
        ("", IMAGE_ID, False),
        ("", "registry.example.com/app:1", False),
    ],
)
async def test_a_digest_is_required_of_the_pods_own_words(
    engine: Engine, world: World, reference: str, image: str, passes: bool
) -> None:
    serve(world, {"images": {"requireDigest": True}})
    sandbox_id = await engine.run_sandbox(sandbox_config(), "restricted")
    config = container_config(image=image, image_reference=reference)
    if passes:
        assert await engine.create_container(sandbox_id, config)
        return
    with pytest.raises(DeniedError, match="images.requireDigest is true"):
        await engine.create_container(sandbox_id, config)
