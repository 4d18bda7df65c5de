"""Which SELinux label a container gets, and what of it a Pod may ask for."""

from __future__ import annotations

from dataclasses import replace

import pytest

from noderuntime.policy import selinux, spec
from noderuntime.policy.model import HostFacts, LsmFacts, Mount, SelinuxLabels, SelinuxOptions
from noderuntime.policy.spec import SpecLayout
from tests.unit.policy.factories import (
    KUBELET,
    container,
    denied,
    granted,
    rules,
    sandbox,
    security,
)

WITH = LsmFacts(
    selinux=True,
    selinux_process="system_u:system_r:container_t:s0",
    selinux_file="system_u:object_r:container_file_t:s0",
    selinux_level="s0:c1,c2",
)
NO_POLICY = replace(WITH, selinux_process="", selinux_file="")
FILE = "system_u:object_r:container_file_t"
DECLARED: dict[str, object] = {"seLinux": {"type": "web_t"}}
FIXED: dict[str, object] = {"seLinux": {"level": "s0:c7", "user": "web_u", "role": "web_r"}}


def own(
    asked: SelinuxOptions | None = None,
    pod: SelinuxOptions | None = None,
    lsm: LsmFacts = WITH,
    *,
    privileged: bool = False,
) -> SelinuxLabels | None:
    """Return what the node's own handler grants."""
    asks = container(security(selinux=asked, privileged=privileged))
    place = sandbox(selinux=pod, privileged=privileged)
    return granted(None, asks, pod=place, host=HostFacts(lsm=lsm)).selinux


@pytest.mark.parametrize(
    ("asked", "pod", "process", "level"),
    [
        pytest.param(None, None, "system_u:system_r:container_t", "s0:c1,c2", id="nothing"),
        pytest.param(
            SelinuxOptions(type="x_t"), None, "system_u:system_r:x_t", "s0:c1,c2", id="type"
        ),
        pytest.param(
            None, SelinuxOptions(type="x_t"), "system_u:system_r:x_t", "s0:c1,c2", id="the Pod's"
        ),
        pytest.param(
            SelinuxOptions(user="u", role="r"),
            SelinuxOptions(user="v", level="s0:c9"),
            "u:r:container_t",
            "s0:c9",
            id="the container's before the Pod's",
        ),
        pytest.param(
            SelinuxOptions(level="s0:c3,c4"),
            SelinuxOptions(level="s0:c9"),
            "system_u:system_r:container_t",
            "s0:c3,c4",
            id="level",
        ),
    ],
)
def test_the_node_gives_what_is_asked_for_and_the_pods_level(
    asked: SelinuxOptions | None, pod: SelinuxOptions | None, process: str, level: str
) -> None:
    found = own(asked, pod)
    assert found == SelinuxLabels(process=f"{process}:{level}", mount=f"{FILE}:{level}")


def test_without_selinux_there_is_no_label_whatever_is_asked_for() -> None:
    assert own(SelinuxOptions(type="x_t"), lsm=LsmFacts()) is None


def test_a_privileged_container_has_a_label_only_if_it_asks_for_one() -> None:
    assert own(privileged=True) is None
    found = own(SelinuxOptions(type="spc_t"), privileged=True)
    assert found is not None
    assert found.process == "system_u:system_r:spc_t:s0:c1,c2"


def test_a_policy_that_has_nothing_for_containers_labels_only_who_asks() -> None:
    assert own(lsm=NO_POLICY) is None
    found = own(SelinuxOptions(type="x_t"), lsm=NO_POLICY)
    assert found == SelinuxLabels(
        process="system_u:system_r:x_t:s0:c1,c2", mount=f"{FILE}:s0:c1,c2"
    )


@pytest.mark.parametrize(
    ("profile", "process"),
    [
        pytest.param(DECLARED, "system_u:system_r:web_t:s0:c1,c2", id="type"),
        pytest.param(FIXED, "web_u:web_r:container_t:s0:c7", id="all else"),
        pytest.param({}, "system_u:system_r:container_t:s0:c1,c2", id="nothing"),
    ],
)
@pytest.mark.parametrize("privileged", [False, True])
def test_a_declared_label_holds_for_every_container(
    profile: dict[str, object], process: str, *, privileged: bool
) -> None:
    asks = container(security(privileged=privileged))
    profile = {**profile, "privileged": "Allow"}
    found = granted(rules(profile), asks, host=HostFacts(lsm=WITH)).selinux
    if privileged and "seLinux" not in profile:
        assert found is None
    else:
        assert found is not None
        assert found.process == process


@pytest.mark.parametrize("profile", [DECLARED, FIXED, {}])
@pytest.mark.parametrize(
    "asked",
    [
        SelinuxOptions(type="spc_t"),
        SelinuxOptions(user="root"),
        SelinuxOptions(role="x_r"),
        SelinuxOptions(level="s0"),
    ],
)
@pytest.mark.parametrize("of_the_pod", [False, True])
def test_a_pod_may_not_ask_for_another_label_than_the_declared(
    profile: dict[str, object], asked: SelinuxOptions, *, of_the_pod: bool
) -> None:
    [part] = [name for name in ("user", "role", "type", "level") if getattr(asked, name)]
    asks = container(security(selinux=None if of_the_pod else asked))
    place = sandbox(selinux=asked if of_the_pod else None)
    denial = denied(rules(profile), asks, pod=place, host=HostFacts(lsm=WITH))
    assert denial.field == f"containers[web].securityContext.seLinuxOptions.{part}"
    audited = rules({**profile, "auditSections": ["seLinux"]})
    grant = granted(audited, asks, pod=place, host=HostFacts(lsm=WITH))
    assert grant.selinux is not None
    assert getattr(asked, part) in grant.selinux.process
    assert len(grant.findings) == 1


def test_a_pod_may_say_what_is_declared() -> None:
    asked = SelinuxOptions(type="container_t", level="s0:c7", user="web_u", role="web_r")
    granted(rules(FIXED), container(security(selinux=asked)), host=HostFacts(lsm=WITH))


def test_a_path_of_the_node_is_relabelled_only_where_the_profile_allows_it() -> None:
    paths = {"hostPaths": [{"path": "/srv", "readOnly": False}]}
    mount = Mount(container_path="/data", host_path="/srv/data", selinux_relabel=True)
    asks = container(mounts=(mount,))
    host = HostFacts(lsm=WITH, real_paths={"/srv/data": "/srv/data"})
    assert "to be relabelled" in denied(rules(paths), asks, host=host).value
    assert "to be relabelled" in denied(rules({**paths, **DECLARED}), asks, host=host).value
    granted(rules({**paths, "seLinux": {"relabel": "Allow"}}), asks, host=host)
    volume = f"{KUBELET}/volumes/kubernetes.io~empty-dir/data"
    mount = Mount(container_path="/data", host_path=volume, selinux_relabel=True)
    host = HostFacts(lsm=WITH, real_paths={volume: volume})
    granted(rules(DECLARED), container(mounts=(mount,)), host=host)


def test_the_labels_are_written_down_for_the_container_and_for_execs() -> None:
    grant = granted(None, container(), host=HostFacts(lsm=WITH))
    document = spec.build(grant, SpecLayout(rootfs="/r"))
    process, linux = document["process"], document["linux"]
    assert isinstance(process, dict)
    assert isinstance(linux, dict)
    assert process["selinuxLabel"] == "system_u:system_r:container_t:s0:c1,c2"
    assert linux["mountLabel"] == f"{FILE}:s0:c1,c2"
    label = spec.exec_process(process, ("true",), tty=False)["selinuxLabel"]
    assert label == process["selinuxLabel"]


def test_every_pair_of_categories_is_one_of_a_kind_and_in_order() -> None:
    assert selinux.level_of_pod(0) == "s0:c0,c1"
    assert selinux.level_of_pod(selinux.CATEGORIES - 1) == "s0:c1,c2"
    assert selinux.level_of_pod(selinux.PAIRS - 1) == "s0:c1022,c1023"
    assert selinux.level_of_pod(selinux.PAIRS) == "s0:c0,c1"
    numbers = [*range(3000), *range(selinux.PAIRS - 3000, selinux.PAIRS)]
    assert len({selinux.level_of_pod(number) for number in numbers}) == len(numbers)
