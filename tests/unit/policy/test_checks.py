from __future__ import annotations

from collections.abc import Mapping

import pytest

from noderuntime.policy import decide
from noderuntime.policy.denial import Denial
from noderuntime.policy.model import (
    ContainerConfig,
    ContainerSecurity,
    Device,
    HostFacts,
    NamespaceMode,
    Namespaces,
    ProfileType,
    ResolvedUser,
    Resources,
    SandboxGrant,
    SecurityProfileRef,
)
from tests.unit.policy.factories import (
    NODE,
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


@pytest.mark.parametrize(
    ("profile", "fields", "field"),
    [
        pytest.param({}, {"namespaces": Namespaces(pid=NODE)}, "hostPID", id="hostPID"),
        pytest.param({}, {"namespaces": Namespaces(ipc=NODE)}, "hostIPC", id="hostIPC"),
        pytest.param({}, {"namespaces": Namespaces(network=NODE)}, "hostNetwork", id="hostNetwork"),
        pytest.param(
            {"hostNamespaces": ["PID"]},
            {"namespaces": Namespaces(pid=NODE, network=NODE)},
            "hostNetwork",
            id="one of two is allowed",
        ),
        pytest.param(
            {}, {"privileged": True}, "containers[*].securityContext.privileged", id="privileged"
        ),
        pytest.param(
            {},
            {"sysctls": {"net.core.somaxconn": "1"}},
            "securityContext.sysctls",
            id="sysctl that is not safe",
        ),
    ],
)
def test_a_sandbox_is_refused(profile: Profile, fields: dict[str, object], field: str) -> None:
    answer = decide.admit_sandbox(rules(profile), sandbox(**fields))
    assert isinstance(answer, Denial)
    assert (answer.field, answer.container, answer.profile) == (field, "", "web")
    audited = decide.admit_sandbox(rules({**profile, "mode": "Audit"}), sandbox(**fields))
    assert isinstance(audited, SandboxGrant)
    assert audited.findings == (answer,)


@pytest.mark.parametrize(
    ("profile", "fields"),
    [
        pytest.param({}, {}, id="that asks for nothing"),
        pytest.param(
            {"hostNamespaces": ["PID", "IPC", "Network"]},
            {"namespaces": Namespaces(pid=NODE, ipc=NODE, network=NODE)},
            id="with allowed namespaces",
        ),
        pytest.param({"privileged": "Allow"}, {"privileged": True}, id="privileged"),
        pytest.param({}, {"sysctls": {"net/ipv4/tcp_syncookies": "1"}}, id="safe sysctl, slashes"),
        pytest.param(
            {"sysctls": {"allow": ["net.core.somaxconn"]}},
            {"sysctls": {"net.core.somaxconn": "1"}},
            id="allowed sysctl",
        ),
    ],
)
def test_a_sandbox_is_admitted(profile: Profile, fields: dict[str, object]) -> None:
    answer = decide.admit_sandbox(rules(profile), sandbox(**fields))
    assert isinstance(answer, SandboxGrant)
    assert answer.findings == ()


REFUSED = [
    pytest.param(
        {}, security(privileged=True), {}, "securityContext.privileged", "true", id="privileged"
    ),
    pytest.param(
        {},
        security(capabilities_add=("SYS_ADMIN",)),
        {},
        "securityContext.capabilities.add",
        "SYS_ADMIN",
        id="capability",
    ),
    pytest.param(
        {"capabilities": {"allow": ["NET_RAW"]}},
        security(capabilities_add=("cap_net_raw", "ALL")),
        {},
        "securityContext.capabilities.add",
        "ALL",
        id="all capabilities where one is allowed",
    ),
    pytest.param(
        {},
        security(seccomp=SecurityProfileRef(type=ProfileType.LOCALHOST, localhost_ref="a.json")),
        {},
        "securityContext.seccompProfile.localhostProfile",
        "a.json",
        id="seccomp of a file",
    ),
    pytest.param(
        {}, security(masked_paths=()), {}, "securityContext.procMount", "Unmasked", id="unmasked"
    ),
    pytest.param(
        {},
        security(readonly_paths=()),
        {},
        "securityContext.procMount",
        "Unmasked",
        id="writable /proc/sys",
    ),
    pytest.param(
        {},
        security(),
        {"devices": (Device(container_path="/dev/a", host_path="/dev/sda", permissions="rwm"),)},
        "volumeDevices",
        "/dev/sda",
        id="device",
    ),
]


@pytest.mark.parametrize(("profile", "asks", "fields", "field", "value"), REFUSED)
def test_a_container_is_refused(
    profile: Profile, asks: ContainerSecurity, fields: dict[str, object], field: str, value: str
) -> None:
    asked = container(asks, **fields)
    answer = denied(rules(profile), asked)
    assert (answer.field, answer.value) == (f"containers[web].{field}", value)
    assert (answer.container, answer.profile) == ("web", "web")
    assert granted(rules({**profile, "mode": "Audit"}), asked).findings == (answer,)


@pytest.mark.parametrize(("profile", "asks", "fields", "field", "value"), REFUSED)
def test_the_nodes_own_handler_refuses_none_of_it(
    profile: Profile, asks: ContainerSecurity, fields: dict[str, object], field: str, value: str
) -> None:
    host = HostFacts(seccomp_file='{"defaultAction": "SCMP_ACT_ALLOW"}')
    assert granted(None, container(asks, **fields), host=host).findings == ()


def test_a_container_that_asks_for_host_namespaces_which_its_sandbox_has_not_is_refused() -> None:
    asked = container(security(namespaces=Namespaces(pid=NamespaceMode.NODE)))
    assert denied(rules(), asked).field == "hostPID"


@pytest.mark.parametrize(
    ("run_as", "uid", "passes"),
    [
        pytest.param({}, 0, True, id="root where nothing is said"),
        pytest.param({"nonRoot": True}, 0, False, id="root"),
        pytest.param({"nonRoot": True}, 1, True, id="another"),
        pytest.param({"users": [{"min": 10, "max": 20}]}, 9, False, id="below"),
        pytest.param({"users": [{"min": 10, "max": 20}]}, 10, True, id="lowest"),
        pytest.param({"users": [{"min": 10, "max": 20}]}, 20, True, id="highest"),
        pytest.param({"users": [{"min": 10, "max": 20}]}, 21, False, id="above"),
        pytest.param(
            {"users": [{"min": 1, "max": 2}, {"min": 8, "max": 9}]}, 8, True, id="second range"
        ),
        pytest.param(
            {"nonRoot": True, "users": [{"min": 0, "max": 9}]}, 0, False, id="root in a range"
        ),
    ],
)
def test_the_resolved_user_is_judged(run_as: Profile, uid: int, passes: bool) -> None:
    answer = admit(rules({"runAs": run_as}), facts=image(ResolvedUser(uid=uid, gid=0)))
    assert isinstance(answer, Denial) is not passes


def test_a_denial_of_the_images_user_says_that_it_is_the_images() -> None:
    root = image(ResolvedUser(uid=0, gid=0))
    own = rules({"runAs": {"nonRoot": True}})
    assert denied(own, facts=root).value == "0 (the image's user)"
    assert denied(own, container(security(run_as_user=0)), facts=root).value == "0"


@pytest.mark.parametrize(
    ("reference", "passes"),
    [
        pytest.param("registry.example.com/web", True, id="there"),
        pytest.param("REGISTRY.example.com/web", True, id="host in capitals"),
        pytest.param("registry.example.com.evil.org/web", False, id="a longer host"),
        pytest.param("registry.example.com:5000/web", False, id="another port"),
        pytest.param("registry.example.com@evil.org/web", False, id="user info"),
        pytest.param("evil.org/registry.example.com/web", False, id="in the path"),
        pytest.param("nginx", False, id="docker.io by default"),
        pytest.param("sha256:" + "a" * 64, False, id="an ID, which says nothing of a registry"),
        pytest.param("", False, id="empty"),
        pytest.param("registry.example.com/../web", False, id="up"),
        pytest.param("registry.example.com/web@sha256:" + "a" * 64, True, id="by digest"),
        pytest.param("registry.example.com/web:1@sha256:" + "a" * 64, True, id="tag and digest"),
        pytest.param("registry.example.com/web\n", False, id="line break"),
    ],
)
def test_images_come_from_allowed_registries(reference: str, passes: bool) -> None:
    own = rules(allowedRegistries=["registry.example.com"])
    answer = decide.admit_image(own, reference)
    assert (answer is None) is passes
    asked = container(image=reference, image_reference=reference)
    assert isinstance(admit(own, asked), Denial) is not passes


def test_in_audit_an_image_is_pulled_and_the_container_carries_the_finding() -> None:
    own = rules({"mode": "Audit"}, allowedRegistries=["registry.example.com"])
    assert decide.admit_image(own, "nginx") is None
    findings = granted(own, container(image_reference="nginx")).findings
    assert [finding.field for finding in findings] == ["containers[web].image"]


def test_a_pod_may_ask_for_less_than_the_profile_gives() -> None:
    own = rules({"capabilities": {"default": ["CHOWN", "NET_RAW"], "allow": ["KILL"]}})
    asks = security(
        capabilities_drop=("ALL",),
        capabilities_add=("KILL",),
        no_new_privs=True,
        readonly_rootfs=True,
    )
    grant = granted(own, container(asks))
    assert grant.capabilities == ("CAP_KILL",)
    assert grant.readonly_rootfs
    assert grant.no_new_privileges


def test_audit_gives_what_is_asked_and_sets_what_is_left_open() -> None:
    own = rules(
        {"mode": "Audit", "capabilities": {"default": ["CHOWN"]}},
        resources={"limits": {"memory": "64Mi"}},
    )
    asked = container(
        security(capabilities_add=("SYS_TIME",)), resources=Resources(memory_limit_bytes=1 << 30)
    )
    grant = granted(own, asked)
    assert grant.capabilities == ("CAP_CHOWN", "CAP_SYS_TIME")
    assert grant.resources.memory_limit_bytes == 1 << 30
    assert grant.no_new_privileges
    assert grant.seccomp is not None
    assert grant.seccomp.audit
    assert [finding.value for finding in grant.findings] == ["SYS_TIME", "1Gi"]


def test_changes_say_what_the_profile_set() -> None:
    own = rules({"rootFilesystem": "ReadOnly"}, resources={"defaults": {"cpu": "1"}})
    text = "\n".join(granted(own).changes)
    for word in (
        "seccompProfile",
        "allowPrivilegeEscalation",
        "readOnlyRootFilesystem",
        "limits.cpu",
    ):
        assert word in text
    asks = security(
        no_new_privs=True,
        readonly_rootfs=True,
        seccomp=SecurityProfileRef(type=ProfileType.RUNTIME_DEFAULT),
    )
    asked: ContainerConfig = container(
        asks, resources=Resources(cpu_quota_us=1000, cpu_period_us=100000)
    )
    assert granted(own, asked).changes == ()


def test_a_privileged_container_that_is_allowed_keeps_filter_and_no_new_privileges() -> None:
    grant = granted(rules({"privileged": "Allow"}), container(security(privileged=True)))
    assert grant.privileged
    assert grant.seccomp is not None
    assert grant.no_new_privileges
    assert grant.masked_paths == ()
    assert len(grant.capabilities) == 41
