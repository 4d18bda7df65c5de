"""What a profile gets of its base, and which field it is that it may not say."""

from __future__ import annotations

import pytest

from noderuntime.api.securityprofile import SecurityProfileSpec
from noderuntime.errors import ConfigError
from noderuntime.policy import inherit, tighter

Document = dict[str, object]
DAY = "2026-12-31T00:00:00Z"
BASE: Document = {
    "hostNamespaces": ["PID"],
    "userNamespace": "Optional",
    "runAs": {
        "nonRoot": True,
        "users": [{"min": 1, "max": 10}, {"min": 11, "max": 20}],
        "groups": [{"min": 5, "max": 9}],
    },
    "rootFilesystem": "ReadOnly",
    "maskedPaths": ["/proc/a"],
    "capabilities": {"default": ["CHOWN"], "allow": ["NET_RAW", "KILL"], "ambient": ["NET_RAW"]},
    "seccomp": {"allow": [{"names": ["keyctl"]}], "deny": [{"names": ["ptrace"]}]},
    "sysctls": {"allow": ["net.core.somaxconn"]},
    "devices": {
        "allow": [{"path": "/dev/dri", "permissions": "rw"}],
        "cdi": ["vendor.com/gpu=*", "vendor.com/nic=0"],
    },
    "ulimits": [{"name": "nofile", "soft": 10, "hard": 20}],
    "resources": {
        "pids": 100,
        "cpu": {"default": "500m", "max": "2"},
        "memory": {"max": "1Gi"},
        "hugepages": {"2Mi": "64Mi"},
        "shm": {"default": "32Mi", "max": "128Mi"},
    },
    "hostPaths": [
        {"path": "/srv", "readOnly": False, "propagation": []},
        {"path": "/var/log"},
    ],
    "images": {"allowedRegistries": ["registry.example.com"], "requireDigest": True},
}


def spec(document: Document) -> SecurityProfileSpec:
    return SecurityProfileSpec.model_validate(document)


def resolved(child: Document, base: Document = BASE) -> SecurityProfileSpec:
    return inherit.resolve(
        "child", {"child": spec({"inherits": "base", **child}), "base": spec(base)}
    )


def test_a_profile_that_says_nothing_is_its_base() -> None:
    assert resolved({}) == spec(BASE)


def test_a_profile_without_a_base_is_itself() -> None:
    assert inherit.resolve("base", {"base": spec(BASE)}) == spec(BASE)


@pytest.mark.parametrize(
    "child",
    [
        pytest.param({"hostNamespaces": []}, id="no host namespaces"),
        pytest.param({"userNamespace": "Required"}, id="user namespace required"),
        pytest.param({"userNamespace": "Deny"}, id="user namespace denied"),
        pytest.param({"runAs": {"users": [{"min": 5, "max": 15}]}}, id="over two ranges"),
        pytest.param({"runAs": {"groups": [{"min": 5, "max": 5}]}}, id="one group"),
        pytest.param({"runAs": {"supplementalGroups": [{"min": 5, "max": 5}]}}, id="new range"),
        pytest.param({"capabilities": {"default": [], "ambient": []}}, id="fewer capabilities"),
        pytest.param({"capabilities": {"allow": ["CHOWN"], "ambient": []}}, id="a default one"),
        pytest.param({"seccomp": {"deny": [{"names": ["keyctl"]}]}}, id="deny what was allowed"),
        pytest.param({"seccomp": {"allow": [], "deny": []}}, id="nothing besides the base"),
        pytest.param(
            {"seccomp": {"base": "DenyAll", "allow": [{"names": ["read", "keyctl", "clone"]}]}},
            id="DenyAll of what was allowed",
        ),
        pytest.param({"sysctls": {"allow": ["net.ipv4.tcp_rmem"]}}, id="a safe sysctl"),
        pytest.param(
            {"devices": {"allow": [{"path": "/dev/dri/card0", "permissions": "r"}]}}, id="a device"
        ),
        pytest.param({"devices": {"cdi": ["vendor.com/gpu=1"]}}, id="one of a class"),
        pytest.param({"ulimits": [{"name": "nofile", "soft": 1, "hard": 20}]}, id="lower limit"),
        pytest.param({"ulimits": [{"name": "nproc", "soft": 1, "hard": 2}]}, id="another limit"),
        pytest.param({"resources": {"pids": 1, "cpu": {"max": "1"}}}, id="less"),
        pytest.param({"resources": {"hugepages": {}}}, id="no huge pages"),
        pytest.param({"resources": {"shm": {"max": "16Mi"}}}, id="less shared memory"),
        pytest.param({"hostPaths": [{"path": "/srv/a", "propagation": []}]}, id="a path below"),
        pytest.param(
            {"images": {"allowedRegistries": ["registry.example.com/team"]}}, id="a repository"
        ),
    ],
)
def test_a_profile_may_be_tighter(child: Document) -> None:
    found = resolved(child)
    assert found.inherits is None
    assert found.root_filesystem == "ReadOnly"
    assert found != spec(BASE)


@pytest.mark.parametrize(
    ("child", "field"),
    [
        ({"mode": "Audit"}, "mode"),
        ({"auditSections": ["runAs"]}, "auditSections"),
        ({"exceptions": [{"namespace": "a", "sections": ["runAs"], "expires": DAY}]}, "exceptions"),
        ({"privileged": "Allow"}, "privileged"),
        ({"hostNamespaces": ["PID", "IPC"]}, "hostNamespaces"),
        ({"runAs": {"nonRoot": False}}, "runAs.nonRoot"),
        ({"runAs": {"users": []}}, "runAs.users"),
        ({"runAs": {"users": [{"min": 10, "max": 21}]}}, "runAs.users"),
        ({"runAs": {"groups": [{"min": 5, "max": 10}]}}, "runAs.groups"),
        ({"noNewPrivileges": "Optional"}, "noNewPrivileges"),
        ({"rootFilesystem": "ReadWrite"}, "rootFilesystem"),
        ({"procMount": "UnmaskedAllowed"}, "procMount"),
        ({"capabilities": {"default": ["NET_RAW"]}}, "capabilities.default"),
        ({"capabilities": {"allow": ["NET_RAW", "SYS_ADMIN"]}}, "capabilities.allow"),
        ({"capabilities": {"ambient": ["KILL"]}}, "capabilities.ambient"),
        ({"seccomp": {"allow": [{"names": ["bpf"]}]}}, "seccomp"),
        ({"seccomp": {"base": "DenyAll", "allow": [{"names": ["bpf"]}]}}, "seccomp"),
        ({"seccomp": {"allow": [{"names": ["clone"]}]}}, "seccomp"),
        ({"sysctls": {"allow": ["kernel.sem"]}}, "sysctls.allow"),
        ({"devices": {"allow": [{"path": "/dev/dri"}]}}, "devices.allow"),
        ({"devices": {"allow": [{"path": "/dev/drip", "permissions": "r"}]}}, "devices.allow"),
        ({"devices": {"cdi": ["vendor.com/nic=*"]}}, "devices.cdi"),
        ({"ulimits": [{"name": "nofile", "soft": 11, "hard": 20}]}, "ulimits"),
        ({"resources": {"pids": 101}}, "resources.pids"),
        ({"resources": {"cpu": {"default": "1"}}}, "resources.cpu.default"),
        ({"resources": {"cpu": {"max": "3"}}}, "resources.cpu.max"),
        ({"resources": {"memory": {"max": "2Gi"}}}, "resources.memory.max"),
        ({"resources": {"hugepages": {"1Gi": "1Gi"}}}, "resources.hugepages"),
        ({"resources": {"shm": {"max": "256Mi"}}}, "resources.shm.max"),
        ({"resources": {"shm": {"default": "64Mi"}}}, "resources.shm.default"),
        ({"hostPaths": [{"path": "/"}]}, "hostPaths"),
        ({"hostPaths": [{"path": "/var/log/a", "readOnly": False}]}, "hostPaths"),
        ({"hostPaths": [{"path": "/srv/a"}]}, "hostPaths"),
        ({"images": {"allowedRegistries": []}}, "images.allowedRegistries"),
        ({"images": {"allowedRegistries": ["registry.example.org"]}}, "images.allowedRegistries"),
        ({"images": {"requireDigest": False}}, "images.requireDigest"),
    ],
)
def test_a_loosening_is_refused_by_its_field(child: Document, field: str) -> None:
    with pytest.raises(ConfigError) as caught:
        resolved(child)
    assert f"SecurityProfile child: inherits base, which is tighter in {field}" in str(caught.value)


UNCONFINED: Document = {"appArmor": {"mode": "Unconfined"}}
DEFAULT: Document = {"appArmor": {"mode": "RuntimeDefault"}}
TEXT: Document = {"appArmor": {"profile": "profile web {\n  file,\n}\n"}}
NAME: Document = {"appArmor": {"name": "of-the-node"}}
ARTIFACT = "registry.example.com/filters/web@sha256:"


@pytest.mark.parametrize(
    ("base", "child"),
    [
        pytest.param({}, DEFAULT, id="the default, in so many words"),
        pytest.param(DEFAULT, DEFAULT, id="the default again"),
        pytest.param(TEXT, {**TEXT, "privileged": "Deny"}, id="the same text"),
        pytest.param({**TEXT, "mode": "Audit"}, TEXT, id="the text of an audited base"),
        pytest.param(NAME, NAME, id="the same name"),
        pytest.param(UNCONFINED, TEXT, id="a text for none"),
        pytest.param(UNCONFINED, NAME, id="a name for none"),
        pytest.param(UNCONFINED, {"appArmor": None}, id="the node's default for none"),
        pytest.param({}, {"seLinux": {}}, id="the usual type"),
        pytest.param({"seLinux": {"type": "web_t"}}, {"seLinux": {"type": "web_t"}}, id="a type"),
        pytest.param({"seLinux": {"level": "s0"}}, {"seLinux": {"level": "PerPod"}}, id="a level"),
        pytest.param(
            {"seLinux": {"relabel": "Allow"}}, {"seLinux": {"relabel": "Deny"}}, id="no relabelling"
        ),
        pytest.param(
            {"seccomp": {"artifact": f"{ARTIFACT}{'a' * 64}"}},
            {"seccomp": {"artifact": f"{ARTIFACT}{'a' * 64}"}},
            id="the same artifact",
        ),
    ],
)
def test_a_module_of_the_kernel_may_be_as_tight(base: Document, child: Document) -> None:
    inherit.resolve("child", {"child": spec({"inherits": "base", **child}), "base": spec(base)})


@pytest.mark.parametrize(
    ("base", "child", "field"),
    [
        ({}, UNCONFINED, "appArmor"),
        ({}, TEXT, "appArmor"),
        ({}, NAME, "appArmor"),
        (DEFAULT, UNCONFINED, "appArmor"),
        (DEFAULT, {"appArmor": None}, "appArmor"),
        (TEXT, DEFAULT, "appArmor"),
        (TEXT, {"appArmor": {"profile": "profile web {\n  capability,\n}\n"}}, "appArmor"),
        (NAME, {"appArmor": {"name": "another"}}, "appArmor"),
        ({}, {"seLinux": {"type": "spc_t"}}, "seLinux.type"),
        ({"seLinux": {"type": "web_t"}}, {"seLinux": {"type": "spc_t"}}, "seLinux.type"),
        ({"seLinux": {}}, {"seLinux": None}, "seLinux"),
        ({"seLinux": {}}, {"seLinux": {"role": "system_r"}}, "seLinux.role"),
        ({"seLinux": {"user": "a_u"}}, {"seLinux": {"user": "b_u"}}, "seLinux.user"),
        ({}, {"seLinux": {"level": "s0:c1,c2"}}, "seLinux.level"),
        ({"seLinux": {"level": "s0:c1"}}, {"seLinux": {"level": "s0:c2"}}, "seLinux.level"),
        ({"seLinux": {}}, {"seLinux": {"relabel": "Allow"}}, "seLinux.relabel"),
        ({}, {"seLinux": {"relabel": "Allow"}}, "seLinux.relabel"),
        ({}, {"seccomp": {"artifact": f"{ARTIFACT}{'a' * 64}"}}, "seccomp.artifact"),
        (
            {"seccomp": {"artifact": f"{ARTIFACT}{'a' * 64}"}},
            {"seccomp": {"artifact": None}},
            "seccomp.artifact",
        ),
    ],
)
def test_what_cannot_be_shown_to_be_as_tight_is_looser(
    base: Document, child: Document, field: str
) -> None:
    with pytest.raises(ConfigError) as caught:
        inherit.resolve("child", {"child": spec({"inherits": "base", **child}), "base": spec(base)})
    assert f"inherits base, which is tighter in {field}" in str(caught.value)
    assert "what cannot be compared counts as looser" in str(caught.value)


def test_each_section_of_a_profile_is_compared() -> None:
    sections = {field.alias or name for name, field in SecurityProfileSpec.model_fields.items()}
    assert sections - {field.partition(".")[0] for field, _ in tighter.FIELDS} == {"inherits"}


def test_what_is_denied_or_masked_is_added_to_that_of_the_base() -> None:
    found = resolved(
        {
            "maskedPaths": ["/proc/b"],
            "readonlyPaths": ["/c"],
            "seccomp": {"deny": [{"names": ["mount"]}]},
        }
    )
    assert found.masked_paths == ("/proc/a", "/proc/b")
    assert found.readonly_paths == ("/c",)
    assert [rule.names for rule in found.seccomp.deny] == [("ptrace",), ("mount",)]
    assert [rule.names for rule in found.seccomp.allow] == [("keyctl",)]


def test_limits_of_processes_are_joined_by_their_name() -> None:
    limits = [{"name": "nofile", "soft": 1, "hard": 2}, {"name": "core", "soft": 0, "hard": 0}]
    found = {each.name: each.hard for each in resolved({"ulimits": limits}).ulimits}
    assert found == {"nofile": 2, "core": 0}


def test_together_they_may_be_too_many() -> None:
    many = [f"/proc/{number}" for number in range(40)]
    with pytest.raises(ConfigError, match="maskedPaths: together with those of its base: tuple"):
        resolved({"maskedPaths": many}, {"maskedPaths": [f"/sys/{number}" for number in range(40)]})


def test_mode_sections_and_exceptions_are_not_inherited() -> None:
    audit: Document = {
        "auditSections": ["runAs"],
        "exceptions": [{"namespace": "a", "sections": ["images"], "expires": DAY}],
    }
    found = resolved({}, {**BASE, "mode": "Audit", **audit})
    assert (found.mode, found.audit_sections, found.exceptions) == ("Enforce", (), ())


@pytest.mark.parametrize(
    ("exception", "passes"),
    [
        ({"namespace": "a", "sections": ["images"], "expires": DAY}, True),
        ({"namespace": "a", "sections": ["runAs"], "expires": "2030-01-01T00:00:00Z"}, False),
        ({"namespace": "a", "sections": ["images"], "expires": "2027-01-01T00:00:00Z"}, False),
        ({"namespace": "b", "sections": ["images"], "expires": DAY}, False),
        (
            {"namespace": "a", "serviceAccount": "x", "sections": ["images"], "expires": DAY},
            True,
        ),
        (
            {"namespace": "b", "sections": ["sysctls"], "expires": "2030-01-01T00:00:00Z"},
            True,
        ),
    ],
)
def test_an_exception_is_within_those_of_the_base(exception: Document, passes: bool) -> None:
    base: Document = {
        "auditSections": ["sysctls"],
        "exceptions": [{"namespace": "a", "sections": ["images", "devices"], "expires": DAY}],
    }
    if passes:
        assert resolved({"exceptions": [exception]}, base).exceptions != ()
        return
    with pytest.raises(ConfigError, match="tighter in exceptions"):
        resolved({"exceptions": [exception]}, base)


def chain(length: int) -> dict[str, SecurityProfileSpec | None]:
    profiles: dict[str, SecurityProfileSpec | None] = {
        f"p{number}": spec({"inherits": f"p{number + 1}", "maskedPaths": [f"/proc/{number}"]})
        for number in range(length - 1)
    }
    return {**profiles, f"p{length - 1}": spec(BASE)}


def test_a_chain_is_resolved_from_its_end() -> None:
    found = inherit.resolve("p0", chain(inherit.DEEPEST))
    assert len(found.masked_paths) == inherit.DEEPEST
    assert found.run_as.non_root


def test_a_chain_has_an_end() -> None:
    with pytest.raises(ConfigError, match="inherits goes through more than 8 profiles"):
        inherit.resolve("p0", chain(inherit.DEEPEST + 1))


def test_a_loosening_in_the_middle_is_told_of_the_profile_that_says_it() -> None:
    profiles = {
        "leaf": spec({"inherits": "middle"}),
        "middle": spec({"inherits": "base", "privileged": "Allow"}),
        "base": spec(BASE),
    }
    with pytest.raises(ConfigError, match="SecurityProfile middle: inherits base"):
        inherit.resolve("leaf", profiles)


@pytest.mark.parametrize(
    ("profiles", "message"),
    [
        (
            {"a": spec({"inherits": "b"})},
            "SecurityProfile a: inherits: SecurityProfile b does not exist",
        ),
        (
            {"a": spec({"inherits": "b"}), "b": None},
            "SecurityProfile a: inherits: SecurityProfile b cannot be read",
        ),
        ({"a": spec({"inherits": "a"})}, "round in a circle: a -> a"),
        (
            {
                "a": spec({"inherits": "b"}),
                "b": spec({"inherits": "c"}),
                "c": spec({"inherits": "b"}),
            },
            "round in a circle: b -> c -> b",
        ),
        (
            {"a": spec({"inherits": "b"}), "b": spec({"capabilities": {"allow": ["NO_SUCH"]}})},
            "SecurityProfile b: capabilities.allow: NO_SUCH is not a Linux capability",
        ),
    ],
)
def test_a_base_that_cannot_be_is_told(
    profiles: dict[str, SecurityProfileSpec | None], message: str
) -> None:
    with pytest.raises(ConfigError) as caught:
        inherit.resolve("a", profiles)
    assert message in str(caught.value)


def test_a_profile_that_no_node_could_serve_is_told_before_it_gets_there() -> None:
    signed = spec({"images": {"signatures": {"keys": ["key"]}}})
    with pytest.raises(
        ConfigError, match="SecurityProfile a: images.signatures: this version does"
    ):
        inherit.check("a", signed)
