"""What a profile demands of the node, a row a feature."""

from __future__ import annotations

from dataclasses import fields, replace

import pytest

from noderuntime.policy.features import HostFeatures, missing_features
from tests.unit.policy.factories import rules

EVERYTHING = HostFeatures(
    **{field.name: True for field in fields(HostFeatures)}  # a new one is there as well
)
TEXT = {"appArmor": {"profile": "profile mine {\n  file,\n}\n"}}
NAME = {"appArmor": {"name": "mine"}}
DEFAULT = {"appArmor": {"mode": "RuntimeDefault"}}
USERS = {"userNamespace": "Required"}
SELINUX: dict[str, object] = {"seLinux": {}}
ROWS = [
    pytest.param(USERS, "user_namespaces", "UserNamespaces", "userNamespace", id="users"),
    pytest.param(TEXT, "apparmor", "AppArmor", "appArmor", id="text"),
    pytest.param(NAME, "apparmor", "AppArmor", "appArmor", id="name"),
    pytest.param(DEFAULT, "apparmor", "AppArmor", "appArmor", id="default"),
    pytest.param(TEXT, "apparmor_parser", "apparmor_parser", "appArmor", id="text, parser"),
    pytest.param(DEFAULT, "apparmor_parser", "apparmor_parser", "appArmor", id="default, parser"),
    pytest.param(SELINUX, "selinux", "SELinux", "seLinux", id="selinux"),
]


@pytest.mark.parametrize(("profile", "lacks", "feature", "section"), ROWS)
def test_what_is_demanded_and_not_there_is_missing(
    profile: dict[str, object], lacks: str, feature: str, section: str
) -> None:
    own = rules(profile)
    assert missing_features(own, EVERYTHING) == ()
    [missing] = missing_features(own, replace(EVERYTHING, **{lacks: False}))
    assert (missing.feature, missing.section) == (feature, section)
    said = missing.sentence("web")
    assert said.startswith(f"{section} of SecurityProfile web demands {feature}, which this node")
    audited = rules({**profile, "auditSections": [section]})
    assert missing_features(audited, HostFeatures()) == ()
    assert missing_features(rules({**profile, "mode": "Audit"}), HostFeatures()) == ()


@pytest.mark.parametrize(
    "profile",
    [
        pytest.param({}, id="nothing"),
        pytest.param({"userNamespace": "Optional"}, id="may have users"),
        pytest.param({"userNamespace": "Deny"}, id="may not have users"),
        pytest.param({"appArmor": {"mode": "Unconfined"}}, id="unconfined"),
    ],
)
def test_a_profile_that_demands_nothing_is_offered_everywhere(profile: dict[str, object]) -> None:
    assert missing_features(rules(profile), HostFeatures()) == ()


def test_a_loaded_profile_needs_no_parser() -> None:
    assert missing_features(rules(NAME), HostFeatures(apparmor=True)) == ()


def test_all_that_is_missing_is_told() -> None:
    own = rules({**USERS, **TEXT, **SELINUX})
    found = [each.feature for each in missing_features(own, HostFeatures())]
    assert found == ["UserNamespaces", "AppArmor", "SELinux"]
