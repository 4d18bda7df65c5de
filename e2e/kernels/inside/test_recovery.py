"""The first start after a power loss, on each disk that the outside has taken.

Named after the place at which the power was cut: ``VERB.STEP:WHEN``, with ``:users`` where the Pod
has a user namespace; or anything else for a moment that nobody chose.
"""

from __future__ import annotations

import subprocess
from collections.abc import AsyncIterator, Iterator
from dataclasses import replace
from pathlib import Path

import pytest

from e2e.kernels.inside.power import CUTS, DISK, LIFE, TOKEN, USERS, node_on, registry_for
from noderuntime.engine.engine import Engine
from noderuntime.engine.state import ContainerState, SandboxState
from tests.root.engine_kit import OWN_USERS, RealNode
from tests.root.engine_scene import MAKING, Scene

# Between this verb and that, the Pod or container is there, whatever happens.
SANDBOX = LIFE[LIFE.index("run_sandbox") + 1 : LIFE.index("remove_sandbox")]
CONTAINER = LIFE[LIFE.index("create_container") + 1 : LIFE.index("remove_container")]


@pytest.fixture(params=sorted(CUTS.glob("*.img")), ids=lambda path: path.stem)
def cut(request: pytest.FixtureRequest) -> Iterator[str]:
    """The place of a cut, with its disk mounted."""
    image: Path = request.param
    subprocess.run(["modprobe", "loop"], check=True)
    subprocess.run(["mount", "-o", "loop", image, DISK], check=True)
    yield image.stem
    subprocess.run(["umount", "--recursive", DISK], check=True)
    image.unlink()


@pytest.fixture
def node(cut: str) -> Iterator[RealNode]:
    found = node_on(DISK, (DISK / TOKEN).read_text())
    yield replace(found, namespaces=OWN_USERS) if cut.endswith(USERS) else found
    found.clean()


@pytest.fixture
async def engine(node: RealNode) -> AsyncIterator[Engine]:
    engine = node.engine()
    await engine.recover()
    yield engine
    await engine.close()


async def test_nothing_half_made_stays_nothing_made_is_lost_and_the_retry_works(
    cut: str, node: RealNode, engine: Engine
) -> None:
    verb, _, place = cut.partition(".")
    assert list((node.root / "state").rglob("*.corrupt")) == []
    # Nothing runs after a boot, and the kubelet is told so.
    assert {pod.state for pod in engine.sandboxes()} <= {SandboxState.NOT_READY}
    assert {one.state for one in engine.containers()} <= {ContainerState.EXITED}
    if verb in SANDBOX:
        assert len(engine.sandboxes()) == 1
    if verb in CONTAINER:
        assert len(engine.containers()) == 1
    if verb in MAKING and not place.removesuffix(USERS).endswith(":after"):
        assert len(engine.sandboxes()) == (verb != "run_sandbox")
        assert len(engine.containers()) == (verb == "start_container")
    await _kubelets_retry(node, engine, pulls=verb not in LIFE)
    found = node.census()
    for what in ("mounts", "links", "cgroups", "processes"):
        assert [x for x in found[what] if x != str(node.config.run_dir)] == []
    assert [name for name in found["files"] if _is_of_a_pod(name)] == []


async def _kubelets_retry(node: RealNode, engine: Engine, *, pulls: bool) -> None:
    """The same request where there is no Pod; else what there is goes, and the next attempt comes."""
    attempt = 1 + max((pod.config.pod.attempt for pod in engine.sandboxes()), default=-1)
    config = node.container()
    if pulls:
        registry, name = registry_for(node)
        await engine.pull_image(name, None, handler="")
        registry.close()
        config = replace(config, image=name, mounts=())
    sandbox_id = await engine.run_sandbox(node.sandbox(attempt), "")
    for container in engine.containers():
        await engine.remove_container(container.id)
    container_id = await engine.create_container(sandbox_id, config)
    await engine.start_container(container_id)
    assert engine.container(container_id).state is ContainerState.RUNNING
    await Scene(node, engine).remove_everything()


def _is_of_a_pod(name: str) -> bool:
    """Of a Pod or container: a record, an intent, a bundle, a snapshot, a lease."""
    parts = Path(name).parts
    kinds = {"sandboxes", "containers", "journal", "snapshots", "attachments"}
    return len(parts) > 2 and (parts[0] == "leases" or parts[1] in kinds)
