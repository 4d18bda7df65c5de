from __future__ import annotations

import pytest

from noderuntime.errors import ConfigError
from noderuntime.policy.capabilities import KNOWN
from noderuntime.policy.rules import Bounds, HostPathRule
from tests.unit.policy.factories import DIGEST, rules


@pytest.mark.parametrize(
    ("profile", "fields", "text"),
    [
        ({"capabilities": {"allow": ["NET_BIND"]}}, {}, "capabilities.allow: NET_BIND is not"),
        ({"capabilities": {"default": ["X\nY"]}}, {}, "capabilities.default: X Y is not"),
        ({"seccomp": {"deny": [{"names": ["mkdri"]}]}}, {}, "seccomp.deny: mkdri is not"),
        ({"seccomp": {"allow": [{"names": ["read", "rraed"]}]}}, {}, "seccomp.allow: rraed is not"),
        ({"runAs": {"users": [{"min": 2, "max": 1}]}}, {}, "runAs.users: min 2 is above max 1"),
        ({"hostPaths": [{"path": "/a/../etc"}]}, {}, "hostPaths: /a/../etc must not hold"),
        (
            {"capabilities": {"allow": ["KILL"], "ambient": ["KILL", "CHOWN"]}},
            {},
            "capabilities.ambient: CHOWN is neither in default nor in allow",
        ),
        ({"inherits": "base"}, {}, "inherits: base is not resolved in this revision"),
        ({"maskedPaths": ["/proc/../etc"]}, {}, "maskedPaths: /proc/../etc must not hold"),
        ({"devices": {"allow": [{"path": "/dev/../etc"}]}}, {}, "devices.allow: /dev/../etc must"),
        ({"runAs": {"groups": [{"min": 2, "max": 1}]}}, {}, "runAs.groups: min 2 is above max 1"),
        (
            {"ulimits": [{"name": "core", "soft": 2, "hard": 1}]},
            {},
            "ulimits: core has a soft limit above its hard one",
        ),
        (
            {"ulimits": [{"name": "core", "soft": 1, "hard": 1}] * 2},
            {},
            "ulimits: core is given twice",
        ),
        ({"resources": {"shm": {"max": "0"}}}, {}, "resources.shm.max: must be more than 0"),
        ({"resources": {"shm": {"default": "x"}}}, {}, "resources.shm.default: 'x' is not"),
        ({"resources": {"cpu": {"max": "x"}}}, {}, "resources of the profile: 'x' is not"),
        ({"resources": {"hugepages": {"3Mi": "3Mi"}}}, {}, "resources.hugepages: 3Mi is no size"),
        (
            {
                "exceptions": [
                    {"namespace": "a", "sections": ["runAs"], "expires": "2026-13-01T00:00:00Z"}
                ]
            },
            {},
            "exceptions.expires: 2026-13-01T00:00:00Z is not a time",
        ),
        (
            {"images": {"signatures": {"identities": ["issuer subject"]}}},
            {},
            "images.signatures: this version does not verify signatures",
        ),
        ({}, {"resources": {"limits": {"cpu": "2x"}}}, "resources.limits: '2x' is not"),
        ({}, {"resources": {"defaults": {"memory": "-1"}}}, "resources.defaults: '-1' is not"),
    ],
)
def test_what_cannot_be_meant_is_an_error(
    profile: dict[str, object], fields: dict[str, object], text: str
) -> None:
    with pytest.raises(ConfigError) as caught:
        rules(profile, **fields)
    assert str(caught.value).startswith(f"handler restricted: {text}")


def test_a_handler_is_compiled_once_and_whole() -> None:
    own = rules(
        {
            "capabilities": {"allow": ["ALL"], "default": ["cap_chown"]},
            "hostPaths": [{"path": "/z//y/"}, {"path": "/", "readOnly": False}],
            "sysctls": {"allow": ["net/core/somaxconn"]},
        },
        allowedRegistries=["REGISTRY.example.com/Team/", "index.docker.io"],
        resources={"limits": {"cpu": "1.5", "memory": "1G"}},
    )
    assert own.allowed_capabilities == KNOWN
    assert own.default_capabilities == {"CHOWN"}
    assert own.host_paths == (
        HostPathRule(path="/", readonly=False),
        HostPathRule(path="/z/y", readonly=True),
    )
    assert own.sysctls == {"net.core.somaxconn"}
    assert own.registries == ("docker.io", "registry.example.com/Team")
    assert own.limits == Bounds(cpu_millis=1500, memory_bytes=10**9)
    assert (own.revision, own.profile, own.no_new_privileges) == (DIGEST, "web", True)


def test_rules_are_equal_for_equal_handlers() -> None:
    assert rules({"privileged": "Allow"}) == rules({"privileged": "Allow"})
    assert hash(rules()) == hash(rules())


def test_of_what_profile_and_noderuntime_say_the_narrower_holds() -> None:
    own = rules(
        {
            "resources": {
                "pids": 10,
                "cpu": {"default": "1", "max": "2"},
                "memory": {"max": "1Gi"},
                "hugepages": {"2Mi": "4Mi"},
                "shm": {"max": "1Mi"},
            }
        },
        resources={
            "defaults": {"cpu": "500m"},
            "limits": {"cpu": "4", "memory": "512Mi"},
            "pidsLimit": 20,
        },
    )
    assert own.defaults == Bounds(cpu_millis=500)
    assert own.limits == Bounds(cpu_millis=2000, memory_bytes=512 << 20)
    assert own.profile_limits == Bounds(cpu_millis=2000, memory_bytes=1 << 30)
    assert own.pids_limit == 10
    assert own.hugepages == (("2MB", 4 << 20),)
    assert (own.shm_bytes, own.shm_limit_bytes) == (1 << 20, 1 << 20)


def test_what_a_profile_leaves_out_is_as_it_always_was() -> None:
    own = rules()
    assert (own.shm_bytes, own.shm_limit_bytes, own.hugepages) == (64 << 20, None, None)
    assert (own.user_namespace, own.unmasked_proc, own.ulimits) == ("Optional", False, ())
