"""Attacks on the node around a container: kernel parameters, folders, sockets, loopback, texts."""

from __future__ import annotations

import json
import os
import subprocess
from collections.abc import AsyncIterator
from dataclasses import replace
from pathlib import Path

import pytest

from noderuntime.cri.convert import container_config, sandbox_config
from noderuntime.cri.runtime_v1 import api_pb2 as pb
from noderuntime.errors import (
    FailedPreconditionError,
    InvalidArgumentError,
    NodeRuntimeError,
    UnimplementedError,
)
from noderuntime.host.own_mounts import misplaced
from tests.root.attacks.attack_kit import HANDLERS, Attack, file
from tests.root.bridge_kit import Lab, made_lab
from tests.root.engine_kit import IMAGE
from tests.waiting import until

CORE_PATTERN = Path("/proc/sys/kernel/core_pattern")
NOBODY = 65534
ESCAPES = ("a\nb", "a\x1b[31mb", "a\rb", "a\x00b", "a\u2028b", "a\x7fb", "a\x9b31m")


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("kernel.shm_rmid_forced", "1+kernel.core_pattern=|/evil"),
        ("kernel.shm_rmid_forced", "1\nkernel.core_pattern=|/evil"),
        ("kernel.core_pattern", "|/evil"),
        ("kernel.shm_rmid_forced=1+kernel.core_pattern", "|/evil"),
        ("net.ipv4.../../../kernel/core_pattern", "|/evil"),
        ("net/../kernel/core_pattern", "|/evil"),
        ("net/ipv4/../../kernel/core_pattern", "|/evil"),
        ("net.ipv4.conf.all.x\0", "1"),
    ],
)
async def test_cve_2022_0811_a_sysctl_says_two_things(
    attack: Attack, name: str, value: str
) -> None:
    """The attacker writes the Pod's sysctls, hoping for a helper that splits or joins its arguments.

    There is no helper: name and value are judged, then written as they are, in the Pod's own
    namespaces (policy/sysctls.py, host/netns.py).
    """
    before = CORE_PATTERN.read_text()
    with pytest.raises(NodeRuntimeError):
        await attack.engine.run_sandbox(replace(attack.node.sandbox(), sysctls={name: value}), "")
    assert CORE_PATTERN.read_text() == before


@pytest.mark.parametrize("handler", HANDLERS)
async def test_cve_2024_25621_and_2021_41103_a_user_of_the_node_reads_what_is_the_runtimes(
    attack: Attack, handler: str
) -> None:
    """The attacker is a user of the node without rights, who knows every path from /proc/mounts.

    Nothing of the runtime's is writable to it, no list, no root of a container can be entered, and so
    no program that an image has with a set-user-ID bit can be run.
    """
    image = await attack.image(file("bin/suid", b"#!/bin/sh\n", mode=0o4755))
    container_id = await attack.run(replace(attack.node.container(), image=image), handler)
    config = attack.node.config
    bundle = config.run_dir / "containers" / container_id
    layer = next((config.state_dir / "images" / "layers").glob("*/diff/bin/suid"))
    targets = (
        *(bundle / "rootfs" / "bin" / "suid", bundle / "rootfs", bundle / "config.json", layer),
        *(bundle / "volumes", config.state_dir / "containers"),
        *(config.run_dir / "programs").iterdir(),
        config.state_dir / "snapshots" / container_id / "upper",
        *(config.run_dir / "sandboxes").glob("*/*"),
        *(config.run_dir / "oci" / handler / container_id).iterdir(),
    )
    reached = as_nobody([path for path in targets if path.exists()])
    assert reached == []
    for top in (config.run_dir, config.state_dir):
        for path in (top, *top.iterdir()):
            assert not path.stat().st_mode & 0o022, path


def as_nobody(paths: list[Path]) -> list[str]:
    """Return what a user without rights can open, list or execute of these."""
    script = (
        'for p; do if [ -d "$p" ]; then ls "$p" >/dev/null 2>&1 && echo "$p"; '
        'elif [ -x "$p" ] || cat "$p" >/dev/null 2>&1; then echo "$p"; fi; done; true'
    )
    done = subprocess.run(
        ("/bin/sh", "-c", script, "sh", *map(str, paths)),
        check=True,
        capture_output=True,
        text=True,
        user=NOBODY,
        group=NOBODY,
        extra_groups=(),
        cwd="/",
    )
    return done.stdout.splitlines()


@pytest.mark.parametrize("handler", HANDLERS)
async def test_cve_2020_15257_no_socket_has_a_name_without_a_file(
    attack: Attack, handler: str
) -> None:
    """The attacker shares the node's network namespace, and with it all abstract sockets.

    Neither we nor the monitors have one: theirs are files below run_dir.
    """
    container_id = await attack.run(replace(attack.node.container(), stdin=True), handler)
    stream = await attack.engine.attach(container_id)
    await attack.engine.exec_sync(container_id, ("/bin/busybox", "true"), 10.0)
    bundle = attack.node.config.run_dir / "containers" / container_id
    processes = (str(os.getpid()), (bundle / "conmon.pid").read_text().strip())
    ours = {
        os.readlink(entry.path).removeprefix("socket:[").removesuffix("]")  # noqa: PTH115
        for pid in processes
        for entry in os.scandir(f"/proc/{pid}/fd")
        if Path(entry.path).is_socket()
    }
    rows = [line.split() for line in Path("/proc/net/unix").read_text().splitlines()[1:]]
    named = [row[7] for row in rows if row[6] in ours and len(row) > 7]
    await stream.close()
    assert named
    assert [name for name in named if name.startswith("@")] == []


@pytest.fixture
async def lab() -> AsyncIterator[Lab]:
    async with made_lab() as made:
        yield made


async def test_cve_2020_8558_a_pod_reaches_the_loopback_of_the_node(lab: Lab) -> None:
    """The attacker is root in a Pod on the built-in bridge, and sends to 127.0.0.2 by its gateway.

    The bridge has no route_localnet, and its table drops what comes from Pods to there.
    """
    network = lab.network()
    pod = await lab.pod()
    await network.attach(pod)
    lab.run(pod.netns, "ip", "route", "add", "127.0.0.2", "via", "10.99.0.1")
    lab.run(pod.netns, "ip", "rule", "add", "pref", "0", "to", "127.0.0.2", "table", "main")
    lab.run(pod.netns, "sh", "-c", "echo 1 >/proc/sys/net/ipv4/conf/eth0/route_localnet")
    with pytest.raises(OSError):
        await lab.talk((lab.pin("host"), "127.0.0.2", 91), pod.netns, ("127.0.0.2", 91))
    await network.detach(pod)
    await lab.remove(pod)
    await until(lambda: lab.links() == [])


@pytest.mark.parametrize("handler", HANDLERS)
async def test_cve_2024_8676_a_checkpoint_is_restored_with_its_mounts(
    attack: Attack, handler: str
) -> None:
    """The attacker has an image that is a checkpoint's archive, which would bring its own mounts.

    Checkpoints are neither made nor restored; what the archive has are files of an image.
    """
    spec = {"mounts": [{"destination": "/x", "type": "bind", "source": str(attack.secret.parent)}]}
    image = await attack.image(
        file("spec.dump", json.dumps(spec)),
        file("config.dump", json.dumps({"rootfsImageName": IMAGE})),
        Labels={"org.criu.checkpoint.container.name": "app"},
    )
    config = replace(
        attack.node.container(),
        image=image,
        annotations={"org.criu.checkpoint.container.name": "app"},
    )
    container_id = await attack.run(config, handler)
    assert "secret" not in await attack.inside(container_id, "ls -R /x; cat /proc/mounts")
    with pytest.raises((FailedPreconditionError, UnimplementedError), match="cannot be checkpoint"):
        await attack.engine.checkpoint_container(container_id)


@pytest.mark.parametrize("text", ESCAPES)
def test_a_name_has_newlines_or_the_escapes_of_a_terminal(text: str) -> None:
    """The attacker names things so that logs, events and terminals show what it wants.

    Each is refused by its field, in one line that is safe to print (cri/texts.py).
    """
    container = pb.ContainerConfig(image=pb.ImageSpec(image=IMAGE))
    container.metadata.name = text
    path = pb.ContainerConfig(image=pb.ImageSpec(image=IMAGE), log_path=text)
    path.metadata.name = "app"
    image = pb.ContainerConfig(image=pb.ImageSpec(image=f"{text} "))
    image.metadata.name = "app"
    for asked in (container, path, image):
        with pytest.raises(InvalidArgumentError) as refused:
            container_config(asked)
        assert str(refused.value).isprintable()
    for field in ("name", "namespace", "uid"):
        pod = pb.PodSandboxConfig()
        pod.metadata.name = pod.metadata.namespace = pod.metadata.uid = "x"
        setattr(pod.metadata, field, text)
        with pytest.raises(InvalidArgumentError) as refused:
            sandbox_config(pod)
        assert str(refused.value).isprintable()


@pytest.mark.parametrize("text", ESCAPES)
async def test_an_image_has_texts_with_the_escapes_of_a_terminal(attack: Attack, text: str) -> None:
    """The attacker writes the image's config. What is quoted of it is one printable line."""
    with pytest.raises(NodeRuntimeError) as refused:
        image = await attack.image(file("x", ""), User=f"{text}:{text}", StopSignal=text)
        await attack.create(replace(attack.node.container(), image=image))
    assert str(refused.value).isprintable()


def test_a_mount_is_the_runtimes_own_only_where_it_must_be() -> None:
    """The attacker has volumes, in memory or on a disk, below /proc by links; see own_mounts.py."""
    own = (
        "91 90 0:45 / /proc rw - proc proc rw",
        "92 90 0:46 / /dev rw - tmpfs tmpfs rw,mode=755",
        "61 91 0:45 /sys /proc/sys ro - proc proc rw",
        "62 91 0:46 /null /proc/keys rw - tmpfs tmpfs rw,mode=755",
        "63 91 0:6 /null /proc/kcore ro - devtmpfs devtmpfs rw",
        "64 91 0:50 / /proc/acpi ro - tmpfs tmpfs rw,size=0k",
    )

    def found(*more: str) -> str:
        table = "\n".join((*own, *more)).replace(" - ", ",relatime - ")
        return misplaced(table.encode(), ["/proc/uptime"])

    assert found("65 91 0:70 /f /proc/uptime rw - fuse.lxcfs lxcfs rw") == ""
    assert found() == ""
    for line, path in (
        ("65 90 0:60 / /dev rw - tmpfs tmpfs rw", "/dev"),
        ("65 90 0:60 / /proc rw - tmpfs tmpfs rw", "/proc"),
        ("65 91 0:60 / /proc/1/attr rw - tmpfs tmpfs rw", "/proc/1/attr"),
        ("65 91 0:60 /null /proc/timer_list rw - tmpfs tmpfs rw", "/proc/timer_list"),
        ("65 91 0:45 /kcore /proc/timer_list rw - proc proc rw", "/proc/timer_list"),
        ("65 91 254:0 /volume /proc/sys ro - ext4 /dev/vda rw", "/proc/sys"),
    ):
        assert found(line) == path
