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
