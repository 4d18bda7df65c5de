"""Attacks on the program that makes containers: crun, runc."""

from __future__ import annotations

import errno
import hashlib
import json
import os
import shutil
from dataclasses import replace
from pathlib import Path

import pytest

from noderuntime.errors import NodeRuntimeError
from noderuntime.policy.model import ContainerSecurity, Mount, ProfileType, SecurityProfileRef
from noderuntime.policy.spec import BPF_ANNOTATION
from tests.root.attacks.attack_kit import HANDLERS, SECRET, Attack, fields, file
from tests.root.engine_kit import RUNC

CRUN = Path(shutil.which("crun") or "/usr/bin/crun")


def digest(path: Path) -> str:
    return hashlib.sha256(path.read_bytes()).hexdigest()


@pytest.mark.parametrize("handler", HANDLERS)
async def test_cve_2019_5736_a_container_writes_to_the_runtime_that_starts_it(
    attack: Attack, handler: str
) -> None:
    """The attacker is root in a container, and opens /proc/PID/exe of each exec to write to it.

    The runtime is started from a read-only mount that no container has (host/program.py).
    """
    program = {"crun": CRUN, "runc": RUNC}[handler]
    before = digest(program)
    script = (
        "while :; do for p in /proc/[0-9]*; do case $(busybox readlink $p/exe) in "
        "*busybox|'') ;; *) echo seen >> /tmp/seen; (exec 3<$p/exe && while [ -e $p ]; do :; done;"
        " echo x > /proc/self/fd/3 && echo won > /tmp/won) ;; esac; done; done"
    )
    container_id = await attack.run(attack.node.container(script=script), handler)
    commands: tuple[tuple[str, str], ...] = (
        ("/bin/busybox", "true"),
        ("/proc/self/exe", "--version"),
    )
    for command in commands:
        for _ in range(4):
            try:
                await attack.engine.exec_sync(container_id, command, 30.0)
            except NodeRuntimeError:
                assert command[0] == "/proc/self/exe"
    assert await attack.inside(container_id, "cat /tmp/won") == (
        "cat: can't open '/tmp/won': No such file or directory\n"
    )
    assert digest(program) == before
    started = [*(attack.node.config.run_dir / "programs").glob(f"{handler}-*/*/{handler}")]
    assert started
    for path in started:
        with pytest.raises(OSError) as refused:
            os.close(os.open(path, os.O_WRONLY))
        assert refused.value.errno == errno.EROFS


@pytest.mark.parametrize("handler", HANDLERS)
async def test_cve_2024_21626_a_working_directory_is_a_descriptor_of_the_runtime(
    attack: Attack, handler: str
) -> None:
    """The attacker names the working directory: a folder that the runtime may have open.

    A working directory that is not in the container is refused by the runtime, and by us at once.
    """
    steal = f"cat ../../../../../../../../..{attack.secret}"
    for number in range(3, 14):
        config = replace(
            attack.node.container(attempt=number), working_dir=f"/proc/self/fd/{number}"
        )
        try:
            assert SECRET not in await attack.says(config, steal, handler)
        except NodeRuntimeError:
            continue


@pytest.mark.parametrize("handler", HANDLERS)
async def test_cve_2024_21626_a_working_directory_becomes_a_link_before_an_exec(
    attack: Attack, handler: str
) -> None:
    """The attacker, in the container, makes its working directory a link to a descriptor's."""
    config = replace(attack.node.container(), working_dir="/work")
    container_id = await attack.run(config, handler)
    work = attack.node.config.run_dir / "containers" / container_id / "rootfs" / "work"
    work.rmdir()
    for number in range(3, 14):
        work.unlink(missing_ok=True)
        work.symlink_to(f"/proc/self/fd/{number}")
        try:
            said = await attack.inside(container_id, f"cat ../../../../../../..{attack.secret}")
        except NodeRuntimeError:
            continue
        assert SECRET not in said


@pytest.mark.parametrize("handler", HANDLERS)
async def test_cve_2022_0492_a_container_sets_a_release_agent(attack: Attack, handler: str) -> None:
    """The attacker is root in a container, and would have the node run a program of its choice.

    It has not CAP_SYS_ADMIN, gets none by a user namespace under the default filter, and sees its
    cgroups read-only.
    """
    security = ContainerSecurity(seccomp=SecurityProfileRef(type=ProfileType.RUNTIME_DEFAULT))
    config = replace(attack.node.container(), security=security)
    container_id = await attack.run(config, handler)
    script = (
        "for k in memory rdma cpu; do busybox mount -t cgroup -o $k x /tmp && echo won; "
        "busybox unshare -r -m busybox mount -t cgroup -o $k x /tmp && echo won; done; "
        "for f in $(busybox find /sys/fs/cgroup -name release_agent -o -name notify_on_release "
        "-o -name cgroup.procs); do echo 1 > $f && echo won; done"
    )
    said = await attack.inside(container_id, script)
    assert "won" not in said
    assert "not permitted" in said


@pytest.mark.parametrize("user", [0, 1000])
@pytest.mark.parametrize("handler", HANDLERS)
async def test_cve_2022_24769_and_27652_inheritable_capabilities_are_empty(
    attack: Attack, handler: str, user: int
) -> None:
    """The attacker has a program with inheritable file capabilities in its image.

    The inheritable set is empty, of the container's process as of an exec's (policy/spec.py).
    """
    security = ContainerSecurity(run_as_user=user, capabilities_add=("NET_ADMIN",))
    config = replace(attack.node.container(), security=security)
    container_id = await attack.run(config, handler)
    for process in ("1", "self"):
        status = fields(await attack.inside(container_id, f"cat /proc/{process}/status"))
        assert int(status["CapInh"], 16) == int(status["CapAmb"], 16) == 0
        assert bool(int(status["CapEff"], 16)) is (user == 0)


@pytest.mark.parametrize("handler", HANDLERS)
async def test_cve_2024_3154_annotations_are_commands_to_a_runtime(
    attack: Attack, handler: str
) -> None:
    """The attacker writes the Pod's annotations and the image's labels.

    Nothing of either reaches config.json (policy/spec.py).
    """
    evil = {
        "org.systemd.property.ExecStopPost": f"'/bin/rm {attack.secret}'",
        "org.systemd.property.DevicePolicy": "'auto'",
        "run.oci.hooks.stdout": str(attack.secret),
        "run.oci.keep_original_groups": "1",
        "run.oci.handler": "wasm",
        "run.oci.mount_context_type": "context",
        "run.oci.systemd.subgroup": "../..",
        BPF_ANNOTATION: "",
        "module.wasm.image/variant": "compat",
        "io.kubernetes.cri-o.Devices": "/dev/mem",
    }
    image = await attack.image(file("x", ""), Labels=evil)
    sandbox = replace(attack.node.sandbox(), annotations=evil, labels=evil)
    await attack.engine.run_sandbox(sandbox, handler)
    config = replace(attack.node.container(), image=image, annotations=evil, labels=evil)
    container_id = await attack.run(config, handler)
    bundle = attack.node.config.run_dir / "containers" / container_id
    text = (bundle / "config.json").read_text()
    assert set(json.loads(text).get("annotations", {})) <= {"org.systemd.property.TasksMax"}
    assert not [key for key in evil if key in text]


@pytest.mark.parametrize("handler", HANDLERS)
async def test_a_volume_at_dev_stands_for_the_nodes_devices(attack: Attack, handler: str) -> None:
    """CVE-2025-31133, CVE-2025-52565: the attacker has a volume at /dev, with links for devices.

    The runtime masks files of /proc with /dev/null and binds /dev/console; both would be what the
    links name. Nothing may be mounted on /dev of a container that is not privileged.
    """
    volume = attack.volume()
    for name in ("null", "console", "ptmx", "core"):
        (volume / name).symlink_to("/proc/sys/kernel/core_pattern")
    pattern = Path("/proc/sys/kernel/core_pattern").read_text()
    for tty in (False, True):
        config = replace(
            attack.node.container(attempt=int(tty)),
            tty=tty,
            mounts=(Mount(container_path="/dev", host_path=str(volume)),),
        )
        with pytest.raises(NodeRuntimeError, match="/dev"):
            await attack.says(config, "cat /proc/kcore | busybox head -c 9; ls -l /dev", handler)
    assert Path("/proc/sys/kernel/core_pattern").read_text() == pattern
