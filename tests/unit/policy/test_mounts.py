from __future__ import annotations

import pytest

from noderuntime.errors import FailedPreconditionError, InvalidArgumentError
from noderuntime.policy.decide import admit_container
from noderuntime.policy.denial import Denial
from noderuntime.policy.model import ContainerGrant, HostFacts, Mount, Propagation
from noderuntime.policy.mounts import behind, is_kubelets, need_the_table, tmpfs_options
from tests.unit.policy.factories import (
    KUBELET,
    UID,
    admit,
    container,
    denied,
    granted,
    image,
    rules,
    sandbox,
    security,
)

SUBPATH = f"{KUBELET}/volume-subpaths/data/web/0"
ROOT = "22 1 8:1 / / rw - ext4 /dev/sda1 rw"
PROFILE = {"hostPaths": [{"path": "/var/log/web/"}, {"path": "/srv", "readOnly": False}]}


def mount(host_path: str, **fields: object) -> Mount:
    return Mount(container_path="/data", host_path=host_path, **fields)  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("path", "answer"),
    [
        pytest.param(f"{KUBELET}/volumes/kubernetes.io~secret/a", True, id="volume"),
        pytest.param(f"{KUBELET}/etc-hosts", True, id="etc-hosts"),
        pytest.param(f"{KUBELET}/containers/web/1a2b", True, id="termination log"),
        pytest.param(f"{KUBELET}//volumes/./a", True, id="written otherwise"),
        pytest.param(f"/data/kubelet/pods/{UID}/volumes/a", True, id="another kubelet root"),
        pytest.param(f"{KUBELET}/volumes", False, id="all volumes"),
        pytest.param(KUBELET, False, id="the Pod's folder"),
        pytest.param(f"{KUBELET}/other/x", False, id="another folder of it"),
        pytest.param(f"{KUBELET}/volumes/../../other/volumes/a", False, id="up"),
        pytest.param("/var/lib/kubelet/pods/other/volumes/a", False, id="another Pod"),
        pytest.param("/var/lib/kubelet/pods//volumes/a", False, id="no Pod"),
        pytest.param(f"/x-pods/{UID}/volumes/a", False, id="another name"),
    ],
)
def test_only_this_pods_own_folders_are_the_kubelets(path: str, answer: bool) -> None:
    assert is_kubelets(path, UID) is answer


@pytest.mark.parametrize(
    ("asked", "field"),
    [
        pytest.param(mount("/etc", readonly=True), "", id="not listed"),
        pytest.param(mount("/"), "", id="everything"),
        pytest.param(mount("/var/log/webs", readonly=True), "", id="a longer name"),
        pytest.param(mount("/var/log", readonly=True), "", id="above"),
        pytest.param(mount("/var/log/web/a"), ".readOnly", id="writable where read-only"),
        pytest.param(
            mount(f"{KUBELET}/volumes/a/b", propagation=Propagation.BIDIRECTIONAL),
            ".mountPropagation",
            id="bidirectional",
        ),
    ],
)
def test_a_mount_is_refused(asked: Mount, field: str) -> None:
    answer = denied(rules(PROFILE), container(mounts=(asked,)))
    assert answer.field == f"containers[web].volumeMounts[/data]{field}"
    assert granted(None, container(mounts=(asked,))).findings == ()


@pytest.mark.parametrize(
    "asked",
    [
        pytest.param(mount("/var/log/web", readonly=True), id="listed"),
        pytest.param(mount("/var/log/web/a/b", readonly=True), id="below"),
        pytest.param(mount("/srv/x"), id="writable"),
        pytest.param(mount(f"{KUBELET}/volumes/kubernetes.io~empty-dir/a"), id="volume"),
        pytest.param(
            mount("/srv", propagation=Propagation.HOST_TO_CONTAINER), id="host to container"
        ),
    ],
)
def test_a_mount_is_admitted(asked: Mount) -> None:
    assert granted(rules(PROFILE), container(mounts=(asked,))).findings == ()


def test_a_symlink_that_leads_out_of_an_allowed_path_is_refused() -> None:
    asked = container(mounts=(mount("/srv/link"),))
    answer = denied(rules(PROFILE), asked, host=HostFacts(real_paths={"/srv/link": "/etc"}))
    assert answer.value == "hostPath /etc (behind /srv/link)"


@pytest.mark.parametrize(
    ("mountinfo", "passes"),
    [
        pytest.param("", False, id="nothing is known"),
        pytest.param(ROOT, False, id="it is no mount"),
        pytest.param(f"{ROOT}\n30 22 8:1 /etc {SUBPATH} rw - ext4 x rw", False, id="of /etc"),
        pytest.param(
            f"{ROOT}\n30 22 8:1 {KUBELET}/volumes/e/x/sub {SUBPATH} rw - ext4 x rw",
            True,
            id="of a volume on the same file system",
        ),
        pytest.param(
            f"{ROOT}\n29 22 0:50 / {KUBELET}/volumes/e/x rw - tmpfs x rw\n"
            f"30 22 0:50 /sub {SUBPATH} rw - tmpfs x rw",
            True,
            id="of a volume with a file system",
        ),
        pytest.param(
            f"{ROOT}\n29 22 8:2 / /var/lib/kubelet rw - ext4 x rw\n"
            f"30 22 8:2 /pods/{UID}/volumes/e/x {SUBPATH} rw - ext4 x rw",
            True,
            id="where the kubelet has a disk of its own",
        ),
        pytest.param(
            f"{ROOT}\n30 22 8:1 /srv/a\\040b {SUBPATH} rw - ext4 x rw",
            True,
            id="of an allowed path",
        ),
        pytest.param(
            f"{ROOT}\n30 22 8:1 /var/lib/kubelet/pods/other/volumes/x {SUBPATH} rw - ext4 x rw",
            False,
            id="of another Pod's volume",
        ),
    ],
)
def test_a_subpath_is_judged_by_what_is_behind_it(mountinfo: str, passes: bool) -> None:
    answer = admit(
        rules(PROFILE), container(mounts=(mount(SUBPATH),)), host=HostFacts(mountinfo=mountinfo)
    )
    assert isinstance(answer, Denial) is not passes


def test_behind_names_every_place_where_the_folder_is_seen() -> None:
    table = (
        f"{ROOT}\n28 22 8:1 /srv /export rw - ext4 x rw\n30 22 8:1 /srv/a {SUBPATH} rw - ext4 x rw"
    )
    assert behind(SUBPATH, table) == ("/srv/a", "/export/a")


def test_read_only_paths_of_the_node_stay_read_only_below() -> None:
    mounts = (mount("/srv/x", readonly=True), mount(f"{KUBELET}/volumes/a/b", readonly=True))
    assert granted(rules(PROFILE), container(mounts=mounts[:1])).recursive_readonly == {"/data"}
    assert granted(rules(PROFILE), container(mounts=mounts[1:])).recursive_readonly == frozenset()


@pytest.mark.parametrize(
    ("path", "passes"),
    [
        ("/proc", False),
        ("/proc/self/attr", False),
        ("/proc/", False),
        ("/proc/meminfo", True),
        ("/procs", True),
        ("/host/proc", True),
    ],
)
def test_nothing_is_mounted_over_proc(path: str, passes: bool) -> None:
    volume = Mount(container_path=path, host_path=f"{KUBELET}/volumes/a/b")
    assert isinstance(admit(rules(), container(mounts=(volume,))), Denial) is not passes
    privileged = container(security(privileged=True), mounts=(volume,))
    assert not isinstance(admit(rules({"privileged": "Allow"}), privileged), Denial)


@pytest.mark.parametrize(
    ("container_path", "host_path"),
    [
        ("data", "/srv"),
        ("/data", "srv"),
        ("/a/../b", "/srv"),
        ("/a", "/srv/.."),
        ("/", "/srv"),
        ("/a\0", "/"),
    ],
)
def test_a_malformed_mount_is_an_invalid_argument(container_path: str, host_path: str) -> None:
    asked = Mount(container_path=container_path, host_path=host_path)
    with pytest.raises(InvalidArgumentError, match="volumeMounts"):
        admit(None, container(mounts=(asked,)))


TABLE = """
1 0 8:1 / / rw - ext4 /dev/sda rw
2 1 8:1 / /shared rw,relatime shared:5 - ext4 /dev/sda rw
3 1 8:1 / /slave rw master:5 propagate_from:2 - ext4 /dev/sda rw
4 2 8:1 / /shared/private rw - ext4 /dev/sda rw
5 2 8:1 / /shared/with\\040space rw shared:7 - ext4 /dev/sda rw
6 1 8:1 / /over rw shared:9 - ext4 /dev/sda rw
7 6 8:1 / /over rw - ext4 /dev/sda rw
"""


@pytest.mark.parametrize(
    ("path", "bidirectional", "to_container"),
    [
        ("/data", False, False),
        ("/shared", True, True),
        ("/shared/deep/below", True, True),
        ("/sharedness", False, False),
        ("/slave/x", False, True),
        ("/shared/private/x", False, False),
        ("/shared/with space", True, True),
        ("/over/x", False, False),
    ],
)
def test_propagation_needs_a_mount_that_propagates(
    path: str, bidirectional: bool, to_container: bool
) -> None:
    cases = (
        (Propagation.BIDIRECTIONAL, bidirectional),
        (Propagation.HOST_TO_CONTAINER, to_container),
    )
    for propagation, is_possible in cases:
        asked = container(mounts=(mount("/link", propagation=propagation),))
        host = HostFacts(mountinfo=TABLE, real_paths={"/link": path})
        arguments = (None, sandbox(), asked, image(), host)
        if is_possible:
            assert isinstance(admit_container(*arguments), ContainerGrant)
            continue
        with pytest.raises(FailedPreconditionError, match="mountPropagation: .* is not possible"):
            admit_container(*arguments)


def test_without_propagation_any_mount_will_do() -> None:
    host = HostFacts(mountinfo=TABLE)
    asked = container(mounts=(mount("/data"),))
    assert isinstance(admit_container(None, sandbox(), asked, image(), host), ContainerGrant)


@pytest.mark.parametrize(
    ("asked", "needed"),
    [
        (Mount(container_path="/d", host_path="/srv"), False),
        (
            Mount(container_path="/d", image="sha256:a", propagation=Propagation.BIDIRECTIONAL),
            False,
        ),
        (
            Mount(container_path="/d", host_path="/srv", propagation=Propagation.HOST_TO_CONTAINER),
            True,
        ),
        (Mount(container_path="/d", host_path=f"{KUBELET}//volume-subpaths/a/b/0"), True),
        (Mount(container_path="/dev//shm/", host_path=f"{KUBELET}/volumes/a/b"), True),
    ],
)
def test_the_mount_table_is_read_where_a_mount_needs_it(asked: Mount, needed: bool) -> None:
    assert need_the_table(
        container(mounts=(Mount(container_path="/a", host_path="/a"), asked))
    ) is (needed)


def test_the_mount_that_a_path_is_in_is_the_innermost_and_the_last() -> None:
    table = (
        "1 0 8:1 / / rw shared:1 - ext4 a rw\n"
        "2 1 0:5 / /srv/a\\040b rw - tmpfs t rw,size=1k\n"
        "3 1 0:6 / /srv/a rw - tmpfs t rw,size=2k\n"
        "4 2 0:7 / /srv/a\\040b rw master:3 - tmpfs t rw,size=3k\n"
        "broken\n"
    )
    assert tmpfs_options("/srv/a b/c", table) == "rw,size=3k"
    assert tmpfs_options("/srv/a b", table) == "rw,size=3k"
    assert tmpfs_options("/srv/a/x", table) == "rw,size=2k"
    assert tmpfs_options("/srv/ab", table) is None
    assert tmpfs_options("/srv/a", "") is None
