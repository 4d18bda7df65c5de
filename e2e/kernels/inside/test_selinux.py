"""SELinux enforcing: each Pod under a label of its own, its files out of the reach of others."""

from __future__ import annotations

import os
import shutil
import subprocess
import tempfile
from collections.abc import AsyncIterator, Iterator
from dataclasses import replace
from pathlib import Path

import pytest

from noderuntime.api.revision import RevisionHandler, make_revision
from noderuntime.engine.engine import Engine
from noderuntime.errors import DeniedError, FailedPreconditionError, InvalidArgumentError
from noderuntime.host.selinux import KernelSelinux
from noderuntime.policy.model import (
    ContainerConfig,
    ContainerSecurity,
    Mount,
    PodIdentity,
    SelinuxOptions,
)
from noderuntime.policy.spec import DEFAULT_MASKED, DEFAULT_READONLY
from tests.root.engine_kit import RealNode
from tests.root.engine_scene import engine_on, made_node

HANDLERS = ["", "runc"]
POLICY = Path(__file__).with_name("containers.cil")
PLAIN = ContainerSecurity(masked_paths=DEFAULT_MASKED, readonly_paths=DEFAULT_READONLY)


@pytest.fixture(scope="session", autouse=True)
def policy() -> Iterator[None]:
    """The guest's policy, with types for containers, enforced."""
    if not KernelSelinux().is_enabled():
        subprocess.run(["load_policy", "-i"], check=True)
    subprocess.run(["semodule", "--install", POLICY], check=True)
    # The kernel loads these by a program of the node's, which this policy does not let it.
    subprocess.run(["modprobe", "--all", "bridge", "veth", "overlay"], check=True)
    subprocess.run(["setenforce", "1"], check=True)
    yield
    subprocess.run(["setenforce", "0"], check=True)


@pytest.fixture(scope="module")
def node(tmp_path_factory: pytest.TempPathFactory) -> Iterator[RealNode]:
    with made_node(tmp_path_factory.mktemp("nr-selinux")) as real:
        yield real


@pytest.fixture
async def engine(node: RealNode) -> AsyncIterator[Engine]:
    async with engine_on(node) as engine:
        yield engine


@pytest.fixture
def volume() -> Iterator[Path]:
    """A folder of the node with a file in it, on a disk that keeps labels."""
    folder = Path(tempfile.mkdtemp(prefix="nr-volume-", dir="/var/tmp"))
    (folder / "file").write_text("secret\n")
    (folder / "link").symlink_to("/etc/hostname")
    yield folder
    shutil.rmtree(folder)


async def start(
    node: RealNode, engine: Engine, handler: str, number: int, container: ContainerConfig
) -> str:
    """Run a Pod with one container; return the container."""
    pod = PodIdentity(name=f"web-{number}", namespace="shop", uid=f"{node.token}{number}")
    sandbox = replace(node.sandbox(), pod=pod, privileged=container.security.privileged)
    sandbox_id = await engine.run_sandbox(sandbox, handler)
    container_id = await engine.create_container(sandbox_id, container)
    await engine.start_container(container_id)
    return container_id


async def said(engine: Engine, container_id: str, script: str) -> str:
    """What an exec says on both its outputs."""
    result = await engine.exec_sync(container_id, ("/bin/busybox", "sh", "-c", script), 20.0)
    return (result.stdout + result.stderr).decode().replace("\0", "")


def label_of(path: Path) -> str:
    """The label of what the path names, of a link itself."""
    attribute = os.getxattr(path, "security.selinux", follow_symlinks=False)
    return attribute.rstrip(b"\0").decode()


@pytest.mark.parametrize("handler", HANDLERS)
async def test_two_pods_cannot_read_each_others_files(
    node: RealNode, engine: Engine, volume: Path, handler: str
) -> None:
    outside = label_of(Path("/etc/hostname"))
    asks = Mount(container_path="/data", host_path=str(volume), selinux_relabel=True)
    takes = Mount(container_path="/data", host_path=str(volume))
    own = replace(node.container(), security=PLAIN, mounts=(asks,))
    other = replace(node.container(), security=PLAIN, mounts=(takes,))
    first = await start(node, engine, handler, 1, own)
    second = await start(node, engine, handler, 2, other)
    labels = [
        await said(engine, each, "busybox cat /proc/self/attr/current") for each in (first, second)
    ]
    assert all(label.startswith("system_u:system_r:container_t:s0:c") for label in labels)
    assert labels[0] != labels[1]
    assert await said(
        engine, first, "busybox cat /data/file; echo x >/data/new; busybox ls /data"
    ) == ("secret\nfile\nlink\nnew\n")
    assert "Permission denied" in await said(engine, second, "busybox cat /data/file")
    assert "secret" not in await said(engine, second, "busybox cat /data/file")
    level = labels[0].partition(":s0")[2]
    assert label_of(volume / "new") == label_of(volume / "link")
    assert label_of(volume / "file") == f"system_u:object_r:container_file_t:s0{level}"
    assert label_of(Path("/etc/hostname")) == outside  # the link in the volume points to it


@pytest.mark.parametrize("handler", HANDLERS)
async def test_a_container_writes_its_own_root_and_shm_and_reads_its_resolv_conf(
    node: RealNode, engine: Engine, handler: str
) -> None:
    container = replace(node.container(), security=replace(PLAIN, no_new_privs=True))
    made = await start(node, engine, handler, 1, container)
    script = "echo x >/tmp/a && echo y >/dev/shm/b && busybox cat /tmp/a /dev/shm/b && "
    script += "busybox cat /etc/resolv.conf >/dev/null && busybox cat /etc/hostname"
    assert await said(engine, made, script) == "x\ny\nweb\n"


async def test_what_is_not_relabelled_stays_closed(
    node: RealNode, engine: Engine, volume: Path
) -> None:
    before = label_of(volume / "file")
    takes = Mount(container_path="/data", host_path=str(volume))
    made = await start(node, engine, "", 1, replace(node.container(), mounts=(takes,)))
    assert "Permission denied" in await said(engine, made, "busybox cat /data/file")
    assert label_of(volume / "file") == before


async def test_the_nodes_own_folders_are_never_relabelled(node: RealNode, engine: Engine) -> None:
    before = label_of(Path("/etc/hostname"))
    asks = Mount(container_path="/data", host_path="/etc", selinux_relabel=True)
    sandbox_id = await engine.run_sandbox(node.sandbox(), "")
    with pytest.raises(InvalidArgumentError, match="/etc cannot be relabelled"):
        await engine.create_container(sandbox_id, replace(node.container(), mounts=(asks,)))
    assert label_of(Path("/etc/hostname")) == before


async def test_a_privileged_container_has_the_label_that_the_policy_gives_it(
    node: RealNode, engine: Engine, volume: Path
) -> None:
    takes = Mount(container_path="/data", host_path=str(volume))
    security = ContainerSecurity(privileged=True)
    container = replace(node.container(), security=security, mounts=(takes,))
    made = await start(node, engine, "", 1, container)
    assert "container_t" not in await said(engine, made, "busybox cat /proc/self/attr/current")
    assert await said(engine, made, "busybox cat /data/file") == "secret\n"


async def test_a_level_that_is_asked_for_is_given(node: RealNode, engine: Engine) -> None:
    asked = SelinuxOptions(level="s0:c5,c6")
    container = replace(node.container(), security=replace(PLAIN, selinux=asked))
    made = await start(node, engine, "", 1, container)
    label = await said(engine, made, "busybox cat /proc/self/attr/current")
    assert label == "system_u:system_r:container_t:s0:c5,c6"


async def test_a_type_that_the_policy_does_not_know_is_refused_by_its_field(
    node: RealNode, engine: Engine
) -> None:
    sandbox_id = await engine.run_sandbox(node.sandbox(), "")
    asked = replace(PLAIN, selinux=SelinuxOptions(type="no_such_t"))
    with pytest.raises(FailedPreconditionError, match="seLinuxOptions: .*no_such_t"):
        await engine.create_container(sandbox_id, replace(node.container(), security=asked))


@pytest.fixture
def declared(node: RealNode) -> Iterator[None]:
    """A handler with a declared label, one with a label that is none, and one that demands AppArmor."""
    profiles: dict[str, dict[str, object]] = {
        "labelled": {"seLinux": {"type": "container_t", "level": "s0:c7,c8"}},
        "per-pod": {"seLinux": {}},
        "unknown": {"seLinux": {"type": "no_such_t"}},
        "confined": {"appArmor": {"mode": "RuntimeDefault"}},
    }
    handlers = tuple(
        RevisionHandler.model_validate(
            {"name": name, "nodeRuntime": name, "profile": {"name": name, "spec": spec}}
        )
        for name, spec in profiles.items()
    )
    beside = node.config.revision.with_name("beside")
    beside.write_text(make_revision(handlers).model_dump_json(by_alias=True))
    beside.rename(node.config.revision)
    yield
    node.config.revision.unlink()


@pytest.mark.usefixtures("declared")
async def test_a_declared_label_holds_and_no_pod_asks_for_another(
    node: RealNode, engine: Engine
) -> None:
    made = await start(node, engine, "labelled", 1, replace(node.container(), security=PLAIN))
    label = await said(engine, made, "busybox cat /proc/self/attr/current")
    assert label == "system_u:system_r:container_t:s0:c7,c8"
    sandbox_id = engine.container(made).sandbox_id
    asked = replace(PLAIN, selinux=SelinuxOptions(type="unconfined_t"))
    with pytest.raises(DeniedError, match=r"seLinuxOptions\.type: unconfined_t is refused"):
        await engine.create_container(sandbox_id, replace(node.container(1), security=asked))


@pytest.mark.usefixtures("declared")
async def test_a_handler_that_demands_apparmor_is_not_offered_by_a_kernel_without(
    node: RealNode, engine: Engine
) -> None:
    with pytest.raises(FailedPreconditionError, match="demands AppArmor"):
        await engine.run_sandbox(node.sandbox(), "confined")
    names = [handler.name for handler in engine.status().handlers]
    assert "labelled" in names
    assert "confined" not in names


@pytest.mark.usefixtures("declared")
async def test_a_handler_whose_label_the_policy_does_not_know_is_not_offered(
    node: RealNode, engine: Engine
) -> None:
    with pytest.raises(FailedPreconditionError, match="label system_u:system_r:no_such_t:s0:c0,c1"):
        await engine.run_sandbox(node.sandbox(), "unknown")
    status = engine.status()
    reasons = {each.name: each.reason for each in status.withheld}
    assert reasons == {"unknown": "SELinuxLabelUnknown", "confined": "MissingFeature"}
    assert {"labelled", "per-pod"} <= {handler.name for handler in status.handlers}
