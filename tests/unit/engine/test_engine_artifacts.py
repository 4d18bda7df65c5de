"""A handler whose filter is an artifact: its Pods run with it, or not at all."""

from __future__ import annotations

import asyncio
import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from noderuntime.api.revision import RevisionHandler, RevisionProfile, make_revision
from noderuntime.api.securityprofile import SecurityProfileSpec
from noderuntime.engine import artifacts
from noderuntime.engine.engine import Engine
from noderuntime.errors import FailedPreconditionError
from tests.fakes.engine import World, container_config, new_engine, sandbox_config

REFERENCE = "registry.example.com/profiles/web@sha256:" + "a" * 64
DOCUMENT: dict[str, Any] = {
    "defaultAction": "SCMP_ACT_ERRNO",
    "defaultErrnoRet": 38,
    "syscalls": [
        {"names": ["read", "mseal"], "action": "SCMP_ACT_ALLOW"},
        {"names": ["mount"], "action": "SCMP_ACT_KILL_PROCESS"},
    ],
}


def declare(world: World, **profile: object) -> None:
    spec = SecurityProfileSpec.model_validate({"seccomp": {"artifact": REFERENCE}, **profile})
    handler = RevisionHandler(
        name="web", node_runtime="web", profile=RevisionProfile(name="web", spec=spec)
    )
    world.publish(make_revision((handler,)))


async def run(engine: Engine, world: World) -> dict[str, object]:
    """Return the filter of a container's config.json."""
    sandbox_id = await engine.run_sandbox(sandbox_config(), "web")
    container = container_config()
    security = replace(container.security, masked_paths=("/p",), readonly_paths=("/p",))
    await engine.create_container(sandbox_id, replace(container, security=security))
    (path,) = (world.root / "run" / "containers").glob("*/config.json")
    found: dict[str, object] = json.loads(Path(path).read_text())["linux"]["seccomp"]
    return found


async def test_its_pods_have_the_artifacts_filter(world: World, engine: Engine) -> None:
    world.images.artifacts[REFERENCE] = json.dumps(DOCUMENT)
    declare(world)
    known = [{"names": ["read"], "action": "SCMP_ACT_ALLOW"}, DOCUMENT["syscalls"][1]]
    assert await run(engine, world) == {**DOCUMENT, "syscalls": known}
    status = engine.status()
    assert status.unknown_syscalls == {"web": ("mseal",)}
    assert (status.withheld, status.revision_handlers) == ((), ("web",))


async def test_audit_logs_what_the_artifact_would_refuse(world: World, engine: Engine) -> None:
    world.images.artifacts[REFERENCE] = json.dumps(DOCUMENT)
    declare(world, auditSections=["seccomp"])
    assert await run(engine, world) == {
        "defaultAction": "SCMP_ACT_LOG",
        "syscalls": [{"names": ["read"], "action": "SCMP_ACT_ALLOW"}],
    }


@pytest.mark.parametrize(
    ("text", "why"),
    [
        (None, f"{REFERENCE} is not there"),
        ('{"defaultAction": "SCMP_ACT_NOTIFY"}', "defaultAction: Input should be"),
        ("{}", "defaultAction: Field required"),
    ],
)
async def test_its_pods_are_refused_while_it_is_not_there(
    world: World, engine: Engine, text: str | None, why: str
) -> None:
    if text is not None:
        world.images.artifacts[REFERENCE] = text
    declare(world)
    with pytest.raises(FailedPreconditionError) as caught:
        await engine.run_sandbox(sandbox_config(), "web")
    assert 'handler "web" is not served by this node: seccomp.artifact of' in str(caught.value)
    assert why in str(caught.value)
    status = engine.status()
    [withheld] = status.withheld
    assert (withheld.name, withheld.reason) == ("web", "ArtifactMissing")
    assert f"SecurityProfile web: {REFERENCE} is not here: " in withheld.message
    assert why in withheld.message
    assert "web" not in {handler.name for handler in status.handlers}
    assert status.revision_handlers == ()
    world.images.artifacts[REFERENCE] = json.dumps(DOCUMENT)
    assert await engine.run_sandbox(sandbox_config(), "web")
    assert engine.status().revision_handlers == ("web",)
    assert engine.status().withheld == ()


async def test_what_was_fetched_serves_on_after_a_restart_without_a_registry(
    world: World, engine: Engine
) -> None:
    world.images.artifacts[REFERENCE] = json.dumps(DOCUMENT)
    declare(world)
    await engine.run_sandbox(sandbox_config(), "web")
    world.images.artifacts.clear()
    again = new_engine(world)
    await again.recover()
    status = again.status()
    assert (status.withheld, status.revision_handlers) == ((), ("web",))
    await again.close()


@pytest.fixture
def impatient(monkeypatch: pytest.MonkeyPatch) -> None:
    """What is missing is looked for again at once."""
    monkeypatch.setattr(artifacts, "LOOK_AGAIN_S", 0.01)


@pytest.mark.usefixtures("impatient")
async def test_it_is_fetched_without_a_pod_that_asks(world: World, engine: Engine) -> None:
    declare(world)
    [withheld] = engine.status().withheld
    assert withheld.message.endswith("is not here: it was not fetched yet")
    async with asyncio.timeout(5):
        while "is not there" not in engine.status().withheld[0].message:
            await asyncio.sleep(0.01)
        world.images.artifacts[REFERENCE] = json.dumps(DOCUMENT)
        while engine.status().withheld:
            await asyncio.sleep(0.01)
    assert engine.status().revision_handlers == ("web",)
