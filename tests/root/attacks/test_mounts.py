"""Attacks by what is mounted where: links in images and volumes, names that lead out."""

from __future__ import annotations

import shutil
import threading
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import replace
from pathlib import Path

import pytest

from noderuntime.cri.convert import container_config
from noderuntime.cri.runtime_v1 import api_pb2 as pb
from noderuntime.errors import FailedPreconditionError, InvalidArgumentError, NodeRuntimeError
from noderuntime.policy.model import ContainerSecurity, Mount
from tests.root.attacks.attack_kit import HANDLERS, SECRET, Attack, file, link
from tests.root.engine_kit import IMAGE

HOSTILE_NULL = "/proc/sys/kernel/core_pattern"


def volume(path: Path, at: str) -> Mount:
    return Mount(container_path=at, host_path=str(path))


def hostile_devices(attack: Attack) -> Path:
    """Return a volume with links where the OCI runtime looks for devices."""
    folder = attack.volume("devices")
    for name in ("null", "console", "ptmx", "core"):
        (folder / name).symlink_to(HOSTILE_NULL)
    return folder


@contextmanager
def swapping(name: Path, target: str) -> Iterator[None]:
    """Let a name be a folder and a link by turns, as another container of the Pod could."""
    over = threading.Event()
    folder, other = name.with_name("folder"), name.with_name("link")
    folder.mkdir()
    other.symlink_to(target)

    def swap() -> None:
        while not over.is_set():
            for now in (folder, other):
                try:
                    now.rename(name)
                except OSError:  # an OCI runtime has made a folder in between
                    shutil.rmtree(name, ignore_errors=True)
                    continue
                with suppress(OSError):
                    name.rename(now)

    thread = threading.Thread(target=swap)
    thread.start()
    try:
        yield
    finally:
        over.set()
        thread.join()


@pytest.mark.parametrize("handler", HANDLERS)
async def test_cve_2021_30465_a_mount_destination_is_swapped_for_a_link(
    attack: Attack, handler: str
) -> None:
    """The attacker swaps a name in a shared volume, below which another volume is to be mounted.

    The OCI runtime opens destinations within the container's root, and sources of the node are
    descriptors (engine/host_paths.py). What is mounted stays in the container, wherever that is.
    runc before 1.1.14 may make the empty folder to mount on elsewhere (CVE-2024-45310).
    """
    shared, other = attack.volume("shared"), attack.volume("other")
    victim = attack.node.root / "victim"
    with swapping(shared / "name", str(victim)):
        for number in range(6):
            config = replace(
                attack.node.container(attempt=number),
                mounts=(volume(shared, "/shared"), volume(other, "/shared/name/x")),
            )
            try:
                said = await attack.says(config, f"cat {attack.secret} /shared/*/secret", handler)
            except NodeRuntimeError:
                continue
            assert SECRET not in said
    made = victim / "x"
    if handler == "runc" and made.is_dir():  # CVE-2024-45310: empty, where the race was won
        made.rmdir()


@pytest.mark.parametrize("handler", HANDLERS)
async def test_cve_2025_31133_a_link_of_the_image_puts_a_volume_on_dev(
    attack: Attack, handler: str
) -> None:
    """The attacker's image has a link to /dev, its Pod a volume on the link: /dev/null is a link too.

    The runtime would mask files of /proc with what that link names. What is mounted is looked at
    before the process starts (host/own_mounts.py).
    """
    image = await attack.image(link("innocent", "/dev"))
    devices = volume(hostile_devices(attack), "/innocent")
    config = replace(attack.node.container(), image=image, mounts=(devices,))
    with pytest.raises(NodeRuntimeError) as refused:
        await attack.says(config, "cat /proc/mounts", handler)
    if handler == "runc":
        assert isinstance(refused.value, FailedPreconditionError)
        assert "a volume is mounted on /dev" in str(refused.value)


@pytest.mark.parametrize("handler", HANDLERS)
async def test_cve_2025_31133_masks_are_there_whatever_a_volume_does_meanwhile(
    attack: Attack, handler: str
) -> None:
    """The attacker swaps a name of a volume for a link to /dev, while a container starts.

    It is started with all masks, or not (host/own_mounts.py).
    """
    shared, devices = attack.volume("shared"), hostile_devices(attack)
    with swapping(shared / "name", "/dev"):
        for number in range(6):
            config = replace(
                attack.node.container(attempt=number),
                mounts=(volume(shared, "/shared"), volume(devices, "/shared/name")),
            )
            try:
                said = await attack.says(config, "cat /proc/keys /proc/timer_list", handler)
            except NodeRuntimeError:
                continue
            assert said == ""


@pytest.mark.parametrize("handler", HANDLERS)
async def test_cve_2025_52565_the_console_is_a_link(attack: Attack, handler: str) -> None:
    """The attacker's image has links where a terminal is bound: /dev/console, /dev/pts/0.

    /dev is the container's own tmpfs, whatever the image has there.
    """
    names = ("dev/console", "dev/null", "dev/ptmx", "dev/pts/0")
    image = await attack.image(*(link(name, HOSTILE_NULL) for name in names))
    config = replace(attack.node.container(), image=image, tty=True)
    said = await attack.says(
        config, f"busybox stat -c %F /dev/console; cat {HOSTILE_NULL}", handler
    )
    assert said.split("\n")[0].strip() == "character special file"
    mounts = await attack.says(
        replace(config, attempt=1), "busybox grep ' /dev/console ' /proc/self/mountinfo", handler
    )
    assert " - devpts " in mounts


@pytest.mark.parametrize("at", ["/proc", "/proc/self/attr", "/proc/1", "/fake", "/fake/self/attr"])
@pytest.mark.parametrize("handler", HANDLERS)
async def test_cve_2019_16884_and_2025_52881_a_volume_is_mounted_over_proc(
    attack: Attack, handler: str, at: str
) -> None:
    """The attacker has a volume over /proc, by its name or by a link of the image.

    What the runtime writes to /proc to confine the process would go to the volume. By name it is
    refused at once (policy/mounts.py); what a link leads to, by crun and runc or before the start.
    """
    fake = attack.volume("fake")
    for name in ("self/attr", "1", "attr"):
        (fake / name).mkdir(parents=True, exist_ok=True)
    for name in ("exec", "current"):
        (fake / name).touch()
    image = await attack.image(link("fake", "/proc"))
    config = replace(attack.node.container(), image=image, mounts=(volume(fake, at),))
    with pytest.raises(NodeRuntimeError) as refused:
        await attack.says(config, "cat /proc/self/attr/current", handler)
    if at.startswith("/proc"):
        assert isinstance(refused.value, InvalidArgumentError)
        assert "nothing may be mounted on /proc" in str(refused.value)


@pytest.mark.parametrize("handler", HANDLERS)
async def test_cve_2019_16884_an_image_declares_a_volume_over_proc(
    attack: Attack, handler: str
) -> None:
    """The attacker's image has VOLUME /proc, and files there. Declared volumes are not mounted."""
    image = await attack.image(
        file("proc/self/status", "Seccomp: 2"), Volumes={"/proc": {}, "/proc/self/attr": {}}
    )
    config = replace(attack.node.container(), image=image)
    said = await attack.says(config, "busybox grep -c ' /proc ' /proc/mounts; cat /proc/1/status")
    assert said.startswith("1\n")
    assert "CapBnd" in said


async def test_cve_2022_23648_a_volume_of_the_image_climbs_out_of_it(attack: Attack) -> None:
    """The attacker's image declares a volume by a path that climbs, and has links that do.

    Declared volumes are not copied; a sub path of an image volume is resolved in the image
    (engine/image_volumes.py), and one that climbs is refused.
    """
    up = "/.." * 12
    image = await attack.image(
        link("out", f"{up}{attack.secret.parent}"), Volumes={f"{up}{attack.secret.parent}": {}}
    )
    mount = Mount(container_path="/image", image=image, readonly=True)
    config = replace(attack.node.container(), image=image, mounts=(mount,))
    assert SECRET not in await attack.says(config, f"cat {attack.secret} /image/out/secret")
    climbing = replace(config, attempt=1, mounts=(replace(mount, image_sub_path="out"),))
    with pytest.raises(NodeRuntimeError, match=r"sub path out, cannot be mounted at /image"):
        await attack.create(climbing)
    asked = pb.ContainerConfig(image=pb.ImageSpec(image=IMAGE))
    asked.metadata.name = "app"
    asked.mounts.add(
        container_path="/image",
        readonly=True,
        image=pb.ImageSpec(image=IMAGE),
        image_sub_path="../../out",
    )
    with pytest.raises(InvalidArgumentError, match=r"image_sub_path: .* must not hold \.\."):
        container_config(asked)


@pytest.mark.parametrize("handler", HANDLERS)
async def test_cve_2024_5154_files_that_the_runtime_writes_are_links_in_the_image(
    attack: Attack, handler: str
) -> None:
    """The attacker's image has /etc/mtab and the files that we mount as links to files of the node.

    Nothing is written into the image; mounts are made within the container's root.
    """
    up = "../" * 12
    names = ("etc/mtab", "etc/resolv.conf", "etc/hostname", "etc/hosts", "run/log")
    targets = (f"{up}{attack.secret}", f"{up}{attack.secret.parent}/new", str(attack.secret))
    for number, target in enumerate(targets):
        image = await attack.image(*(link(name, target) for name in names))
        config = replace(attack.node.container(attempt=number), image=image)
        try:
            said = await attack.says(
                config, "cat /etc/mtab /etc/hosts; echo evil > /etc/mtab", handler
            )
        except NodeRuntimeError:
            continue
        assert SECRET not in said


@pytest.mark.parametrize("target", ["secret", "new"])
async def test_a_log_is_a_link_to_a_file_of_the_node(attack: Attack, target: str) -> None:
    """The attacker can write to the folder of its Pod's logs, and puts a link there.

    A log that is a link is refused (host/monitor.py). Who can write there meanwhile is a node's root.
    """
    logs = attack.node.root / "logs"
    logs.mkdir(exist_ok=True)
    (logs / "app_0.log").symlink_to(attack.secret.parent / target)
    container_id = await attack.create(attack.node.container(script="echo evil"))
    with pytest.raises(FailedPreconditionError, match="is a symbolic link"):
        await attack.engine.start_container(container_id)


async def test_a_termination_log_is_a_link_to_a_file_of_the_node(attack: Attack) -> None:
    """The attacker's image and its container put links where the termination message is.

    It is a file of the node bound there: the name cannot be taken away, and a link of the image is
    followed within the container.
    """
    message = attack.volume("containers").parent / "message"
    message.touch(mode=0o666)
    image = await attack.image(link("reason", str(attack.secret)))
    for number, at in enumerate(("/dev/termination-log", "/reason")):
        config = replace(
            attack.node.container(attempt=number), image=image, mounts=(volume(message, at),)
        )
        script = (
            f"busybox rm -f {at}; busybox ln -sf {attack.secret} {at}; echo evil >> {at}; "
            f"busybox rm -rf /reason; busybox ln -s {attack.secret} /reason"
        )
        await attack.says(config, script)
        assert message.is_file()
        assert not message.is_symlink()


@pytest.mark.parametrize("handler", HANDLERS)
async def test_a_volume_is_swapped_for_a_link_between_its_check_and_its_mount(
    attack: Attack, handler: str
) -> None:
    """The attacker swaps a folder that its Pod mounts. What was opened is what is mounted."""
    shared = attack.volume("shared")
    with swapping(shared / "name", str(attack.secret.parent)):
        for number in range(4):
            source = shared / "name"
            config = replace(
                attack.node.container(attempt=number),
                mounts=(volume(source, "/data"),),
                security=ContainerSecurity(run_as_user=65534),
            )
            with suppress(NodeRuntimeError):
                await attack.says(config, "echo evil > /data/secret", handler)
