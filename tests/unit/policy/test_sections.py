"""The sections of a profile that came later: namespaces of users, groups, devices, limits, images."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace

import pytest

from noderuntime.policy import decide
from noderuntime.policy.denial import Denial
from noderuntime.policy.devices import cdi_devices_are_allowed
from noderuntime.policy.facts import ContainerFacts
from noderuntime.policy.model import (
    Device,
    HostFacts,
    IdMapping,
    Mount,
    Namespaces,
    Propagation,
    ResolvedUser,
    Resources,
    SandboxGrant,
    UserNamespace,
)
from noderuntime.policy.spec import DEFAULT_MASKED, DEFAULT_READONLY, DeviceNode, SpecLayout, build
from tests.unit.policy.factories import (
    KUBELET,
    admit,
    container,
    denied,
    granted,
    image,
    rules,
    sandbox,
    security,
)

Profile = Mapping[str, object]
MAPPING = IdMapping(container_id=0, host_id=100_000, length=65536)
MAPPED = Namespaces(user=UserNamespace(uids=MAPPING, gids=MAPPING))


@pytest.mark.parametrize(
    ("ruling", "namespaces", "value"),
    [
        ("Required", Namespaces(), "true"),
        ("Required", MAPPED, ""),
        ("Deny", MAPPED, "false"),
        ("Deny", Namespaces(), ""),
        ("Optional", MAPPED, ""),
        ("Optional", Namespaces(), ""),
    ],
)
def test_a_user_namespace_is_required_or_denied(
    ruling: str, namespaces: Namespaces, value: str
) -> None:
    own = rules({"userNamespace": ruling})
    pod = sandbox(namespaces=namespaces)
    for answer in (decide.admit_sandbox(own, pod), admit(own, pod=pod)):
        assert isinstance(answer, Denial) is bool(value)
        if isinstance(answer, Denial):
            assert (answer.field, answer.value, answer.section) == (
                "hostUsers",
                value,
                "userNamespace",
            )


@pytest.mark.parametrize(
    ("run_as", "user", "field", "value"),
    [
        pytest.param(
            {"groups": [{"min": 10, "max": 20}]},
            ResolvedUser(uid=1, gid=9),
            "runAsGroup",
            "9 (the image's group)",
            id="group below",
        ),
        pytest.param(
            {"groups": [{"min": 10, "max": 20}]},
            ResolvedUser(uid=1, gid=20, additional_gids=(20, 5)),
            "",
            "",
            id="others are another list",
        ),
        pytest.param(
            {"supplementalGroups": [{"min": 10, "max": 20}]},
            ResolvedUser(uid=1, gid=5, additional_gids=(5, 10)),
            "",
            "",
            id="the primary group is none of them",
        ),
        pytest.param(
            {"supplementalGroups": [{"min": 10, "max": 20}]},
            ResolvedUser(uid=1, gid=5, additional_gids=(5, 21)),
            "supplementalGroups",
            "21 (of the image's group file)",
            id="of the image",
        ),
        pytest.param(
            {"supplementalGroups": [{"min": 10, "max": 20}]},
            ResolvedUser(uid=1, gid=5, additional_gids=(7,)),
            "supplementalGroups",
            "7",
            id="asked for",
        ),
    ],
)
def test_groups_are_judged(run_as: Profile, user: ResolvedUser, field: str, value: str) -> None:
    asked = container(security(supplemental_groups=(7,)))
    answer = admit(rules({"runAs": run_as}), asked, facts=image(user))
    if not field:
        assert not isinstance(answer, Denial), answer
        return
    assert isinstance(answer, Denial)
    assert (answer.field, answer.value) == (f"containers[web].securityContext.{field}", value)


def test_an_unmasked_proc_is_given_where_it_is_allowed_but_for_the_profiles_own_paths() -> None:
    own = rules(
        {
            "procMount": "UnmaskedAllowed",
            "maskedPaths": ["/proc/secret"],
            "readonlyPaths": ["/proc/sys"],
        }
    )
    grant = granted(own, container(security(masked_paths=(), readonly_paths=())))
    assert (grant.masked_paths, grant.readonly_paths) == (("/proc/secret",), ("/proc/sys",))


@pytest.mark.parametrize("privileged", [False, True])
def test_the_profiles_paths_are_masked_besides_the_usual_ones(privileged: bool) -> None:
    own = rules({"privileged": "Allow", "maskedPaths": ["/etc/x"], "readonlyPaths": ["/y"]})
    grant = granted(own, container(security(privileged=privileged)))
    usual = () if privileged else DEFAULT_MASKED
    assert grant.masked_paths == (*usual, "/etc/x")
    assert grant.readonly_paths == (*(() if privileged else DEFAULT_READONLY), "/y")


@pytest.mark.parametrize(("uid", "ambient"), [(1000, ["CAP_KILL"]), (0, [])])
def test_another_user_than_root_keeps_what_is_ambient(uid: int, ambient: list[str]) -> None:
    """CVE-2022-24769: nothing is inheritable but what is ambient, and for root nothing is."""
    own = rules({"capabilities": {"default": ["KILL", "CHOWN"], "ambient": ["KILL"]}})
    grant = granted(own, facts=image(ResolvedUser(uid=uid, gid=0)))
    process = build(grant, SpecLayout(rootfs="/"))["process"]
    assert isinstance(process, dict)
    found = process["capabilities"]
    assert (found["ambient"], found["inheritable"]) == (ambient, ambient)
    assert found["permitted"] == ["CAP_CHOWN", "CAP_KILL"]


def test_what_a_container_drops_is_not_ambient() -> None:
    own = rules({"capabilities": {"default": ["KILL", "CHOWN"], "ambient": ["KILL"]}})
    assert granted(own, container(security(capabilities_drop=("ALL",)))).ambient == ()


DEVICES: Profile = {
    "devices": {"allow": [{"path": "/dev/dri", "permissions": "rw"}, {"path": "/dev/fuse"}]}
}


@pytest.mark.parametrize(
    ("path", "permissions", "value"),
    [
        pytest.param("/dev/fuse", "rwm", "", id="listed"),
        pytest.param("/dev/dri/card0", "rw", "", id="below"),
        pytest.param("/dev/dri/card0", "r", "", id="less"),
        pytest.param("/dev/dri/card0", "rwm", "rwm for /dev/dri/card0", id="more"),
        pytest.param("/dev/dri/card0", "", "rwm for /dev/dri/card0", id="nothing said is all"),
        pytest.param("/dev/drip", "r", "/dev/drip", id="a longer name"),
        pytest.param("/dev/dri/../sda", "r", "/dev/sda (behind /dev/dri/../sda)", id="up"),
        pytest.param("/dev/link", "r", "/dev/sda (behind /dev/link)", id="a link out"),
        pytest.param("/dev/link-in", "r", "", id="a link in"),
        pytest.param(f"{KUBELET}/volumeDevices/csi/pv", "rwm", "", id="a block volume"),
        pytest.param(
            "/var/lib/kubelet/pods/other/volumeDevices/csi/pv",
            "r",
            "/var/lib/kubelet/pods/other/volumeDevices/csi/pv",
            id="another Pod's",
        ),
    ],
)
def test_devices_are_judged_where_they_really_are(path: str, permissions: str, value: str) -> None:
    device = Device(container_path="/dev/x", host_path=path, permissions=permissions)
    host = HostFacts(real_paths={"/dev/link": "/dev/sda", "/dev/link-in": "/dev/fuse"})
    answer = admit(rules(DEVICES), container(devices=(device,)), host=host)
    found = answer.value if isinstance(answer, Denial) else ""
    assert found == value


def test_a_device_that_is_granted_is_let_through_by_the_cgroup_with_what_was_granted() -> None:
    device = DeviceNode(path="/dev/fuse", kind="c", major=10, minor=229, access="rw")
    spec = build(granted(rules(DEVICES)), SpecLayout(rootfs="/", devices=(device,)))
    linux = spec["linux"]
    assert isinstance(linux, dict)
    assert linux["resources"]["devices"] == [
        {"allow": False, "access": "rwm"},
        {"allow": True, "type": "c", "major": 10, "minor": 229, "access": "rw"},
    ]


@pytest.mark.parametrize(
    ("name", "passes"),
    [
        ("vendor.com/gpu=0", True),
        ("vendor.com/gpu=all", True),
        ("vendor.com/nic=0", True),
        ("vendor.com/nic=1", False),
        ("vendor.com/gpu", False),
        ("other.com/gpu=0", False),
        ("vendor.com/gpu=*", True),
    ],
)
def test_cdi_devices_are_judged_by_their_name(name: str, passes: bool) -> None:
    own = rules({"devices": {"cdi": ["vendor.com/gpu=*", "vendor.com/nic=0"]}})
    asking = container(cdi_devices=(name,))
    facts = ContainerFacts(rules=own, sandbox=sandbox(), container=asking, image=image())
    assert [denial.value for denial in cdi_devices_are_allowed(facts)] == ([] if passes else [name])


def test_limits_of_processes_are_the_profiles() -> None:
    own = rules({"ulimits": [{"name": "nofile", "soft": 1024, "hard": 4096}]})
    process = build(granted(own), SpecLayout(rootfs="/"))["process"]
    assert isinstance(process, dict)
    assert process["rlimits"] == [{"type": "RLIMIT_NOFILE", "soft": 1024, "hard": 4096}]


@pytest.mark.parametrize(
    ("sizes", "asked", "value"),
    [
        pytest.param(None, {"2MB": 1 << 30}, "", id="nothing is said"),
        pytest.param({"2Mi": "4Mi"}, {"2MB": 4 << 20, "1GB": 0}, "", id="the most"),
        pytest.param({"2Mi": "4Mi"}, {"2MB": 6 << 20}, "6Mi", id="more"),
        pytest.param({"2Mi": "4Mi"}, {"1GB": 1 << 30}, "1Gi", id="a size that is not named"),
        pytest.param({}, {"2MB": 2 << 20}, "2Mi", id="none at all"),
    ],
)
def test_huge_pages_have_a_most(
    sizes: dict[str, str] | None, asked: dict[str, int], value: str
) -> None:
    own = rules({"resources": {"hugepages": sizes}})
    answer = admit(own, container(resources=Resources(hugepage_limits_bytes=asked)))
    assert (answer.value if isinstance(answer, Denial) else "") == value
    if isinstance(answer, Denial):
        assert answer.field.startswith("containers[web].resources.limits.hugepages-")


def test_the_most_of_huge_pages_cannot_be_gone_round() -> None:
    own = rules({"resources": {"hugepages": {"2Mi": "4Mi"}}})
    asked = container(resources=Resources(unified={"hugetlb.2MB.max": "max"}))
    assert denied(own, asked).value == "hugetlb.2MB.max=max"


def test_a_most_of_the_profile_is_told_as_the_profiles() -> None:
    own = rules(
        {"resources": {"memory": {"max": "1Gi"}}}, resources={"limits": {"memory": "2Gi", "cpu": 1}}
    )
    memory = denied(own, container(resources=Resources(memory_limit_bytes=3 << 30)))
    assert memory.rule == "resources.memory.max is 1Gi"
    cpu = denied(own, container(resources=Resources(cpu_quota_us=200_000)))
    assert cpu.rule == 'resources.limits.cpu of NodeRuntime "restricted" is 1'


def test_a_pod_gets_the_profiles_shared_memory() -> None:
    grant = decide.admit_sandbox(rules({"resources": {"shm": {"default": "8Mi"}}}), sandbox())
    assert isinstance(grant, SandboxGrant)
    assert grant.shm_bytes == 8 << 20
    plain = decide.admit_sandbox(None, sandbox())
    assert isinstance(plain, SandboxGrant)
    assert plain.shm_bytes == 64 << 20


VOLUME = f"{KUBELET}/volumes/kubernetes.io~empty-dir/shm"


@pytest.mark.parametrize(
    ("table", "value"),
    [
        pytest.param(f"30 22 0:9 / {VOLUME} rw - tmpfs tmpfs rw,size=65536k", "", id="the most"),
        pytest.param(f"30 22 0:9 / {VOLUME} rw - tmpfs tmpfs rw,size=1g", "1Gi", id="more"),
        pytest.param(
            f"30 22 0:9 / {VOLUME} rw - tmpfs tmpfs rw", "a volume in memory of any size", id="any"
        ),
        pytest.param(f"30 22 8:1 / {VOLUME} rw - ext4 /dev/sda1 rw", "", id="a disk"),
        pytest.param("", "", id="a folder of the disk"),
        pytest.param(f"30 22 0:9 / {KUBELET} rw - tmpfs t rw,size=1m", "", id="around it"),
        pytest.param(
            f"30 22 0:9 / {VOLUME} rw - tmpfs t rw,size=1m\n31 30 0:8 / {VOLUME} rw - tmpfs t rw",
            "a volume in memory of any size",
            id="the last of two",
        ),
    ],
)
def test_a_volume_in_memory_on_dev_shm_has_a_most(table: str, value: str) -> None:
    own = rules({"resources": {"shm": {"max": "64Mi"}}})
    mount = Mount(container_path="/dev/shm/", host_path=VOLUME)
    answer = admit(own, container(mounts=(mount,)), host=HostFacts(mountinfo=table))
    assert (answer.value if isinstance(answer, Denial) else "") == value
    elsewhere = container(mounts=(replace(mount, container_path="/cache"),))
    assert granted(own, elsewhere, host=HostFacts(mountinfo=table)).findings == ()


@pytest.mark.parametrize(
    ("rule", "propagation", "passes"),
    [
        ({}, Propagation.PRIVATE, True),
        ({}, Propagation.HOST_TO_CONTAINER, True),
        ({}, Propagation.BIDIRECTIONAL, False),
        ({"propagation": []}, Propagation.HOST_TO_CONTAINER, False),
        ({"propagation": ["Bidirectional"]}, Propagation.BIDIRECTIONAL, True),
        ({"propagation": ["Bidirectional"]}, Propagation.HOST_TO_CONTAINER, False),
    ],
)
@pytest.mark.parametrize("privileged", ["Allow", "Deny"])
def test_a_path_of_the_node_has_the_propagation_that_its_rule_has(
    rule: Profile, propagation: Propagation, passes: bool, privileged: str
) -> None:
    own = rules({"privileged": privileged, "hostPaths": [{"path": "/srv", **rule}]})
    mount = Mount(container_path="/d", host_path="/srv/a", readonly=True, propagation=propagation)
    answer = admit(own, container(mounts=(mount,)))
    assert isinstance(answer, Denial) is not passes
    if isinstance(answer, Denial):
        assert answer.field == "containers[web].volumeMounts[/d].mountPropagation"


@pytest.mark.parametrize(
    ("reference", "passes"),
    [
        ("registry.example.com/web@sha256:" + "a" * 64, True),
        ("registry.example.com/web:1@sha256:" + "a" * 64, True),
        ("registry.example.com/web:1", False),
        ("registry.example.com/web", False),
        ("web@sha256:" + "a" * 63, False),
        ("web@md5:" + "a" * 32, False),
        ("sha256:" + "a" * 64, False),
    ],
)
def test_an_image_is_named_by_digest_where_that_is_required(reference: str, passes: bool) -> None:
    own = rules({"images": {"requireDigest": True}})
    assert (decide.admit_image(own, reference) is None) is passes
    answer = admit(own, container(image_reference=reference))
    assert isinstance(answer, Denial) is not passes


def test_registries_of_profile_and_noderuntime_hold_both() -> None:
    own = rules(
        {"images": {"allowedRegistries": ["registry.example.com/team"]}},
        allowedRegistries=["registry.example.com/team/web", "docker.io"],
    )
    assert decide.admit_image(own, "registry.example.com/team/web:1") is None
    by_runtime = decide.admit_image(own, "registry.example.com/team/other:1")
    by_profile = decide.admit_image(own, "nginx")
    assert by_runtime is not None
    assert 'NodeRuntime "restricted"' in by_runtime.rule
    assert by_profile is not None
    assert by_profile.rule == "images.allowedRegistries has registry.example.com/team"
