from __future__ import annotations

import os
from pathlib import Path

import pytest

from noderuntime.errors import HostError, InvalidArgumentError
from noderuntime.host.users import FILE_LIMIT_BYTES, resolve_user
from noderuntime.policy.model import ResolvedUser

PASSWD = """root:x:0:0:root:/root:/bin/sh
app:x:1000:1001:App:/home/app:/bin/sh
1000:x:0:0:a number as a name:/:/bin/sh
toobig:x:4294967296:4294967296::/:/bin/sh
minusone:x:4294967295:0::/:/bin/sh
negative:x:-1:0::/:/bin/sh
short:x:5
arabic:x:٣:0::/:/bin/sh
app:x:0:0:a second app:/:/bin/sh
"""
GROUP = """root:x:0:
app:x:1001:
web:x:2000:other,app
db:x:2001:app
wheel:x:4294967296:app
1001:x:0:app
"""


@pytest.fixture
def rootfs(tmp_path: Path) -> Path:
    root = tmp_path / "rootfs"
    (root / "etc").mkdir(parents=True)
    (root / "etc/passwd").write_text(PASSWD)
    (root / "etc/group").write_text(GROUP)
    return root


def user(uid: int, gid: int, *groups: int) -> ResolvedUser:
    return ResolvedUser(uid=uid, gid=gid, additional_gids=groups)


@pytest.mark.parametrize(
    ("spec", "expected"),
    [
        pytest.param("", user(0, 0, 0), id="nobody said"),
        pytest.param("app", user(1000, 1001, 1001, 2000, 2001, 0), id="name"),
        pytest.param("1000", user(1000, 1001, 1001, 2000, 2001, 0), id="number is never a name"),
        pytest.param("app:web", user(1000, 2000, 2000, 2001, 0), id="name and group"),
        pytest.param(
            "app:1001", user(1000, 1001, 1001, 2000, 2001, 0), id="group number is no name"
        ),
        pytest.param("7:8", user(7, 8, 8), id="numbers of nobody"),
        pytest.param("7", user(7, 0, 0), id="number of nobody"),
        pytest.param("4294967294", user(4294967294, 0, 0), id="the last number"),
    ],
)
def test_users_are_resolved(rootfs: Path, spec: str, expected: ResolvedUser) -> None:
    assert resolve_user(rootfs, spec) == expected


def test_strict_groups_are_the_pods_alone(rootfs: Path) -> None:
    found = resolve_user(rootfs, "app", supplemental=(3000,), strict=True)
    assert found == user(1000, 1001, 1001, 3000)


def test_group_and_supplemental_groups_of_the_pod_are_merged(rootfs: Path) -> None:
    found = resolve_user(rootfs, "app:web", group=3000, supplemental=(5, 2000))
    assert found == user(1000, 3000, 3000, 5, 2000, 2001, 0)


@pytest.mark.parametrize(
    ("spec", "message"),
    [
        pytest.param("4294967295", "user 4294967295 is out of range", id="minus one"),
        pytest.param("4294967296", "out of range", id="zero again"),
        pytest.param("0:4294967296", "group 4294967296 is out of range", id="group of zero again"),
        pytest.param("99999999999", "'99999999999' is not in", id="longer than a number"),
        pytest.param("nobody", "user 'nobody' is not in the image's /etc/passwd", id="unknown"),
        pytest.param("app:none", "group 'none' is not in the image's /etc/group", id="no group"),
        pytest.param("toobig", "not in", id="an overflow in passwd"),
        pytest.param("minusone", "not in", id="minus one in passwd"),
        pytest.param("negative", "not in", id="a negative number in passwd"),
        pytest.param("short", "not in", id="a short line"),
        pytest.param("arabic", "not in", id="digits of another script"),
        pytest.param("app:wheel", "not in", id="an overflow in group"),
        pytest.param("a:b:c", "not of the form", id="three parts"),
        pytest.param(" 0", "not in", id="a space"),
        pytest.param("+0", "not in", id="a sign"),
        pytest.param("٣", "not in", id="another script"),
    ],
)
def test_what_is_no_user_is_refused(rootfs: Path, spec: str, message: str) -> None:
    with pytest.raises(InvalidArgumentError) as caught:
        resolve_user(rootfs, spec)
    assert message in str(caught.value)


@pytest.mark.parametrize("number", [-1, 2**32 - 1, 2**32])
def test_groups_of_the_pod_out_of_range_are_refused(rootfs: Path, number: int) -> None:
    with pytest.raises(InvalidArgumentError, match="out of range"):
        resolve_user(rootfs, "0", group=number)
    with pytest.raises(InvalidArgumentError, match="out of range"):
        resolve_user(rootfs, "0", supplemental=(number,))


def test_an_image_without_the_files_has_numbers_only(tmp_path: Path) -> None:
    assert resolve_user(tmp_path, "5:6") == user(5, 6, 6)
    with pytest.raises(InvalidArgumentError, match="not in"):
        resolve_user(tmp_path, "app")
    with pytest.raises(HostError, match="no such file"):
        resolve_user(tmp_path / "gone", "5")


def test_links_do_not_leave_the_image(rootfs: Path, tmp_path: Path) -> None:
    (tmp_path / "secret").write_text("host:x:77:77::/:/bin/sh\n")
    (rootfs / "etc/passwd").unlink()
    (rootfs / "etc/passwd").symlink_to("../../secret")
    with pytest.raises(InvalidArgumentError, match="not in"):
        resolve_user(rootfs, "host")
    (rootfs / "etc/passwd").unlink()
    (rootfs / "etc/passwd").symlink_to("/proc/self/root/etc/passwd")
    assert resolve_user(rootfs, "0") == user(0, 0, 0)
    (rootfs / "etc/passwd").unlink()
    (rootfs / "etc/passwd").symlink_to("/opt/passwd")  # within the image it may point anywhere
    (rootfs / "opt").mkdir()
    (rootfs / "opt/passwd").write_text("there:x:88:89::/:/bin/sh\n")
    assert resolve_user(rootfs, "there") == user(88, 89, 89)


def test_files_that_are_none_are_refused(rootfs: Path) -> None:
    passwd = rootfs / "etc/passwd"
    passwd.write_text("#" * (FILE_LIMIT_BYTES + 1))
    with pytest.raises(HostError, match="larger than"):
        resolve_user(rootfs, "app")
    passwd.unlink()
    os.mkfifo(passwd)
    with pytest.raises(HostError, match="not a regular file"):
        resolve_user(rootfs, "app")
    passwd.unlink()
    passwd.mkdir()
    with pytest.raises(HostError, match="not a regular file"):
        resolve_user(rootfs, "app")


def test_bytes_that_are_no_text_do_no_harm(rootfs: Path) -> None:
    (rootfs / "etc/passwd").write_bytes(b"\xff\xfe:x:1:1::/:/bin/sh\nok:x:5:6::/:\xff\n")
    assert resolve_user(rootfs, "ok") == user(5, 6, 6)
