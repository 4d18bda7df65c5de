"""Devices of the node in a real container: those of its own request, CDI's, and all of them."""

from __future__ import annotations

import asyncio
import json
import os
import shutil
import stat
from collections.abc import AsyncIterator, Iterator
from dataclasses import replace
from pathlib import Path

import pytest

from noderuntime.api.config import CdiConfig, Config
from noderuntime.engine.engine import Engine
from noderuntime.errors import FailedPreconditionError, InvalidArgumentError
from noderuntime.policy.model import ContainerConfig, ContainerSecurity, Device
from tests.root.engine_kit import RealNode
from tests.root.engine_scene import Scene, made_node_of

DEADLINE_S = 30.0
HANDLERS = ("crun", "runc")
RANDOM = Path("/dev/random")
FUSE = Path("/dev/fuse")  # which no container has by itself


class CdiNode(RealNode):
    """A node with a CDI folder of its own."""

    @property
    def config(self) -> Config:
        folders = CdiConfig(spec_dirs=(self.root / "cdi",))
        return super().config.model_copy(update={"cdi": folders})


@pytest.fixture(scope="module")
def node(tmp_path_factory: pytest.TempPathFactory) -> Iterator[CdiNode]:
    with made_node_of(CdiNode, tmp_path_factory.mktemp("nr-engine-devices")) as real:
        for handler in HANDLERS:  # each makes a folder of its own at the first start
            asyncio.run(_warm_up(real, handler))
        yield real


async def _warm_up(node: CdiNode, handler: str) -> None:
    engine = node.engine()
    await engine.recover()
    await started(node, engine, handler, node.container())
    await Scene(node, engine).remove_everything()
    await engine.close()


@pytest.fixture
async def engine(node: CdiNode) -> AsyncIterator[Engine]:
    shutil.rmtree(node.root / "logs", ignore_errors=True)
    (node.root / "cdi").mkdir(mode=0o755, exist_ok=True)
    empty = node.census()
    engine = node.engine()
    await engine.recover()
    running = asyncio.Task(engine.run())
    await asyncio.sleep(0)
    yield engine
    await Scene(node, engine).remove_everything()
    running.cancel()
    await asyncio.wait([running])
    shutil.rmtree(node.root / "cdi")
    (node.root / "cdi").mkdir(mode=0o755)
    assert [line for line in node.leftovers(empty) if "cdi/" not in line] == []


async def started(
    node: CdiNode,
    engine: Engine,
    handler: str,
    config: ContainerConfig,
    *,
    privileged: bool = False,
) -> str:
    sandbox = replace(node.sandbox(), privileged=privileged)
    sandbox_id = await engine.run_sandbox(sandbox, handler)
    container_id = await engine.create_container(sandbox_id, config)
    await engine.start_container(container_id)
    return container_id


async def sh(engine: Engine, container_id: str, script: str) -> tuple[int, str]:
    command = ("/bin/busybox", "sh", "-c", script)
    result = await engine.exec_sync(container_id, command, DEADLINE_S)
    return result.exit_code, (result.stdout + result.stderr).decode()


def device(path: str, access: str, source: Path = RANDOM) -> Device:
    return Device(container_path=path, host_path=str(source), permissions=access)


@pytest.mark.parametrize("handler", HANDLERS)
async def test_a_device_gives_what_its_permissions_say_and_no_more(
    node: CdiNode, engine: Engine, handler: str
) -> None:
    devices = (device("/dev/both", "rw", FUSE), device("/dev/sub/random", "rwm"))
    config = replace(node.container(), devices=devices)
    container_id = await started(node, engine, handler, config)
    script = "busybox head -c 1 /dev/sub/random | busybox wc -c"
    assert await sh(engine, container_id, script) == (0, "1\n")
    assert (await sh(engine, container_id, "exec 3<>/dev/both"))[0] == 0
    (pod,) = engine.sandboxes()
    one_way = (device("/dev/one", "r", FUSE),)
    config = replace(node.container(), name="reader", devices=one_way)
    reader = await engine.create_container(pod.id, config)
    await engine.start_container(reader)
    assert (await sh(engine, reader, "exec 3</dev/one"))[0] == 0
    code, said = await sh(engine, reader, "exec 3>/dev/one")
    assert code != 0
    assert "not permitted" in said


@pytest.mark.parametrize("handler", HANDLERS)
async def test_a_node_that_a_container_made_itself_is_of_no_use(
    node: CdiNode, engine: Engine, handler: str
) -> None:
    config = replace(
        node.container(), security=ContainerSecurity(capabilities_add=("MKNOD", "SYS_ADMIN"))
    )
    container_id = await started(node, engine, handler, config)
    facts = FUSE.stat()
    script = f"busybox mknod /tmp/x c {os.major(facts.st_rdev)} {os.minor(facts.st_rdev)}"
    assert (await sh(engine, container_id, script))[0] == 0
    assert (await sh(engine, container_id, "exec 3</tmp/x"))[0] != 0


@pytest.mark.parametrize("handler", HANDLERS)
async def test_a_privileged_container_has_all_devices_of_the_node(
    node: CdiNode, engine: Engine, handler: str
) -> None:
    config = replace(node.container(), security=ContainerSecurity(privileged=True))
    container_id = await started(node, engine, handler, config, privileged=True)
    for path in sorted(Path("/dev").iterdir()):
        if stat.S_ISBLK(path.lstat().st_mode) or path.name == "kmsg":
            kind = "b" if stat.S_ISBLK(path.lstat().st_mode) else "c"
            assert (await sh(engine, container_id, f"[ -{kind} {path} ]"))[0] == 0, path
    assert (await sh(engine, container_id, "exec 3<>/dev/kmsg"))[0] == 0


async def test_what_is_not_a_device_is_refused_by_name(node: CdiNode, engine: Engine) -> None:
    config = replace(node.container(), devices=(device("/dev/x", "rw", Path("/etc/passwd")),))
    sandbox_id = await engine.run_sandbox(node.sandbox(), "")
    with pytest.raises(InvalidArgumentError, match="/etc/passwd is not a device"):
        await engine.create_container(sandbox_id, config)


def describe(node: CdiNode, edits: dict[str, object]) -> None:
    document = {
        "cdiVersion": "0.6.0",
        "kind": "vendor.com/random",
        "devices": [{"name": "0", "containerEdits": edits}],
        "containerEdits": {"env": ["VENDOR=here"]},
    }
    file = node.root / "cdi" / "vendor.json"
    file.write_text(json.dumps(document))
    file.chmod(0o644)


@pytest.mark.parametrize("handler", HANDLERS)
async def test_a_cdi_device_brings_its_node_mounts_variables_groups_and_hooks(
    node: CdiNode, engine: Engine, handler: str
) -> None:
    told = node.root / "cdi" / "told"
    vendor = node.root / "cdi" / "lib"
    vendor.mkdir()
    (vendor / "driver").write_text("driver\n")
    hook = {"hookName": "createRuntime", "path": "/bin/sh"}
    args = ["sh", "-c", f"cat >{told}"]
    path = str(vendor)
    describe(
        node,
        {
            "deviceNodes": [{"path": "/dev/vendor0", "hostPath": "/dev/kmsg", "permissions": "rw"}],
            "mounts": [{"hostPath": path, "containerPath": "/vendor", "options": ["ro", "rbind"]}],
            "env": ["DEVICE=0"],
            "additionalGids": [4321],
            "hooks": [{**hook, "args": args}],
        },
    )
    security = ContainerSecurity(run_as_user=1000, run_as_group=2000)
    config = replace(node.container(), cdi_devices=("vendor.com/random=0",), security=security)
    container_id = await started(node, engine, handler, config)
    assert await sh(engine, container_id, "echo $VENDOR $DEVICE; busybox id -G; cat /vendor/*") == (
        0,
        "here 0\n2000 4321\ndriver\n",
    )
    script = "busybox stat -c '%t:%T %u' /dev/vendor0; exec 3>/vendor/driver"
    code, said = await sh(engine, container_id, script)
    assert said.startswith("1:b 1000\n")
    assert code != 0  # it is mounted read-only
    assert container_id in told.read_text()
    assert engine.container(container_id).additional_gids == (2000, 4321)


async def test_a_device_that_no_file_describes_fails_the_create_and_leaves_nothing(
    node: CdiNode, engine: Engine
) -> None:
    describe(node, {"intelRdt": {"closID": "x"}})
    sandbox_id = await engine.run_sandbox(node.sandbox(), "")
    before = node.census()
    config = replace(node.container(), cdi_devices=("vendor.com/random=0",))
    with pytest.raises(FailedPreconditionError, match=r"vendor\.json: .*intelRdt"):
        await engine.create_container(sandbox_id, config)
    assert node.leftovers(before) == []
