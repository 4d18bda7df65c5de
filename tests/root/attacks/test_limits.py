"""Attacks on what a node has only so much of, and containers that will not end."""

from __future__ import annotations

import asyncio
import resource
import subprocess
from collections.abc import Iterator
from contextlib import suppress
from dataclasses import replace
from pathlib import Path

import pytest

from noderuntime.cri.convert import container_config
from noderuntime.cri.runtime_v1 import api_pb2 as pb
from noderuntime.engine import container_stop
from noderuntime.errors import DeadlineExceededError, InvalidArgumentError
from noderuntime.host import pids
from noderuntime.host.cgroups import UNIFIED, KernelCgroups, hierarchies
from noderuntime.host.exec import OUTPUT_LIMIT_BYTES
from noderuntime.policy.model import ContainerSecurity, Mount, Resources
from noderuntime.policy.spec import DEFAULT_MASKED, DEFAULT_READONLY
from tests.root.attacks.attack_kit import HANDLERS, Attack
from tests.root.engine_kit import IMAGE
from tests.root.host_kit import descriptors
from tests.root.profile_kit import serve
from tests.waiting import until

MIB = 1 << 20
LINES = 1_000_000
PROFILES = [f"{name}-profile" for name in HANDLERS]
# As the kubelet sends it for a Pod that says nothing.
MASKED = ContainerSecurity(masked_paths=DEFAULT_MASKED, readonly_paths=DEFAULT_READONLY)
BOUNDS = {
    "resources": {"pids": 24, "shm": {"default": "1Mi"}},
    "ulimits": [{"name": "nofile", "soft": 64, "hard": 64}],
    "rootFilesystem": "ReadWrite",
}


def peak_bytes() -> int:
    """Return the most memory that this process had."""
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024


def bounded(attack: Attack, script: str) -> tuple[str, ...]:
    return ("/bin/busybox", "sh", "-c", f"exec 2>&1; {script}", attack.marked)


@pytest.mark.parametrize("handler", PROFILES)
async def test_a_fork_bomb(attack: Attack, handler: str) -> None:
    """The attacker starts processes without end.

    A profile's resources.pids is the cgroup's pids.max; without a profile it is the kubelet's
    podPidsLimit. The end kills all of them.
    """
    serve(attack.node, BOUNDS)
    script = "trap '' TERM; bomb() { bomb | bomb & bomb; }; while :; do bomb; done"
    config = replace(attack.node.container(), command=bounded(attack, script), security=MASKED)
    container_id = await attack.run(config, handler)
    await until(lambda: "fork" in attack.log(attack.engine.container(container_id)))
    assert len(attack.node.processes()) <= 24 + 3  # and the monitor
    await attack.engine.stop_container(container_id, 0.0)
    await attack.engine.remove_container(container_id)
    assert attack.node.processes() == []


@pytest.mark.parametrize("handler", HANDLERS)
async def test_a_memory_bomb(attack: Attack, handler: str) -> None:
    """The attacker takes memory without end. The cgroup's limit kills it, and that is told."""
    limits = Resources(memory_limit_bytes=32 * MIB, memory_swap_limit_bytes=32 * MIB)
    config = replace(attack.node.container(script="exec busybox tail /dev/zero"), resources=limits)
    record = await attack.ended(await attack.run(config, handler))
    assert (record.reason, record.exit_code) == ("OOMKilled", 137)


@pytest.mark.parametrize("handler", PROFILES)
async def test_a_memory_bomb_of_files_in_memory(attack: Attack, handler: str) -> None:
    """The attacker fills /dev/shm and /dev, which are memory. Each tmpfs has a size."""
    serve(attack.node, BOUNDS)
    config = replace(
        attack.node.container(), command=bounded(attack, "busybox sleep 60"), security=MASKED
    )
    container_id = await attack.run(config, handler)
    for path, most in (("/dev/shm", MIB), ("/dev", 64 * MIB)):
        script = f"busybox dd if=/dev/zero of={path}/x bs=1M count=80; busybox stat -c %s {path}/x"
        said = await attack.inside(container_id, f"{script}; busybox rm {path}/x")
        assert "No space left on device" in said
        assert int(said.splitlines()[-1]) <= most


async def test_a_disk_filler_and_an_inode_filler(attack: Attack) -> None:
    """The attacker fills its writable layer.

    That is bounded by nothing of ours: it is counted, for the kubelet's eviction by
    ephemeral-storage, and goes with the container.
    """
    container_id = await attack.run(attack.node.container())
    script = (
        "busybox dd if=/dev/zero of=/tmp/x bs=1M count=8; cd /tmp; "
        "busybox seq 1 500 | busybox xargs busybox touch"
    )
    await attack.inside(container_id, script)
    after = (await attack.engine.container_stats(container_id)).writable_layer
    assert after.used_bytes >= 8 * MIB
    assert after.inodes_used >= 501


@pytest.mark.parametrize("handler", PROFILES)
async def test_a_descriptor_hog(attack: Attack, handler: str) -> None:
    """The attacker opens files without end. A profile's ulimits hold, for an exec too."""
    serve(attack.node, BOUNDS)
    config = replace(
        attack.node.container(), command=bounded(attack, "busybox sleep 60"), security=MASKED
    )
    container_id = await attack.run(config, handler)
    script = 'n=3; while [ $n -lt 200 ]; do eval "exec $n</dev/null" || exit; n=$((n+1)); done'
    said = await attack.inside(container_id, f"({script}); ulimit -Hn; ulimit -n 4096")
    assert "64" in said.split()
    assert "error setting limit" in said or "not permitted" in said
    assert "oo many open files" in said or "Bad file descriptor" in said or "Invalid" in said


@pytest.mark.parametrize("handler", HANDLERS)
async def test_a_container_that_ignores_sigterm(attack: Attack, handler: str) -> None:
    """The attacker ignores every signal that it can. After the grace it is killed."""
    script = "trap '' TERM INT HUP QUIT; echo ready; while :; do busybox sleep 0.05; done"
    container_id = await attack.run(attack.node.container(script=script), handler)
    await until(lambda: "ready" in attack.log(attack.engine.container(container_id)))
    await attack.engine.stop_container(container_id, 0.3)
    assert attack.engine.container(container_id).exit_code == 137


@pytest.mark.parametrize("handler", HANDLERS)
async def test_a_container_that_is_frozen(
    attack: Attack, handler: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The attacker's container is frozen: no signal is delivered. The kill thaws its cgroup."""
    monkeypatch.setattr(container_stop, "OBEYS_S", 0.3)
    container_id = await attack.run(attack.node.container(), handler)
    is_v2 = set(hierarchies()) == {UNIFIED}
    relative = KernelCgroups().relative(attack.engine.container(container_id).cgroup_path)
    cgroup = hierarchies()[UNIFIED if is_v2 else "freezer"] / relative
    if is_v2:
        (cgroup / "cgroup.freeze").write_text("1")
    else:
        (cgroup / "freezer.state").write_text("FROZEN")
    await attack.engine.stop_container(container_id, 0.1)
    assert attack.engine.container(container_id).exit_code == 137


@pytest.fixture
def frozen_disk(tmp_path: Path) -> Iterator[Path]:
    """A file system that can be frozen: who writes to it hangs in the kernel."""
    image, point = tmp_path / "disk", tmp_path / "mounted"
    image.write_bytes(b"")
    subprocess.run(("truncate", "-s", "16M", image), check=True)
    subprocess.run(("mkfs.ext4", "-q", image), check=True)
    point.mkdir()
    subprocess.run(("mount", "-o", "loop", image, point), check=True)
    try:
        yield point
    finally:
        subprocess.run(("fsfreeze", "--unfreeze", point), check=False, capture_output=True)
        subprocess.run(("umount", point), check=True)


async def test_a_container_in_d_state(
    attack: Attack, frozen_disk: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The attacker's process hangs in the kernel, where SIGKILL does not reach it.

    The call ends by its deadline and says so; once the kernel lets go, the next one succeeds.
    """
    script = "echo ready; while :; do echo x > /data/x; done"
    mount = Mount(container_path="/data", host_path=str(frozen_disk))
    config = replace(attack.node.container(script=script), mounts=(mount,))
    container_id = await attack.run(config)
    subprocess.run(("fsfreeze", "--freeze", frozen_disk), check=True)
    try:
        pid = attack.engine.container(container_id).pid

        def hangs() -> bool:
            stat = pids.read_stat(pid)
            return stat is not None and stat.state == "D"

        await until(hangs)
        with monkeypatch.context() as patch:
            patch.setattr(container_stop, "OBEYS_S", 0.3)
            patch.setattr(container_stop, "KILLED_S", 0.3)
            with pytest.raises(DeadlineExceededError, match="hangs in the kernel"):
                await attack.engine.stop_container(container_id, 0.0)
    finally:
        subprocess.run(("fsfreeze", "--unfreeze", frozen_disk), check=True)
    await attack.engine.stop_container(container_id, 0.0)
    await attack.engine.remove_container(container_id)


@pytest.mark.parametrize("handler", HANDLERS)
async def test_cve_2022_31030_and_2022_1708_an_exec_writes_without_end(
    attack: Attack, handler: str
) -> None:
    """The attacker's container answers a probe with output without end.

    16 MiB of it are kept, the rest is thrown away (host/exec.py).
    """
    container_id = await attack.run(attack.node.container(), handler)
    before = peak_bytes()
    shell = ("/bin/busybox", "sh", "-c", "busybox dd if=/dev/zero bs=1M count=100")
    result = await attack.engine.exec_sync(container_id, shell, 60.0)
    assert len(result.stdout) <= OUTPUT_LIMIT_BYTES
    assert peak_bytes() - before < 5 * OUTPUT_LIMIT_BYTES


@pytest.mark.parametrize("handler", HANDLERS)
async def test_cve_2025_64329_attach_sessions_leave_something_behind(
    attack: Attack, handler: str
) -> None:
    """The attacker attaches again and again, and goes. Each session ends with its descriptors.

    Ours at once; conmon's own at the next thing that the container says (conmon 2.1.6).
    """
    script = "while :; do echo x; busybox sleep 0.05; done"
    config = replace(attack.node.container(script=script), stdin=True)
    container_id = await attack.run(config, handler)
    monitor = int(
        (attack.node.config.run_dir / "containers" / container_id / "conmon.pid").read_text()
    )

    def held() -> tuple[int, int, int]:
        return (
            descriptors(),
            len([*Path(f"/proc/{monitor}/fd").iterdir()]),
            len(asyncio.all_tasks()),
        )

    await (await attack.engine.attach(container_id)).close()
    with suppress(AssertionError):
        await until(lambda: False, 0.2)
    before = held()
    for _ in range(40):
        await (await attack.engine.attach(container_id)).close()
    await until(lambda: all(now <= then for now, then in zip(held(), before, strict=True)))


async def test_a_million_line_log(attack: Attack) -> None:
    """The attacker logs without end. The monitor writes it, and nothing of it passes through us."""
    before = peak_bytes()
    script = f"busybox yes | busybox head -n {LINES}"
    record = await attack.ended(await attack.run(attack.node.container(script=script)), 60.0)
    log = attack.engine.log_file(record)
    lines = 0
    with log.open("rb") as file:
        for line in file:
            assert line.endswith(b" stdout F y\n")
            lines += 1
    assert lines == LINES
    assert peak_bytes() - before < 8 * MIB


@pytest.mark.parametrize("handler", HANDLERS)
async def test_an_environment_of_a_mebibyte(attack: Attack, handler: str) -> None:
    """The attacker has a Pod with a huge environment: it is passed, for an exec too."""
    env = tuple((f"BIG_{number}", "x" * 65_536) for number in range(16))
    config = replace(attack.node.container(), env=env)
    container_id = await attack.run(config, handler)
    count = "busybox env | busybox grep -c ^BIG_"
    assert await attack.inside(container_id, f"{count}; echo ${{#BIG_15}}") == "16\n65536\n"


@pytest.mark.parametrize("size", [131_072, 4 * MIB])
def test_an_environment_that_no_process_can_have_is_refused_by_its_field(size: int) -> None:
    """The attacker has a variable, or many, larger than execve(2) takes. See cri/convert.py."""
    asked = pb.ContainerConfig(image=pb.ImageSpec(image=IMAGE))
    asked.metadata.name = "app"
    for number in range(max(size // 65_536, 1) if size > MIB else 1):
        asked.envs.add(key=f"A{number}", value=b"x" * (65_536 if size > MIB else size))
    with pytest.raises(InvalidArgumentError, match="envs"):
        container_config(asked)
