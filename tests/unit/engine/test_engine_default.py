"""A NodeRuntime with ``default``: Pods that name no handler are governed, exempt ones are not."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest

from noderuntime.api.revision import (
    RevisionDefault,
    RevisionHandler,
    RevisionProfile,
    make_revision,
)
from noderuntime.api.securityprofile import SecurityProfileSpec
from noderuntime.errors import DeniedError, FailedPreconditionError
from noderuntime.policy.model import NamespaceMode, Namespaces, PodIdentity, Resources
from tests.fakes.engine import (
    IMAGE,
    PROC_MOUNT_DEFAULT,
    World,
    container_config,
    new_engine,
    sandbox_config,
)
from tests.unit.engine.test_engine_decisions import engine, told

if TYPE_CHECKING:
    from noderuntime.engine.engine import Engine

__all__ = ["engine"]

SHOP = PodIdentity(name="web-0", namespace="shop", uid="u-1")
SYSTEM = PodIdentity(name="proxy", namespace="kube-system", uid="u-2")
PROFILE: dict[str, Any] = {
    "capabilities": {"default": ["KILL"]},
    "resources": {"memory": {"max": "1Mi"}},
}
ON_NODE = Namespaces(network=NamespaceMode.NODE)


def serve(
    world: World, profile: dict[str, Any] = PROFILE, *, exempt: tuple[str, ...] | None = ()
) -> str:
    """Serve the profile as handler `restricted`, under runc; ``exempt`` None is without a default."""
    spec = SecurityProfileSpec.model_validate(profile)
    handler = RevisionHandler(
        name="restricted",
        node_runtime="everyone",
        oci_runtime="runc",
        profile=RevisionProfile(name="web", spec=spec),
        allowed_registries=("registry.example.com",),
    )
    default = None
    if exempt is not None:
        names = ("kube-system", *exempt)
        default = RevisionDefault(handler="restricted", exempt_namespaces=names)
    return world.publish(make_revision((handler,), default))


async def live(engine: Engine, pod: PodIdentity) -> str:
    sandbox_id = await engine.run_sandbox(sandbox_config(pod=pod), "")
    container_id = await engine.create_container(
        sandbox_id, container_config(security=PROC_MOUNT_DEFAULT)
    )
    await engine.start_container(container_id)
    return container_id


async def test_a_pod_that_names_no_handler_runs_under_the_declared_one(
    engine: Engine, world: World
) -> None:
    digest = serve(world)
    container = engine.container(await live(engine, SHOP))
    sandbox = engine.sandbox(container.sandbox_id)
    assert (sandbox.handler, sandbox.oci_runtime) == ("", "/usr/bin/runc")  # CRI's own word is kept
    for record in (sandbox, container):
        assert (record.revision, record.node_runtime, record.profile) == (digest, "everyone", "web")
    await engine.exec_sync(container.id, ("/bin/sh",), 1.0)
    process: Any = world.execs[0].process
    assert process["capabilities"]["bounding"] == ["CAP_KILL"]
    assert engine.status().ungoverned_pods == 0
    lines = await told(engine, world)
    assert [line["verb"] for line in lines] == ["RunPodSandbox", "CreateContainer", "ExecSync"]
    for line in lines:
        assert (line["handler"], line["nodeRuntime"]) == ("restricted", "everyone")


async def test_what_the_profile_denies_is_denied_to_it(engine: Engine, world: World) -> None:
    serve(world)
    with pytest.raises(DeniedError, match="hostNetwork"):
        await engine.run_sandbox(sandbox_config(pod=SHOP, namespaces=ON_NODE), "")
    config = sandbox_config(pod=SHOP)
    await engine.run_sandbox(config, "")
    with pytest.raises(DeniedError, match="evil.example.com"):
        await engine.pull_image("evil.example.com/app:1", None, handler="", pod=config)
    assert await engine.pull_image(IMAGE, None, handler="", pod=config)
    container_id = await live(engine, SHOP)
    with pytest.raises(DeniedError, match="limits.memory"):
        await engine.update_resources(container_id, Resources(memory_limit_bytes=2 << 20))


async def test_a_pod_of_an_exempt_namespace_is_the_nodes_own_and_counted(
    engine: Engine, world: World
) -> None:
    serve(world)
    sandbox_id = await engine.run_sandbox(sandbox_config(pod=SYSTEM, namespaces=ON_NODE), "")
    await engine.run_sandbox(sandbox_config(pod=SHOP), "")
    own = engine.sandbox(sandbox_id)
    assert (own.revision, own.node_runtime, own.oci_runtime) == ("", "", "/usr/bin/crun")
    assert engine.status().ungoverned_pods == 1
    named = await engine.run_sandbox(sandbox_config(pod=replace(SHOP, uid="u-3")), "crun")
    assert engine.sandbox(named).revision == ""
    assert engine.status().ungoverned_pods == 2


async def test_a_pod_is_refused_with_the_reason_when_the_default_handler_is_withheld(
    engine: Engine, world: World
) -> None:
    world.user_namespaces = False
    serve(world, {**PROFILE, "userNamespace": "Required"})
    with pytest.raises(
        FailedPreconditionError,
        match='that names no handler is governed by "restricted" .* demands UserNamespaces',
    ):
        await engine.run_sandbox(sandbox_config(pod=SHOP), "")
    await engine.run_sandbox(sandbox_config(pod=SYSTEM), "")


async def test_a_pod_that_ran_before_stays_and_its_next_container_is_judged(
    engine: Engine, world: World
) -> None:
    sandbox_id = await engine.run_sandbox(sandbox_config(pod=SHOP, namespaces=ON_NODE), "")
    plain = replace(PROC_MOUNT_DEFAULT, namespaces=ON_NODE)
    first = await engine.create_container(sandbox_id, container_config(security=plain))
    await engine.start_container(first)
    serve(world)
    assert await engine.run_sandbox(sandbox_config(pod=SHOP, namespaces=ON_NODE), "") == sandbox_id
    with pytest.raises(DeniedError, match="hostNetwork"):
        await engine.create_container(sandbox_id, container_config(name="again", security=plain))
    await engine.exec_sync(first, ("/bin/true",), 1.0)  # its probes go on
    assert engine.status().ungoverned_pods == 1
    serve(world, exempt=None)
    await engine.create_container(sandbox_id, container_config(name="again", security=plain))


async def test_what_runs_is_governed_as_before_by_the_next_process(world: World) -> None:
    engine = new_engine(world)
    await engine.recover()
    digest = serve(world)
    container_id = await live(engine, SHOP)
    await engine.close()
    (world.root / "etc" / "current").write_text("{")
    again = new_engine(world)
    await again.recover()
    record = again.container(container_id)
    assert (record.revision, record.node_runtime, record.state) == (
        digest,
        "everyone",
        "CONTAINER_RUNNING",
    )
    await again.exec_sync(container_id, ("/bin/true",), 1.0)
    other = replace(SHOP, name="web-1", uid="u-9")
    with pytest.raises(FailedPreconditionError, match='is governed by "restricted"'):
        await again.run_sandbox(sandbox_config(pod=other), "")
    with pytest.raises(FailedPreconditionError, match='is governed by "restricted"'):
        await again.create_container(record.sandbox_id, container_config(name="b"))
    await again.run_sandbox(sandbox_config(pod=SYSTEM), "")
    serve(world)
    await again.run_sandbox(sandbox_config(pod=other), "")
    assert again.status().ungoverned_pods == 1
    await again.close()


async def test_status_says_which_handler_governs(engine: Engine, world: World) -> None:
    assert engine.status().default is None
    serve(world, exempt=("noderuntime-system",))
    default = engine.status().default
    assert default is not None
    assert (default.handler, default.exempt_namespaces) == (
        "restricted",
        ("kube-system", "noderuntime-system"),
    )
    assert engine.config().state_dir == Path(world.root / "state")
