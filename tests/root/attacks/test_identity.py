"""Attacks by who a process runs as: users and groups of hostile images and Pods."""

from __future__ import annotations

import tarfile
from dataclasses import replace

import pytest

from noderuntime.cri.convert import container_config
from noderuntime.cri.runtime_v1 import api_pb2 as pb
from noderuntime.errors import HostError, InvalidArgumentError, NodeRuntimeError
from noderuntime.policy.model import ContainerSecurity
from tests.root.attacks.attack_kit import HANDLERS, Attack, file, link, special
from tests.root.engine_kit import IMAGE

GROUPS = "root:x:0:\nstaff:x:50:app\nnobody:x:65534:other\n"
PASSWD = "root:x:0:0:::\napp:x:1000:1000:::\n"


@pytest.mark.parametrize("handler", HANDLERS)
@pytest.mark.parametrize(("strict", "wanted"), [(False, "1000 7 50"), (True, "1000 7")])
async def test_cve_2022_2995_and_2023_25173_groups_are_the_ones_asked_for(
    attack: Attack, handler: str, strict: bool, wanted: str
) -> None:
    """The attacker hopes for a group that denies it a file to be missing, or for one of root's.

    The primary group is among the supplementary ones; of the image's only those of the user, and with
    supplementalGroupsPolicy Strict none (host/users.py).
    """
    image = await attack.image(file("etc/passwd", PASSWD), file("etc/group", GROUPS))
    security = ContainerSecurity(
        run_as_user=1000, supplemental_groups=(7,), supplemental_groups_strict=strict
    )
    config = replace(attack.node.container(), image=image, security=security)
    container_id = await attack.run(config, handler)
    for path in ("/proc/1/status", "/proc/self/status"):
        said = await attack.inside(container_id, f"busybox grep Groups: {path}")
        assert sorted(said.split()[1:]) == sorted(wanted.split())


@pytest.mark.parametrize(
    "user",
    [
        "4294967295",
        "4294967296",
        "2147483648:4294967296",
        "99999999999999999999",
        "-1",
        "1000:-1",
        "0x3e8",
        "1000:0:0",
        "+0",
        "\u0660",
    ],
)
async def test_cve_2024_40635_a_number_of_the_image_becomes_root(attack: Attack, user: str) -> None:
    """The attacker's image has a USER that is no ID: to a 32-bit field it may be 0.

    It is refused by what it is (host/users.py).
    """
    image = await attack.image(file("etc/passwd", PASSWD), User=user)
    with pytest.raises(InvalidArgumentError):
        await attack.create(replace(attack.node.container(), image=image))


@pytest.mark.parametrize("number", [-1, 2**32 - 1, 2**32, 2**63 - 1])
def test_cve_2024_40635_a_number_of_the_pod_becomes_root(number: int) -> None:
    """The attacker writes the Pod. What is no ID is refused by the field (cri/convert_security.py)."""
    asked = pb.ContainerConfig(image=pb.ImageSpec(image=IMAGE))
    asked.metadata.name = "app"
    asked.linux.security_context.run_as_user.value = number
    with pytest.raises(InvalidArgumentError, match="run_as_user"):
        container_config(asked)


@pytest.mark.parametrize(
    "passwd",
    [
        "app:x:4294967296:0:::",
        "app:x:-1:0:::",
        "app:x::0:::",
        "app:x:0",
        "app\0:x:0:0:::",
        "1000:x:0:0:::\napp:x:4294967295:0:::",
        "app:x:0x0:0:::\n" + "x" * 100_000,
    ],
)
async def test_a_hostile_passwd_gives_no_user(attack: Attack, passwd: str) -> None:
    """The attacker writes /etc/passwd of its image. A line that is not well formed does not exist."""
    image = await attack.image(file("etc/passwd", passwd), User="app")
    with pytest.raises(InvalidArgumentError, match="is not in the image's /etc/passwd"):
        await attack.create(replace(attack.node.container(), image=image))


async def test_a_number_is_a_number_whatever_user_has_that_name(attack: Attack) -> None:
    """CVE-2016-3697: the attacker's passwd has a user named 1000 that is root."""
    image = await attack.image(file("etc/passwd", "1000:x:0:0:::\n"), User="1000")
    said = await attack.says(replace(attack.node.container(), image=image), "id -u")
    assert said == "1000"


@pytest.mark.parametrize("name", ["etc/passwd", "etc/group"])
@pytest.mark.parametrize("kind", ["fifo", "device", "folder", "large", "link", "loop"])
async def test_a_passwd_that_is_no_file_neither_hangs_nor_leads_out(
    attack: Attack, name: str, kind: str
) -> None:
    """The attacker's image has something else there. It is opened within the root, as a file only."""
    users = attack.secret.parent / "secret"
    content = "app:x:0:0:::\n" if name == "etc/passwd" else "app:x:0:\n"
    outside = attack.node.root / "logs" / "file"
    outside.parent.mkdir(exist_ok=True)
    outside.write_text(content)
    device = special(name, tarfile.CHRTYPE)
    device.devmajor, device.devminor = 1, 5  # /dev/zero
    entries: dict[str, tarfile.TarInfo | tuple[tarfile.TarInfo, bytes]] = {
        "fifo": special(name, tarfile.FIFOTYPE),
        "device": device,
        "folder": special(name, tarfile.DIRTYPE),
        "large": file(name, content + "x" * (1 << 20)),
        "link": link(name, "../" * 12 + str(outside).lstrip("/")),
        "loop": link(name, "passwd" if name == "etc/passwd" else "group"),
    }
    entry = entries[kind]
    user = "app" if name == "etc/passwd" else "0:app"
    with pytest.raises((HostError, InvalidArgumentError, NodeRuntimeError)):
        image = await attack.image(entry, User=user)
        await attack.create(replace(attack.node.container(), image=image))
    assert users.exists()
